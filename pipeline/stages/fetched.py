"""plan/ -> fetched/: ask for every planned image once; one tar and one Parquet per part, a row for every planned pair.

The unit is a plan part. The fetcher of a process (event loop, connections, robots and DNS caches) is kept between
parts.
"""

import fcntl
import os
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa

from pipeline.config import Config, FetchConfig
from pipeline.engine import Build, run_units
from pipeline.errors import UserError
from pipeline.fetching.archives import INDEX_FORMAT, ArchiveIndex, build_archive_index
from pipeline.fetching.earlier import EarlierPart
from pipeline.fetching.fetcher import Fetcher
from pipeline.records import FETCHED
from pipeline.runner import worker_count
from pipeline.sources import expand_paths, file_versions
from pipeline.stages.plan import part_names
from pipeline.units import Marker, Unit, UnitOutput, Work, digest, marker_name, read_markers
from pipeline.workspace import Workspace

VERSION = 1
"""Raised when the same answers would give other bytes."""


def check_fetched(workspace: Workspace, config: Config, base_dir: Path) -> None:
    """Refuse to go on where images fetched from the web would be thrown away.

    Raises:
        UserError: parts in fetched/ were fetched under other settings.
    """
    settings = _Settings.of(config, base_dir)
    others = [name for name, marker in read_markers(workspace, "fetched").items() if not settings.made(marker)]
    if others and config.fetch.network:
        raise UserError(
            f"{len(others)} parts in fetched/ were fetched under other settings (keys of [fetch] that decide what an "
            "image is, fetch.parts, or seed); undo the change, build in another workspace, or add --refetch to fetch "
            "everything again"
        )


def run_fetched(build: Build, config: Config, base_dir: Path, plan: Marker, refetch: bool) -> dict[str, Marker]:
    """Fill fetched/; return the markers by part name.

    Where another plan was fetched before under the same settings, only what is new is asked for, unless `refetch`.
    """
    settings = _Settings.of(config, base_dir)
    units = [Unit(_stem(name), settings.digest_of(plan.outputs[name].sha256), name) for name in part_names(plan)]
    if not refetch:
        _set_aside(build.workspace, settings, units)
    prepare = _Prepare(config.fetch, settings, _earlier_plans(build.workspace), worker_count(build.options))
    markers = run_units(build, "fetched", units, prepare)
    build.workspace.remove_folder(_EARLIER)
    return markers


@dataclass(frozen=True)
class _Settings:
    """What decides, beside the plan, what a fetched part is. `recorded` says which versions of the archives."""

    archives: tuple[str, ...]
    recorded: str
    digest: str

    @classmethod
    def of(cls, config: Config, base_dir: Path) -> "_Settings":
        archives = expand_paths(config.fetch.archives, base_dir, "fetch.archives")
        recorded = digest([file_versions(path) for path in archives])
        content = config.fetch.content() | {"archives": recorded}
        return cls(tuple(archives), recorded, digest(VERSION, content, config.fetch.parts, config.seed))

    def digest_of(self, plan_sha256: str) -> str:
        return f"{self.digest}-{plan_sha256}"

    def made(self, marker: Marker) -> bool:
        return marker.digest.startswith(f"{self.digest}-")


_EARLIER = ".wit/earlier"


def _set_aside(workspace: Workspace, settings: _Settings, units: Sequence[Unit]) -> None:
    """Move the parts of another plan away, to take from them what this one has too.

    The markers go last: a run that is killed before finds them again, and moves the rest.
    """
    wanted = {unit.name: unit.digest for unit in units}
    earlier = {
        name: marker
        for name, marker in read_markers(workspace, "fetched").items()
        if settings.made(marker) and wanted.get(name) != marker.digest
    }
    there = workspace.sizes("fetched")
    workspace.move(
        {file: f"{_EARLIER}/{m.digest[-16:]}/{file}" for m in earlier.values() for file in m.outputs if file in there}
    )
    workspace.remove(marker_name("fetched", name) for name in earlier)


def _earlier_plans(workspace: Workspace) -> tuple[str, ...]:
    """Return a folder for each earlier plan: there are several where a build was stopped and its config changed."""
    return tuple(sorted({"/".join(name.split("/")[:3]) for name in workspace.sizes(_EARLIER)}))


def _earlier_parts(workspace: Workspace, plans: Sequence[str], stem: str) -> Iterator[EarlierPart]:
    for folder in plans:
        table, tar = f"{folder}/fetched/{stem}.parquet", f"{folder}/fetched/{stem}.tar"
        if workspace.exists(table) and workspace.exists(tar):
            with workspace.open(tar) as stream:
                yield EarlierPart(workspace.read_table(table), stream)


def _stem(name: str) -> str:
    return name.rsplit("/", 1)[1].split(".")[0]


@dataclass(frozen=True)
class _Prepare:
    config: FetchConfig
    settings: _Settings
    earlier_plans: tuple[str, ...]
    workers: int

    def __call__(self) -> Work:
        recorded = self.settings.archives
        archives = ArchiveIndex(index_folder(recorded, self.settings.recorded)) if recorded else None
        fetcher = Fetcher(self.config, workers=self.workers, archives=archives)
        work = _FetchPart(fetcher, self.earlier_plans)
        weakref.finalize(work, fetcher.close)
        return work


def index_folder(archives: Sequence[str], version: str) -> Path:
    """Return the folder with the index of these archives, made by the first process of this machine that asks.

    It lies in the temporary folder, so that the processes of a machine, and later runs, share it.
    """
    key = digest(INDEX_FORMAT, archives, version)  # the index names the files it points into, so paths count too
    shared = Path(tempfile.gettempdir()) / f"wit-archives-{os.getuid()}"
    shared.mkdir(mode=0o700, exist_ok=True)
    if shared.stat().st_uid != os.getuid():
        raise UserError(f"{shared} belongs to another user; set TMPDIR to a folder of your own")
    folder = shared / key
    with (shared / f"{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the system releases it, even where its holder is killed
        if not folder.exists():
            with tempfile.TemporaryDirectory(prefix="making-", dir=shared) as scratch:
                made = Path(scratch) / "index"
                build_archive_index(archives, made)
                made.rename(folder)
    return folder


@dataclass(frozen=True)
class _FetchPart:
    fetcher: Fetcher
    earlier_plans: tuple[str, ...]

    def __call__(self, part: str, output: UnitOutput) -> Mapping[str, int]:
        plan = output.workspace.read_table(part)
        tar_name = f"fetched/{_stem(part)}.tar"
        with (
            tempfile.TemporaryDirectory(prefix="wit-fetch-") as scratch,
            output.create(tar_name) as tar,
        ):
            rows = self.fetcher.fetch_part(
                plan,
                tar_stream=cast(BinaryIO, tar),
                scratch_dir=Path(scratch),
                earlier=_earlier_parts(output.workspace, self.earlier_plans, _stem(part)),
            )
        output.write_table(f"fetched/{_stem(part)}.parquet", rows.cast(FETCHED))
        return count_outcomes(rows)


def count_outcomes(rows: pa.Table) -> Counter[str]:
    """Return the account of a part: every row is a success or has a reason."""
    counts = Counter(reason for reason in rows["reason"].to_pylist() if reason is not None)
    return counts + Counter(inputs=rows.num_rows, kept=rows["reason"].null_count)
