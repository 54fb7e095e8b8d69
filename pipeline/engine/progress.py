"""Progress output: stage, finished units, rate, time left, fraction kept, and the most frequent reasons.

On a terminal one line per step is redrawn; elsewhere a line is printed every `LINE_INTERVAL_S` and at the end.
"""

import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from queries.redact import redact

LINE_INTERVAL_S = 10.0
_TOP_REASONS = 3


class Counted(Protocol):
    """A finished unit: the part that progress needs."""

    @property
    def counts(self) -> dict[str, int]: ...


def describe_counts(counts: Mapping[str, int]) -> str:
    """Format counts: ``1,204 rows, 62.1% kept, no_match 30.2%, no_caption 7.7%``."""
    inputs = counts.get("inputs", 0)
    if not inputs:
        return ""
    reasons = Counter({name: n for name, n in counts.items() if name not in ("inputs", "kept") and n})
    fractions = [f"{name} {n / inputs:.1%}" for name, n in reasons.most_common(_TOP_REASONS)]
    return ", ".join([f"{inputs:,} rows", f"{counts.get('kept', 0) / inputs:.1%} kept", *fractions])


def describe_time(seconds: float) -> str:
    """Format a duration: ``42s``, ``3m10s``, ``2h05m``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


@dataclass
class StepProgress:
    """A running step. The watching thread calls `advance`; `finish` is called once at the end."""

    name: str
    total: int
    resumed: frozenset[str]  # units that were already done
    show: "Progress"
    interval_s: float = 1.0
    started_s: float = field(default_factory=time.monotonic)
    finished: dict[str, Counted] = field(default_factory=dict)
    rows: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    def advance(self, unit: str, result: Counted) -> None:
        self.finished[unit] = result
        self.counts.update(result.counts)
        self.rows += result.counts.get("inputs", 0)
        self.show.draw(self)

    def finish(self, done: Mapping[str, Counted]) -> None:
        """Take the exact results of all units, including resumed ones, and print the last line."""
        self.finished = dict(done)
        self.rows = sum(m.counts.get("inputs", 0) for name, m in done.items() if name not in self.resumed)
        self.counts = Counter()
        for result in done.values():
            self.counts.update(result.counts)
        self.show.close(self)

    def line(self) -> str:
        elapsed_s = time.monotonic() - self.started_s
        done = len(self.finished)
        now = len(self.finished.keys() - self.resumed)
        parts = [f"{self.name:<14} {done}/{self.total} units"]
        if self.resumed:
            parts.append(f"{len(self.resumed)} already done")
        if self.rows and elapsed_s > 0:
            parts.append(f"{self.rows / elapsed_s:,.0f} rows/s")
        if now > 0 and done < self.total:
            parts.append(f"{describe_time(elapsed_s / now * (self.total - done))} left")
        parts.append(describe_time(elapsed_s))
        return "  ".join([*parts, describe_counts(self.counts)]).rstrip()


class Progress:
    """Where steps report. `Progress(None)` is silent."""

    def __init__(self, stream: TextIO | None = sys.stderr) -> None:
        self._console = Console(file=stream, highlight=False) if stream is not None else None
        self._live: Live | None = None
        self._last_line_s = 0.0

    @contextmanager
    def step(self, name: str, total: int, resumed: Mapping[str, Counted]) -> Iterator[StepProgress]:
        """Show one step while the block runs."""
        step = StepProgress(name, total, frozenset(resumed), self)
        step.finished = dict(resumed)
        if self._console is None:
            yield step
            return
        self._last_line_s = time.monotonic()
        if self._console.is_terminal and len(resumed) < total:
            with Live(Text(step.line()), console=self._console, transient=True) as self._live:
                yield step
            self._live = None
        else:
            yield step

    def draw(self, step: StepProgress) -> None:
        if self._live is not None:
            self._live.update(Text(step.line(), overflow="ellipsis", no_wrap=True))
        elif self._console is not None and time.monotonic() - self._last_line_s >= LINE_INTERVAL_S:
            self._last_line_s = time.monotonic()
            self._console.print(step.line(), markup=False, soft_wrap=True)

    def close(self, step: StepProgress) -> None:
        if self._console is not None:
            self._console.print(step.line(), markup=False, soft_wrap=True)

    def say(self, message: str) -> None:
        """Print one line."""
        if self._console is not None:
            self._console.print(redact(message), markup=False, soft_wrap=True)
