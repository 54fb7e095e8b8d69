"""Progress output: stage, finished units, rate, time left, fraction kept, and the most frequent reasons.

On a terminal one line per step is redrawn; elsewhere a line is printed every `LINE_INTERVAL_S` and at the end.
"""

import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Protocol, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from pipeline.engine.json_log import json_line
from pipeline.engine.run_record import RunKeeper, StepState, keeping_run
from pipeline.engine.workspace import Workspace
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
    done: int = 0  # with the resumed ones
    last: str | None = None  # a unit that was finished
    rows: int = 0  # without those of resumed units
    counts: Counter[str] = field(default_factory=Counter)

    def advance(self, units: int, counts: Mapping[str, int], last: str | None) -> None:
        """Take how many units were finished since the step began, their counts together, and one of them."""
        self.done, self.counts, self.last = min(len(self.resumed) + units, self.total), Counter(counts), last
        self.rows = self.counts["inputs"]
        self.show.draw(self)

    def finish(self, done: Mapping[str, Counted]) -> None:
        """Take the exact results of all units, including resumed ones, and print the last line."""
        self.done, self.last = len(done), next(reversed(list(done)), None)
        self.rows = sum(m.counts.get("inputs", 0) for name, m in done.items() if name not in self.resumed)
        self.counts = Counter()
        for result in done.values():
            for reason, count in result.counts.items():  # of a million units, several times faster than Counter.update
                self.counts[reason] += count
        self.show.close(self)

    def heartbeat(self, paused: str | None = None) -> None:
        """Tell the workspace that the step goes on, although no unit has finished, or what it waits for."""
        self.show.publish(self, paused=paused)

    @property
    def state(self) -> StepState:
        elapsed_s = time.monotonic() - self.started_s
        done, now = self.done, self.done - len(self.resumed)
        return StepState(
            step=self.name,
            units=self.total,
            done=done,
            resumed=len(self.resumed),
            rows=self.rows,
            elapsed_s=round(elapsed_s, 1),
            rows_per_s=round(self.rows / elapsed_s, 1) if self.rows and elapsed_s > 0 else None,
            left_s=round(elapsed_s / now * (self.total - done), 1) if now > 0 and done < self.total else None,
            counts={name: n for name, n in self.counts.items() if n},
        )

    def line(self) -> str:
        return describe_step(self.state)


def describe_step(state: StepState) -> str:
    """Format a step in one line."""
    parts = [f"{state.step:<14} {state.done}/{state.units} units"]
    if state.resumed:
        parts.append(f"{state.resumed} already done")
    if state.rows_per_s is not None:
        parts.append(f"{state.rows_per_s:,.0f} rows/s")
    if state.left_s is not None:
        parts.append(f"{describe_time(state.left_s)} left")
    parts.append(describe_time(state.elapsed_s))
    return "  ".join([*parts, describe_counts(state.counts)]).rstrip()


class Progress:
    """Where steps report. `Progress(None)` is silent; with `as_json`, each line is a JSON object."""

    def __init__(self, stream: TextIO | None = sys.stderr, *, as_json: bool = False) -> None:
        self._console = Console(file=stream, highlight=False) if stream is not None and not as_json else None
        self._json = stream if as_json else None
        self._live: Live | None = None
        self._last_line_s = 0.0
        self._keeper: RunKeeper | None = None
        self._stage_of: Mapping[str, str] = {}

    @contextmanager
    def kept_in(
        self, workspace: Workspace, command: str, stages: tuple[str, ...], stage_of: Mapping[str, str]
    ) -> Iterator[None]:
        """Keep the progress of a run in its workspace while the block runs.

        `stage_of` gives the stage of steps that are not named after it, by the first part of their name.
        """
        with keeping_run(workspace, command, stages) as self._keeper:
            self._stage_of = stage_of
            try:
                yield
            finally:
                self._keeper = None

    def publish(self, step: StepProgress, *, at_once: bool = False, paused: str | None = None) -> None:
        """Keep the state of a step in the workspace; `paused` says what it waits for."""
        if self._keeper is not None:
            first = step.name.partition("/")[0]
            state = "running" if paused is None else "paused"
            stage = self._stage_of.get(first, first)
            self._keeper.update(at_once=at_once, state=state, cause=paused, stage=stage, step=step.state)

    @contextmanager
    def step(self, name: str, total: int, resumed: Mapping[str, Counted]) -> Iterator[StepProgress]:
        """Show one step while the block runs."""
        step = StepProgress(name, total, frozenset(resumed), self, done=len(resumed))
        self.publish(step, at_once=len(resumed) < total)
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
        self.publish(step)
        if self._json is not None and time.monotonic() - self._last_line_s >= LINE_INTERVAL_S:
            self._last_line_s = time.monotonic()
            self._write_json("progress", step)
        if self._live is not None:
            self._live.update(Text(step.line(), overflow="ellipsis", no_wrap=True))
        elif self._console is not None and time.monotonic() - self._last_line_s >= LINE_INTERVAL_S:
            self._last_line_s = time.monotonic()
            self._console.print(step.line(), markup=False, soft_wrap=True)

    def close(self, step: StepProgress) -> None:
        if self._json is not None:
            self._write_json("step done", step)
        if self._console is not None:
            self._console.print(step.line(), markup=False, soft_wrap=True)

    def say(self, message: str) -> None:
        """Print one line."""
        if self._json is not None:
            self._json.write(json_line("info", message) + "\n")
            self._json.flush()
        if self._console is not None:
            self._console.print(redact(message), markup=False, soft_wrap=True)

    def _write_json(self, event: str, step: StepProgress) -> None:
        assert self._json is not None
        stage = self._stage_of.get(first := step.name.partition("/")[0], first)
        self._json.write(json_line("info", event, stage=stage, unit=step.last, **asdict(step.state)) + "\n")
        self._json.flush()
