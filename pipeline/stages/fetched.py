"""plan/ -> fetched/: request every planned image once; one tar and one Parquet per part, a row for every planned pair.

Beside them, consent/ records when each URL's consent was checked. It is not an output of the unit: two fetches have
different times, and no later stage reads it.

The unit is a plan part. The fetcher of a process (event loop, connections, robots and DNS caches) is kept between
parts.
"""

import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.beam.runner import worker_count
from pipeline.config import Config, FetchConfig
from pipeline.engine.run import Build, run_units
from pipeline.engine.units import Marker, Unit, UnitOutput, Work, digest, marker_name, read_marker, read_markers
from pipeline.engine.workspace import Workspace
from pipeline.errors import UserError
from pipeline.fetching.archives import ArchiveIndex, index_folder
from pipeline.fetching.block_files import BlockFiles, find_block_lists, read_block_lists
from pipeline.fetching.earlier import EarlierPart
from pipeline.fetching.fetcher import Fetcher
from pipeline.fetching.journal import Journal
from pipeline.private_folder import private_folder, scratch_folder
from pipeline.records import FETCHED, LEDGER, Reason
from pipeline.sources import expand_paths, file_versions
from pipeline.stages.plan import part_names

VERSION = 2
"""Raise it when the same responses would give other bytes."""


def check_fetched(workspace: Workspace, config: Config, base_dir: Path) -> None:
    """Fail if continuing would discard images fetched from the web.

    Raises:
        UserError: parts in fetched/ were fetched with other settings.
    """
    settings = _Settings.of(config, base_dir)
    made = {name: marker.digest for name, marker in read_markers(workspace, "fetched").items()}
    made |= {_stem(name): name.split("/")[2] for name in workspace.sizes(_REUSE)}
    others = [name for name, how in made.items() if not how.startswith((settings.name, _FROM_ARCHIVES))]
    if others:
        raise UserError(
            f"{len(others)} parts in fetched/ were fetched with other settings (keys of [fetch] that change the stored "
            "images, fetch.parts, or seed); undo the change, build in another workspace, or add --refetch to fetch "
            "everything again"
        )


def run_fetched(build: Build, config: Config, base_dir: Path, plan: Marker, refetch: bool) -> dict[str, Marker]:
    """Fill fetched/; return the markers by part name.

    If another plan was fetched with the same settings, only new URLs are requested, unless `refetch`.
    """
    settings = _Settings.of(config, base_dir)
    digests = {name: f"{settings.name}-{plan.outputs[name].sha256}" for name in part_names(plan)}
    if refetch:
        build.workspace.remove_folder(_REUSE)
    else:
        _stash_for_reuse(build.workspace, settings, {_stem(name): unit_digest for name, unit_digest in digests.items()})
    earlier = _earlier_parts(build.workspace, settings)
    units = [
        Unit(
            _stem(name),
            unit_digest,
            _PlannedPart(
                name,
                plan.outputs[name].sha256,
                tuple(earlier.get(_stem(name), [])),
                unit_digest if refetch else settings.name,
            ),
        )
        for name, unit_digest in digests.items()
    ]
    block_files = find_block_lists(config.fetch.consent, base_dir)
    prepare = _OpenFetcher(config.fetch, settings, worker_count(build.options), block_files)
    try:
        markers = run_units(build, "fetched", units, prepare)
    except UserError:
        _withdraw_silent(build.workspace, settings)
        raise
    build.workspace.remove_folder(_REUSE)
    build.workspace.remove_folder(_JOURNALS)
    return markers


_FROM_ARCHIVES = "archives-"
_JOURNALS = ".wit/journal"
"""The journals of parts that are being fetched into a local workspace: <part>.journal."""

