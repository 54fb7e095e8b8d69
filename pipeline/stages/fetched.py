"""plan/ -> fetched/: ask for every planned image once; one tar and one Parquet per part, a row for every planned pair.

The unit is a plan part. The fetcher of a process (event loop, connections, robots and DNS caches) is kept between
parts.
"""

import fcntl
import os
import tempfile
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa

from pipeline.config import Config, FetchConfig
from pipeline.engine import Build, run_units
from pipeline.errors import UserError
from pipeline.fetching.archives import INDEX_FORMAT, ArchiveIndex, build_archive_index
from pipeline.fetching.fetcher import Fetcher
from pipeline.records import FETCHED
from pipeline.runner import worker_count
from pipeline.sources import expand_paths, file_versions
from pipeline.stages.plan import part_names
from pipeline.units import Marker, Unit, UnitOutput, Work, digest, outdated

VERSION = 1
"""Raised when the same answers would give other bytes."""


def run_fetched(build: Build, config: Config, base_dir: Path, plan: Marker, refetch: bool) -> dict[str, Marker]:
    """Fill fetched/; return the markers by part name.

    Raises:
        UserError: parts fetched for another plan would be thrown away and `refetch` does not allow it.
    """
    archives = expand_paths(config.fetch.archives, base_dir, "fetch.archives")
    recorded = digest([file_versions(path) for path in archives])
    decides = config.fetch.content() | {"archives": recorded}
    units = [Unit(_stem(name), digest(VERSION, decides, plan.outputs[name].sha256), name) for name in part_names(plan)]
    stale = outdated(build.workspace, "fetched", units)
    if stale and config.fetch.network and not refetch:
        raise UserError(
            f"{len(stale)} of {len(units)} parts in fetched/ belong to another plan or other [fetch] settings; "
            "undo the change, build in another workspace, or add --refetch to fetch those parts again"
        )
    prepare = _Prepare(config.fetch, tuple(archives), recorded, worker_count(build.options))
    return run_units(build, "fetched", units, prepare)


def _stem(name: str) -> str:
    return name.rsplit("/", 1)[1].split(".")[0]


@dataclass(frozen=True)
class _Prepare:
    config: FetchConfig
    archives: tuple[str, ...]
    recorded: str
    workers: int

    def __call__(self) -> Work:
        archives = ArchiveIndex(index_folder(self.archives, self.recorded)) if self.archives else None
        fetcher = Fetcher(self.config, workers=self.workers, archives=archives)
        work = _FetchPart(fetcher)
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

    def __call__(self, part: str, output: UnitOutput) -> Mapping[str, int]:
        plan = output.workspace.read_table(part)
        tar_name = f"fetched/{_stem(part)}.tar"
        with tempfile.TemporaryDirectory(prefix="wit-fetch-") as scratch, output.create(tar_name) as tar:
            rows = self.fetcher.fetch_part(plan, tar_stream=cast(BinaryIO, tar), scratch_dir=Path(scratch))
        output.write_table(f"fetched/{_stem(part)}.parquet", rows.cast(FETCHED))
        return count_outcomes(rows)


def count_outcomes(rows: pa.Table) -> Counter[str]:
    """Return the account of a part: every row is a success or has a reason."""
    counts = Counter(reason for reason in rows["reason"].to_pylist() if reason is not None)
    return counts + Counter(inputs=rows.num_rows, kept=rows["reason"].null_count)
