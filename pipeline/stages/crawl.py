"""plan/ -> .wit/crawl/: a fetch by several processes, cut by host, before fetched/ is put together part by part.

A host has URLs in every part. If processes shared the parts, each would ask every host, with limits divided among them.
So they share the hosts (fetching/host_cut.py), and images lie in files of the crawl until the parts are made:

    route    window of parts -> its URLs, sorted by group and window of their host
    crawl    group, window   -> outcomes and images, sorted by part; those of other windows' parts by window
    regroup  group, window   -> what other windows of the group fetched for its parts, sorted by part

Windows of a group are one chain of units: one process fetches them, in order, two at a time, so that it has something
to do while the last URLs of one wait. Stages beside it know this folder only through `Crawl`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import pyarrow as pa

from pipeline.engine.run import Build, run_units
from pipeline.engine.shuffle import gather, gather_some, spill
from pipeline.engine.units import Prepare, Unit, UnitOutput, digest
from pipeline.engine.workspace import Workspace
from pipeline.fetching.host_cut import HostCut
from pipeline.fetching.journal import decode_outcome, encode_outcome
from pipeline.fetching.outcome import Checked, Outcome
from pipeline.fetching.part import Part
from pipeline.stages.host_counts import hosts_of

FOLDER = ".wit/crawl"
"""<settings>-<plan>/: the files of a crawl; they go when fetched/ is done."""

_CUTS = ".wit/cuts"
_ROUTED = pa.schema([("part", pa.int32()), ("url", pa.string()), ("stated_hash", pa.string())])
_KEPT = pa.schema([("part", pa.int32()), ("url", pa.string()), ("facts", pa.binary()), ("image", pa.large_binary())])
_ROWS_AT_ONCE = 64


class PlannedUrls(Protocol):
    """A part of the plan, as the route step sees it."""

    @property
    def name(self) -> str: ...

    def wanted(self, workspace: Workspace) -> pa.Table:
        """Return the URLs that are to be requested: `url` and `stated_hash`, a row for each hash, null without one."""


@dataclass(frozen=True)
class Crawl:
    """The places of one crawl: its cut, and the parts of its plan in order."""

    name: str  # <settings>-<plan>
    cut: HostCut
    parts: int

    def window_of(self, part: int) -> int:
        return part * self.cut.windows // self.parts

    def parts_of(self, window: int) -> range:
        first, end = (-(-number * self.parts // self.cut.windows) for number in (window, window + 1))
        return range(first, end)

    def routed(self, window: int) -> str:
        return f"{FOLDER}/{self.name}/routed/{window:05d}.rows"

    def fetched(self, group: int, window: int) -> str:
        return f"{FOLDER}/{self.name}/fetched/{window:05d}-{group:05d}.rows"

    def regrouped(self, group: int, window: int) -> str:
        return f"{FOLDER}/{self.name}/regrouped/{window:05d}-{group:05d}.rows"

    def outcomes(self, workspace: Workspace, part: int) -> Iterator[tuple[str, Outcome, Checked | None, bytes | None]]:
        """Yield what was fetched for a part: URL, outcome, when consent was looked for, image."""
        window = self.window_of(part)
        bucket = part - self.parts_of(window).start
        names = [self.fetched(group, window) for group in range(self.cut.groups)]
        if self.cut.windows > 1:
            names += [self.regrouped(group, window) for group in range(self.cut.groups)]
        for rows in gather_some(workspace, names, bucket, _KEPT):
            for batch in rows.select(["facts", "image"]).to_batches(max_chunksize=_ROWS_AT_ONCE):
                for row in batch.to_pylist():
                    yield *decode_outcome(row["facts"]), row["image"]


def cut_table(workspace: Workspace, name: str) -> HostCut | None:
    """Return the cut of a crawl that was begun, or None: it stays if a later run has another number of workers."""
    file = f"{_CUTS}/{name}.parquet"
    return HostCut.from_table(workspace.read_table(file)) if workspace.exists(file) else None


def keep_cut(workspace: Workspace, name: str, cut: HostCut) -> None:
    """Write a cut for workers and for later runs."""
    UnitOutput(workspace).write_table(f"{_CUTS}/{name}.parquet", cut.to_table())


def crawls_begun(workspace: Workspace) -> list[str]:
    """Return the names of crawls that were begun and whose parts are not made."""
    return sorted(file.removeprefix(f"{_CUTS}/").removesuffix(".parquet") for file in workspace.sizes(_CUTS))


def remove_crawls(workspace: Workspace) -> None:
    """Remove all crawls."""
    workspace.remove_folder(FOLDER)
    workspace.remove_folder(_CUTS)


def run_crawl(build: Build, crawl: Crawl, parts: Sequence[PlannedUrls], prepare: Prepare) -> None:
    """Fetch the URLs of all parts; `prepare` opens the work on `Wanted`."""
    windows, groups = range(crawl.cut.windows), range(crawl.cut.groups)
    step = f"crawl/{crawl.name}"
    routes = [
        Unit(f"{w:05d}", digest(crawl.name, w), _Window(w, tuple(parts[part] for part in crawl.parts_of(w))))
        for w in windows
    ]
    run_units(build, f"{step}/route", routes, _Open(_Route, build.workspace.root, crawl.name, crawl.parts))
    units = [
        Unit(f"{w:05d}-{g:05d}", digest(crawl.name, g, w), Wanted(crawl.name, crawl.parts, g, w), chain=f"{g:05d}")
        for g in groups
        for w in windows
    ]
    run_units(build, f"{step}/fetch", units, prepare, at_once=2)
    if crawl.cut.windows > 1:
        regroups = [replace(unit, chain="") for unit in units]
        run_units(build, f"{step}/regroup", regroups, _Open(_Regroup, build.workspace.root, crawl.name, crawl.parts))


def crawl_step(name: str) -> str:
    """Return the step whose units request URLs."""
    return f"crawl/{name}/fetch"


@dataclass(frozen=True)
class _Window:
    number: int
    parts: tuple[PlannedUrls, ...]


@dataclass(frozen=True)
class Wanted:
    """One unit: what one group fetches in one window."""

    name: str
    parts: int
    group: int
    window: int

    @property
    def stem(self) -> str:
        return f"{self.window:05d}-{self.group:05d}"


def load_crawl(workspace: Workspace, name: str, parts: int) -> Crawl:
    """Open a crawl on a worker."""
    cut = cut_table(workspace, name)
    assert cut is not None, f"no cut {name}"
    return Crawl(name, cut, parts)


@dataclass(frozen=True)
class _Open:
    """Opens the crawl on a worker, for one of the steps that request nothing."""

    work: "type[_Route] | type[_Regroup]"
    root: str
    name: str
    parts: int

    def open(self) -> "_Route | _Regroup":
        return self.work(load_crawl(Workspace(self.root), self.name, self.parts))


@dataclass(frozen=True)
class _Route:
    crawl: Crawl

    def run(self, window: _Window, output: UnitOutput) -> Mapping[str, int]:
        cut = self.crawl.cut
        batches = self._batches(output.workspace, window)
        name = self.crawl.routed(window.number)
        rows = spill(output, name, _ROUTED, cut.groups * cut.windows, batches)
        return {"inputs": rows, "kept": rows}

    def _batches(self, workspace: Workspace, window: _Window) -> Iterator[tuple[pa.Table, np.ndarray]]:
        cut = self.crawl.cut
        for part, planned in zip(self.crawl.parts_of(window.number), window.parts, strict=True):
            wanted = planned.wanted(workspace)
            hosts = hosts_of(wanted["url"]).to_pylist()
            buckets = [cut.group(host) * cut.windows + cut.window(host, window.number) for host in hosts]
            numbered = wanted.add_column(0, "part", pa.array([part] * wanted.num_rows, pa.int32()))
            yield numbered.cast(_ROUTED), np.array(buckets, np.int32)


def read_wanted(workspace: Workspace, crawl: Crawl, wanted: Wanted) -> pa.Table:
    """Return the URLs of a unit with the numbers of their parts and stated hashes, in the order of parts."""
    names = [crawl.routed(window) for window in range(crawl.cut.windows)]
    bucket = wanted.group * crawl.cut.windows + wanted.window
    return gather(workspace, names, bucket, _ROUTED)


def write_outcomes(output: UnitOutput, crawl: Crawl, wanted: Wanted, urls: pa.Table, part: Part) -> Counter[str]:
    """Write what a unit fetched; return its account."""
    own = crawl.parts_of(wanted.window)
    part_of = dict(zip(urls["url"].to_pylist(), urls["part"].to_pylist(), strict=True))
    counts: Counter[str] = Counter(inputs=len(part_of), kept=0)

    def batches() -> Iterator[tuple[pa.Table, np.ndarray]]:
        rows: list[dict[str, object]] = []
        for url, outcome, checked, image in part.results():
            counts["kept" if outcome.reason is None else outcome.reason] += 1
            facts = encode_outcome(url, outcome, checked)
            rows.append({"part": part_of[url], "url": url, "facts": facts, "image": image})
            if len(rows) == _ROWS_AT_ONCE:
                yield _numbered(rows, crawl, own)
                rows.clear()
        yield _numbered(rows, crawl, own)

    spill(output, crawl.fetched(wanted.group, wanted.window), _KEPT, len(own) + crawl.cut.windows, batches())
    return counts


def _numbered(rows: list[dict[str, object]], crawl: Crawl, own: range) -> tuple[pa.Table, np.ndarray]:
    """Return rows with their buckets: the parts of the window, then windows."""
    table = pa.Table.from_pylist(rows, _KEPT)
    parts = table["part"].to_pylist()
    buckets = [p - own.start if p in own else len(own) + crawl.window_of(p) for p in parts]
    return table, np.array(buckets, np.int32)


@dataclass(frozen=True)
class _Regroup:
    crawl: Crawl

    def run(self, wanted: Wanted, output: UnitOutput) -> Mapping[str, int]:
        own = self.crawl.parts_of(wanted.window)
        name = self.crawl.regrouped(wanted.group, wanted.window)
        rows = spill(output, name, _KEPT, len(own), self._batches(output.workspace, wanted, own.start))
        return {"inputs": rows, "kept": rows}

    def _batches(self, workspace: Workspace, wanted: Wanted, first: int) -> Iterator[tuple[pa.Table, np.ndarray]]:
        for window in range(self.crawl.cut.windows):
            bucket = len(self.crawl.parts_of(window)) + wanted.window
            for rows in gather_some(workspace, [self.crawl.fetched(wanted.group, window)], bucket, _KEPT):
                yield rows, rows["part"].to_numpy().astype(np.int32) - first