_SILENT = frozenset(
    {Reason.DNS_FAILED, Reason.CONNECT_FAILED, Reason.TIMEOUT, Reason.ROBOTS_UNREACHABLE, Reason.HOST_UNAVAILABLE}
)
_REUSE = ".wit/earlier"
"""While a plan is fetched, the parts fetched for earlier plans: <settings>/<part>.<plan>.tar and .parquet."""


@dataclass(frozen=True)
class _Settings:
    """The settings that, with the plan, determine a fetched part: `name`. `recorded` is the version of the archives."""

    archives: tuple[str, ...]
    recorded: str
    name: str

    @classmethod
    def of(cls, config: Config, base_dir: Path) -> "_Settings":
        archives = expand_paths(config.fetch.archives, base_dir, "fetch.archives")
        recorded = digest([file_versions(path) for path in archives])
        content = config.fetch.content() | {"archives": recorded}
        unit_digest = digest(VERSION, content, config.fetch.parts, config.seed)
        return cls(tuple(archives), recorded, ("web-" if config.fetch.network else _FROM_ARCHIVES) + unit_digest)

    def owns(self, marker: Marker) -> bool:
        return marker.digest.startswith(f"{self.name}-")

    def reuse_path(self, file: str, marker: Marker) -> str:
        """Return the path of a part's file while another plan is fetched."""
        stem, _, suffix = file.rsplit("/", 1)[1].partition(".")
        return f"{_REUSE}/{self.name}/{stem}.{marker.digest[-16:]}.{suffix}"


def _withdraw_silent(workspace: Workspace, settings: _Settings) -> None:
    """Discard the parts of a stopped run in which no URL had a response: this machine's network may have been down.

    Small parts end before their process has enough requests to detect that.
    """
    silent = [
        name
        for name, marker in read_markers(workspace, "fetched").items()
        if settings.owns(marker)
        and 0 < marker.counts["inputs"] == sum(marker.counts.get(reason, 0) for reason in _SILENT)
    ]
    workspace.remove(marker_name("fetched", name) for name in silent)


def journal_path(workspace: Workspace, part: str) -> Path:
    """Return the path of a part's journal: on local disk, inside the workspace if that is local.

    Raises:
        UserError: another user owns the temporary folder.
    """
    if workspace.is_local:
        return Path(workspace.path(f"{_JOURNALS}/{part}.journal"))
    try:
        return private_folder("wit-journal") / digest(workspace.root) / f"{part}.journal"
    except PermissionError as error:
        raise UserError(f"{error}; set TMPDIR to a folder that only you can write to") from None


def _stash_for_reuse(workspace: Workspace, settings: _Settings, wanted: Mapping[str, str]) -> None:
    """Move the parts of another plan away, to reuse their results for this one.

    The markers are removed last: the run after a killed one finds them again, and moves the rest. If the plan was
    changed back, the moved files are moved back.
    """
    markers = {n: m for n, m in read_markers(workspace, "fetched").items() if settings.owns(m)}
    in_place, stashed = workspace.sizes("fetched"), workspace.sizes(_REUSE)
    moves: dict[str, str] = {}
    stale = []
    for name, marker in markers.items():
        targets = {file: settings.reuse_path(file, marker) for file in marker.outputs}
        present = [file for file, facts in marker.outputs.items() if in_place.get(file) == facts.bytes]
        moved = [file for file, facts in marker.outputs.items() if stashed.get(targets[file]) == facts.bytes]
        if wanted.get(name) == marker.digest:
            moves |= {targets[file]: file for file in moved if file not in present}
        elif {*present, *moved} == targets.keys():
            moves |= {file: targets[file] for file in present}
            stale.append(marker_name("fetched", name))
    workspace.move(moves)
    workspace.remove(stale)


def _earlier_parts(workspace: Workspace, settings: _Settings) -> dict[str, tuple[str, ...]]:
    """Return part -> its stored results, without suffixes: several if a build was stopped and its config changed."""
    folder = f"{_REUSE}/{settings.name}"
    names = workspace.sizes(folder).keys()
    found: dict[str, list[str]] = {}
    for table in sorted(name.removesuffix(".parquet") for name in names if name.endswith(".parquet")):
        if f"{table}.tar" in names:
            found.setdefault(_stem(table), []).append(table)
    return {part: tuple(names) for part, names in found.items()}


