"""Wire the exact balance (exact.py) into Beam: scans over files, small results.

Used twice: on the candidates before fetching, and on what survived fetching and deduplication.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.utils.shared import Shared

from pipeline.engine.run import Build, run_reduction
from pipeline.engine.units import Unit, UnitOutput, digest
from pipeline.engine.workspace import FileFacts, Workspace
from pipeline.stages.balance.exact import (
    PRIORITY_FIELDS,
    Matches,
    Thresholds,
    WindowCount,
    WindowHistogram,
    Windows,
    count_matches,
    find_thresholds,
    query_hashes,
    selected_lists,
)
from pipeline.stages.balance.ranking import RANDOM, Ranking
from queries.allowlist import Allowlist

_SCAN_TASKS = 256
"""The maximum of scan tasks: each sends a count vector (8 bytes per query)."""

_WINDOW_BUCKETS = 64
"""Head queries are split so that no single element holds every window: at 400M pairs each is about 16 MB."""

_FEW_KEYS = 1_024
"""The minimum of the limit of keys that are collected per query; the limit is 16 sqrt(cap) if that is more."""


@dataclass(frozen=True)
class Balance:
    """The outcome: matches per query, and the largest key that each query selects."""

    counts: np.ndarray  # (queries,) int64
    thresholds: Thresholds


class Groups(Protocol):
    """What a pair can belong to, by number, and at most `cap` pairs of each are selected: queries, or hosts."""

    @property
    def queries(self) -> Sequence[str]: ...

    @property
    def sha256(self) -> str: ...


class GroupHashes(Protocol):
    """Where a worker finds the array of `query_hashes` of groups."""

    @property
    def seed(self) -> int: ...

    @property
    def ranking(self) -> Ranking: ...

    def load(self) -> np.ndarray: ...


@dataclass(frozen=True)
class QueryHashes:
    """The file with the array of `query_hashes` (4 MB, read by workers, not sent with the job); and the ranking."""

    allowlist: str
    seed: int
    ranking: Ranking = RANDOM

    def load(self) -> np.ndarray:
        return query_hashes(Allowlist.load(self.allowlist).queries, self.seed)


@dataclass(frozen=True)
class Tasks:
    """`count` tasks of a scan, each some files: listed in a file, because jobs have limits."""

    root: str
    name: str
    count: int

    @classmethod
    def write(cls, workspace: Workspace, name: str, files: Sequence[str]) -> "Tasks":
        count = min(_SCAN_TASKS, len(files))
        listed = pa.table({"task": np.arange(len(files)) % max(1, count), "file": pa.array(files, pa.string())})
        UnitOutput(workspace).write_table(name, listed)
        return cls(workspace.root, name, count)

    def files(self, task: int) -> list[str]:
        listed = Workspace(self.root).read_table(self.name, ["file"], filters=[("task", "==", task)])
        return [str(name) for name in listed["file"].to_pylist()]

    def read(self, task: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Yield columns of the files of a task, some rows at a time."""
        workspace = Workspace(self.root)
        for name in self.files(task):
            yield from workspace.read_batches(name, columns)


def find_balance(
    build: Build, step: str, files: Sequence[str], groups: Groups, keys: GroupHashes, *, cap: int, inputs: str
) -> Balance:
    """Scan Parquet files with `matched_columns`; results lie under `.wit/<step>/`.

    `inputs` is a digest of the files' content; a finished scan of the same inputs is not repeated.
    """
    queries = len(groups.queries)
    tasks = Tasks.write(build.workspace, f".wit/{step}/tasks.parquet", files)
    unit_digest = digest(inputs, groups.sha256)
    name = f".wit/{step}/counts.parquet"
    run_reduction(build, f"{step}/count", Unit("counts", unit_digest), name, _CountScan(tasks, queries))
    counts = build.workspace.read_table(name)["count"].to_numpy()

    thresholds = Thresholds.unlimited(queries)
    windows = Windows.around(counts, cap)
    if keys.ranking.needs_scores:  # which are not uniform
        windows = _narrow(
            build, step, windows.whole(windows.head), tasks, counts, keys, cap=cap, unit_digest=unit_digest
        )
    attempt = 0
    while len(windows.head):
        name = f".wit/{step}/thresholds-{attempt}.parquet"
        unit = Unit(f"thresholds-{attempt}", digest(unit_digest, keys.seed, cap, attempt))
        scan = _Scan(tasks, windows, cap, keys, WindowCount)
        run_reduction(build, f"{step}/select-{attempt}", unit, name, scan)
        found = build.workspace.read_table(name)
        missed = found["missed"].to_numpy(zero_copy_only=False)
        heads = found["query"].to_numpy()
        for part in PRIORITY_FIELDS:
            thresholds.key[part][heads[~missed]] = found[part].to_numpy()[~missed]
        windows = _narrow(
            build, step, windows.whole(heads[missed]), tasks, counts, keys, cap=cap, unit_digest=unit_digest
        )
        attempt += 1
    return Balance(counts, thresholds)


