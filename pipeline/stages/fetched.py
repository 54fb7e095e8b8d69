"""plan/ -> fetched/: ask for every planned image once; one tar and one Parquet per part, a row for every planned pair.

The unit is a plan part. The fetcher of a process (event loop, connections, robots and DNS caches) is kept between
parts.
"""

import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipeline.config import Config, FetchConfig
from pipeline.engine import Build, Marker, Unit, UnitOutput, Work, digest, outdated, run_units
from pipeline.errors import UserError
from pipeline.fetching import Fetcher
from pipeline.records import FETCHED
from pipeline.runner import worker_count
from pipeline.stages.plan import part_names

VERSION = 1
"""Raised when the same answers would give other bytes."""


def run_fetched(build: Build, config: Config, base_dir: Path, plan: Marker, refetch: bool) -> dict[str, Marker]:
    """Fill fetched/; return the markers by part name.

    Raises:
        UserError: parts fetched for another plan would be thrown away and `refetch` does not allow it.
    """
    decides = config.fetch.content()
    units = [Unit(_stem(name), digest(VERSION, decides, plan.outputs[name].sha256), name) for name in part_names(plan)]
    stale = outdated(build.workspace, "fetched", units)
    if stale and not refetch:
        raise UserError(
            f"{len(stale)} of {len(units)} parts in fetched/ belong to another plan or other [fetch] settings; "
            "undo the change, build in another workspace, or add --refetch to fetch those parts again"
        )
    prepare = _Prepare(config.fetch, base_dir, worker_count(build.options))
    return run_units(build, "fetched", units, prepare)


def _stem(name: str) -> str:
    return name.rsplit("/", 1)[1].split(".")[0]


@dataclass(frozen=True)
class _Prepare:
    config: FetchConfig
    base_dir: Path
    workers: int

    def __call__(self) -> Work:
        return _FetchPart(Fetcher(self.config, workers=self.workers, base_dir=self.base_dir))


@dataclass(frozen=True)
class _FetchPart:
    fetcher: Fetcher

    def __call__(self, part: str, output: UnitOutput) -> Mapping[str, int]:
        plan = output.workspace.read_table(part)
        tar_name = f"fetched/{_stem(part)}.tar"
        with tempfile.TemporaryDirectory(prefix="wit-fetch-") as scratch, output.create(tar_name) as tar:
            rows = self.fetcher.fetch_part(plan, tar, Path(scratch))
        output.write_table(f"fetched/{_stem(part)}.parquet", rows.cast(FETCHED))
        return count_outcomes(rows)


def count_outcomes(rows: pa.Table) -> Counter[str]:
    """Return the account of a part: every row is a success or has a reason."""
    counts = Counter(reason for reason in rows["reason"].to_pylist() if reason is not None)
    return counts + Counter(inputs=rows.num_rows, kept=rows["reason"].null_count)