@dataclass(frozen=True)
class _PlannedPart:
    """One work unit: a plan part, plus results already fetched for it under earlier plans."""

    name: str
    sha256: str
    earlier: tuple[str, ...]
    journal_key: str

    def open_earlier(self, workspace: Workspace) -> Iterator[EarlierPart]:
        for name in self.earlier:
            with workspace.open(f"{name}.tar") as tar:
                yield EarlierPart(workspace.read_table(f"{name}.parquet"), tar)


def _stem(name: str) -> str:
    return name.rsplit("/", 1)[1].split(".")[0]


@dataclass(frozen=True)
class _OpenFetcher:
    config: FetchConfig
    settings: _Settings
    workers: int
    block_files: BlockFiles

    def open(self) -> Work:
        recorded = self.settings.archives
        archives = ArchiveIndex(index_folder(recorded, self.settings.recorded)) if recorded else None
        block_lists = read_block_lists(self.block_files)
        fetcher = Fetcher(self.config, workers=self.workers, archives=archives, block_lists=block_lists)
        work = _FetchPart(fetcher)
        weakref.finalize(work, fetcher.close)
        return work


@dataclass(frozen=True, eq=False)
class _FetchPart:
    fetcher: Fetcher
    finished: dict[str, Path] = field(default_factory=dict)  # written parts -> their journals

    def run(self, part: _PlannedPart, output: UnitOutput) -> Mapping[str, int]:
        plan, stem = output.workspace.read_table(part.name, sha256=part.sha256), _stem(part.name)
        self._remove_journals(output.workspace)
        path = journal_path(output.workspace, stem)
        with (
            scratch_folder("fetch") as scratch,
            closing(Journal.open(path, part.journal_key, Path(scratch))) as journal,
            output.create(f"fetched/{stem}.tar") as tar,
        ):
            rows = self.fetcher.fetch_part(
                plan,
                tar_stream=cast(BinaryIO, tar),
                scratch_dir=Path(scratch),
                earlier=part.open_earlier(output.workspace),
                keep_ledger=partial(keep_ledger, output.workspace, f"consent/{stem}.parquet", plan),
                journal=journal,
            )
        output.write_table(f"fetched/{stem}.parquet", rows.cast(FETCHED))
        self.finished[stem] = path
        return count_outcomes(rows)

    def _remove_journals(self, workspace: Workspace) -> None:
        """Remove the journals of parts that have their marker: until then a killed process may need them."""
        for stem, path in list(self.finished.items()):
            if read_marker(workspace, "fetched", stem) is not None:
                path.unlink(missing_ok=True)
                del self.finished[stem]


def keep_ledger(workspace: Workspace, name: str, plan: pa.Table | None, ledger: pa.Table) -> None:
    """Write the ledger of a part; for planned URLs (None: all URLs) not requested now it keeps the earlier rows."""
    before = workspace.read_table(name).cast(LEDGER) if workspace.exists(name) else LEDGER.empty_table()
    if plan is not None:
        before = before.filter(pc.is_in(before["url"], plan["url"]))
    older = before.filter(pc.invert(pc.is_in(before["url"], ledger["url"])))
    with workspace.create(name) as out:
        pq.write_table(pa.concat_tables([ledger, older]).sort_by("url"), out, compression="zstd")


def count_outcomes(rows: pa.Table) -> Counter[str]:
    """Return the account of a part: every row is a success or has a reason."""
    counts = Counter(reason for reason in rows["reason"].to_pylist() if reason is not None)
    return counts + Counter(inputs=rows.num_rows, kept=rows["reason"].null_count)