def _narrow(
    build: Build,
    step: str,
    windows: Windows,
    tasks: Tasks,
    counts: np.ndarray,
    keys: GroupHashes,
    *,
    cap: int,
    unit_digest: str,
) -> Windows:
    """Return windows with few enough keys inside; `windows` must contain the cap-th smallest."""
    inside = counts[windows.head]
    few = max(_FEW_KEYS, 16 * math.isqrt(cap))
    attempt = 0
    while ((inside > few) & (windows.low < windows.high)).any():
        name = f".wit/{step}/windows-{attempt}.parquet"
        unit = Unit(f"windows-{attempt}", digest(unit_digest, keys.seed, cap, attempt))
        scan = _Scan(tasks, windows, cap, keys, WindowHistogram)
        run_reduction(build, f"{step}/narrow-{attempt}", unit, name, scan)
        found = build.workspace.read_table(name)
        windows = Windows(*(found[column].to_numpy() for column in ("query", "low", "high")))
        inside = found["inside"].to_numpy()
        attempt += 1
    return windows


def matched_columns(ranking: Ranking) -> list[str]:
    """Return the columns that a balance reads."""
    return ["uid", "query_ids", *ranking.columns]


def matches_of(pairs: pa.Table, keys: np.ndarray, ranking: Ranking) -> Matches:
    """Return the matches of a table with `matched_columns`."""
    return Matches.of(pairs["uid"], pairs["query_ids"], keys, ranking, ranking.scores(pairs))


@dataclass(frozen=True)
class _CountScan:
    """Scan 1: matches per query."""

    tasks: Tasks
    queries: int

    def wire(self, pipeline: beam.Pipeline) -> "beam.pvalue.PCollection[Any]":
        return (
            pipeline
            | "Tasks" >> beam.Create(range(self.tasks.count), reshuffle=False)
            | "Spread" >> beam.Reshuffle()
            | "Count" >> beam.Map(self._count)
            | "Sum" >> beam.CombineGlobally(self._sum)
            | "Table" >> beam.Map(lambda counts: pa.table({"count": counts}))
        )

    def _count(self, task: int) -> np.ndarray:
        batches = self.tasks.read(task, ["query_ids"])
        return self._sum(count_matches(batch.column("query_ids"), self.queries) for batch in batches)

    def _sum(self, vectors: Iterable[np.ndarray]) -> np.ndarray:
        total = np.zeros(self.queries, np.int64)
        for vector in vectors:
            total += vector
        return total


_Found = WindowCount | WindowHistogram


@dataclass(frozen=True)
class _Scan:
    """Scan 2: read every key of the head queries, to determine the cap-th smallest or to narrow its window."""

    tasks: Tasks
    windows: Windows
    cap: int
    keys: GroupHashes
    kind: type[_Found]

    def wire(self, pipeline: beam.Pipeline) -> "beam.pvalue.PCollection[Any]":
        return (
            pipeline
            | "Tasks" >> beam.Create(range(self.tasks.count), reshuffle=False)
            | "Spread" >> beam.Reshuffle()
            | "Look" >> beam.ParDo(_Look(self.tasks, self.windows, self._bounds(), self.keys, self.kind))
            | "Total" >> beam.CombinePerKey(_Total(self.kind).add)
            | "Find" >> beam.MapTuple(self._find)
            | "Join" >> beam.CombineGlobally(_concat)
        )

    def _bounds(self) -> list[tuple[int, int]]:
        edges = np.linspace(0, len(self.windows.head), _WINDOW_BUCKETS + 1).astype(int)
        return [(int(a), int(b)) for a, b in pairwise(edges) if b > a]

    def _find(self, bucket: int, found: _Found) -> pa.Table:
        windows = self.windows.part(*self._bounds()[bucket])
        if isinstance(found, WindowHistogram):
            narrow, inside = found.narrowed(windows, self.cap)
            return pa.table({"query": narrow.head, "low": narrow.low, "high": narrow.high, "inside": inside})
        keys, missed = find_thresholds(windows, found, self.cap)
        return pa.table({"query": windows.head, "missed": missed} | {part: keys[part] for part in PRIORITY_FIELDS})


