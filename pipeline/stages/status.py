"""`wit status`: who runs a build and how far it is, the account, what is open, and where pairs are lost.

Reads the run record, markers, and for examples the table of one part: it takes seconds, on any machine.
"""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow.compute as pc

from pipeline.account import Account, describe_damage, read_account
from pipeline.engine.progress import describe_step, describe_time
from pipeline.engine.run_record import RunRecord, read_run
from pipeline.engine.units import missing_outputs, read_markers
from pipeline.engine.workspace import Workspace
from pipeline.fetching.retry import describe_retry
from pipeline.records import Reason

_EXAMPLES = 3
_EXAMPLE_SOURCES = 16
_NEVER_SHOWN = frozenset({Reason.ROBOTS_DISALLOWED, Reason.OPTED_OUT, Reason.BLOCKED_HOST})
"""Who said no is in report/compliance.json by host; the URLs are not repeated on terminals and in logs."""


@dataclass(frozen=True)
class SourceAccount:
    """The rows of one source file, or of all of a folder: read, kept, and the reasons of the others."""

    source: str
    files: int
    inputs: int
    kept: int
    reasons: Mapping[str, int]


@dataclass(frozen=True)
class Status:
    """Everything that `wit status` shows; `examples` are URLs by reason, `problems` what is wrong."""

    run: RunRecord | None
    account: Account
    sources: tuple[SourceAccount, ...]
    examples: Mapping[str, tuple[str, ...]]
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def is_running(self) -> bool:
        return self.run is not None and self.run.is_alive

    def to_json(self) -> dict[str, Any]:
        run = self.run
        about_run = None
        if run is not None:
            about_run = asdict(run) | {
                "state": run.state if run.is_alive else "stopped",
                "stage_number": run.stage_number,
                "silent_s": round(time.time() - run.heard, 1),
            }
        return {
            "run": about_run,
            "account": self.account.to_json(),
            "closes": not self.account.problems(),
            "sources": [asdict(source) for source in self.sources],
            "examples": {reason: list(urls) for reason, urls in self.examples.items()},
            "problems": list(self.problems),
            "notes": list(self.notes),
        }


def read_status(workspace: Workspace) -> Status:
    """Read the status of a workspace; while a build runs, an account that does not close yet is no problem."""
    run = read_run(workspace)
    account = read_account(workspace)
    problems: list[str] = []
    if run is None or not run.is_alive:
        problems = account.problems()
        if lost := missing_outputs(workspace):
            problems.append(
                f"{len(lost)} files are missing or cut, such as {lost[0]}: run `wit build` to make them again"
            )
    notes = (*describe_damage(workspace), *describe_retry(account))
    return Status(run, account, _sources(workspace), _examples(workspace), tuple(problems), notes)


def _sources(workspace: Workspace) -> tuple[SourceAccount, ...]:
    """Add up the source files by their folder, those with most rows first."""
    files: Counter[str] = Counter()
    counts: dict[str, Counter[str]] = {}
    for unit, marker in read_markers(workspace, "pairs").items():
        folder = (marker.about or unit).rpartition("/")[0] or (marker.about or unit)
        files[folder] += 1
        counts.setdefault(folder, Counter()).update(marker.counts)
    found = [
        SourceAccount(
            name,
            files[name],
            count["inputs"],
            count["kept"],
            {reason: n for reason, n in count.most_common() if reason not in ("inputs", "kept") and n},
        )
        for name, count in counts.items()
    ]
    return tuple(sorted(found, key=lambda source: (-source.inputs, source.source)))


def _examples(workspace: Workspace) -> dict[str, tuple[str, ...]]:
    """Return URLs by the reason why they are not in the set: of a few sources, and of one part."""
    names = sorted(workspace.sizes("dropped"))[:_EXAMPLE_SOURCES]
    for folder in ("shards", "fetched"):
        if tables := sorted(name for name in workspace.sizes(folder) if name.endswith(".parquet")):
            names.append(tables[0])
            break
    found: dict[str, list[str]] = {}
    for name in names:
        rows = workspace.read_table(name, ["url", "reason"])
        rows = rows.filter(pc.and_(pc.is_valid(rows["reason"]), pc.not_equal(pc.fill_null(rows["url"], ""), "")))
        for row in rows.to_pylist():
            urls = found.setdefault(row["reason"], [])
            if len(urls) < _EXAMPLES and row["url"] not in urls and row["reason"] not in _NEVER_SHOWN:
                urls.append(row["url"])
    return {reason: tuple(urls) for reason, urls in sorted(found.items()) if urls}


def describe_run(run: RunRecord) -> list[str]:
    """Say who runs a build and how far it is, or how it ended and what is open; one line each."""
    who = f"{run.command}, process {run.process} of {run.user} on {run.host}"
    started = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(run.started))
    silent_s = max(0.0, time.time() - run.heard)
    lines = []
    if run.is_alive:
        what = f"paused ({run.cause})" if run.state == "paused" else "running"
        lines.append(f"{what}: {who}, since {started}, last heard of {describe_time(silent_s)} ago")
    elif run.state == "stopped":
        lines.append(f"stopped after {describe_time(run.heard - run.started)}: {run.cause} ({who})")
    else:
        lines.append(f"killed, or its machine is gone, {describe_time(silent_s)} ago: {who}")
    if run.step is not None:
        number = f"{run.stage_number} of {len(run.stages)}" if run.stage_number is not None else ""
        lines.append(f"stage {number} {run.stage}: {describe_step(run.step)}")
        if not run.is_alive:
            left = run.step.units - run.step.done
            lines.append(f"open: {left:,} of {run.step.units:,} units of {run.step.step}; run `wit build` to resume")
    return lines