class _Look(beam.DoFn):
    """Scan the keys of some files; the result is cut into buckets of head queries."""

    def __init__(
        self, tasks: Tasks, windows: Windows, bounds: list[tuple[int, int]], keys: GroupHashes, kind: type[_Found]
    ) -> None:
        self._tasks, self._windows, self._bounds, self._hashes, self._kind = tasks, windows, bounds, keys, kind
        self._shared = Shared()

    def setup(self) -> None:
        self._keys = self._shared.acquire(lambda: _Held(self._hashes.load())).keys

    def process(self, task: int) -> Iterator[tuple[int, _Found]]:
        matches = (
            matches_of(pa.Table.from_batches([batch]), self._keys, self._hashes.ranking)
            for batch in self._tasks.read(task, matched_columns(self._hashes.ranking))
        )
        found = self._kind.of(matches, self._windows)
        if len(found.below):
            yield from enumerate(found.split(self._bounds))


@dataclass(frozen=True)
class _Total:
    """Add up counts; an empty sum is the neutral element that Beam starts from."""

    kind: type[_Found]

    def add(self, found: Iterable[_Found]) -> _Found:
        return self.kind.total(list(found))  # type: ignore[arg-type]


@dataclass
class _Held:
    """An array that Beam's Shared can hold: Shared needs objects that support weak references."""

    keys: np.ndarray


def _concat(tables: Iterable[pa.Table]) -> pa.Table:
    parts = list(tables)
    return pa.concat_tables(parts).sort_by("query") if parts else pa.table({})


def write_balance(workspace: Workspace, name: str, counts: np.ndarray, cap: int) -> dict[str, FileFacts]:
    """Write, per query (row number = query id), how many pairs it matches and how many of them it selects."""
    output = UnitOutput(workspace)
    output.write_table(name, pa.table({"matched": counts, "selected": np.minimum(counts, cap)}))
    return output.files


def save_thresholds(workspace: Workspace, name: str, thresholds: Thresholds) -> None:
    """Write thresholds as Parquet, one row per query."""
    UnitOutput(workspace).write_table(name, pa.table({part: thresholds.key[part] for part in PRIORITY_FIELDS}))


def load_thresholds(workspace: Workspace, name: str) -> Thresholds:
    """Read what `save_thresholds` wrote."""
    table = workspace.read_table(name)
    thresholds = Thresholds.unlimited(table.num_rows)
    for part in table.column_names:
        thresholds.key[part] = table[part].to_numpy()
    return thresholds


@dataclass(frozen=True)
class OpenSelect:
    """Makes a `SelectQueries` on a worker from the files of thresholds and queries."""

    root: str
    thresholds: str
    keys: GroupHashes

    def open(self) -> "SelectQueries":
        thresholds = load_thresholds(Workspace(self.root), self.thresholds)
        return SelectQueries(thresholds, self.keys.load(), self.keys.ranking)


@dataclass(frozen=True)
class SelectQueries:
    """Scan 3: which queries select each pair."""

    thresholds: Thresholds
    keys: np.ndarray
    ranking: Ranking = RANDOM

    def select(self, pairs: pa.Table) -> pa.ListArray:
        """Return list<int32> for a table with `matched_columns`; an empty list means that the pair is dropped."""
        matches = matches_of(pairs, self.keys, self.ranking)
        return selected_lists(matches, self.thresholds.selects(matches), pairs.num_rows)
