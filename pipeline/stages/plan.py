"""pairs/ -> plan/: the pairs to fetch. Split the pairs into parts by URL, drop repeated pairs, balance to cap x slack.

Steps, each a pipeline over files (scratch results are under `.wit/plan/` until the stage is done):

    spill    pairs files -> files sorted into buckets of parts (by a hash of the URL)
    gather   bucket -> candidate parts, every uid once
    count    candidate parts -> matches per query                 } stages/balance/scans.py
    select   candidate parts -> the largest key each query takes  }
    write    candidate part -> plan part: the pairs that some query selects

All pairs of a URL are in one part, so a URL is requested once; and each part is a random sample of the whole.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import Config
from pipeline.engine.run import Build, run_units
from pipeline.engine.shuffle import MAX_BUCKETS, bucket_of_part, gather, spill
from pipeline.engine.units import (
    Marker,
    Stateless,
    Unit,
    UnitOutput,
    Work,
    add_counts,
    digest,
    finish_stage,
    finished_stage,
)
from pipeline.engine.workspace import Workspace
from pipeline.records import PAIRS, PLAN, Reason
from pipeline.stages.balance.scans import (
    Balance,
    OpenSelect,
    QueryHashes,
    SelectQueries,
    find_balance,
    save_thresholds,
    write_balance,
)
from pipeline.stages.pairs import pair_files
from queries.allowlist import Allowlist

VERSION = 3
"""Raise it when the same pairs would give another plan, or scratch files have another format."""

_SPILL_ROWS = 2_000_000
"""Pairs files are spilled together until they hold this many rows: fewer, larger files to gather from."""

_ROUTED = PAIRS.append(pa.field("part", pa.int32())).append(pa.field("url_hash", pa.uint64()))


def run_plan(
    build: Build, config: Config, allowlist: Allowlist, keys: QueryHashes, pairs: Mapping[str, Marker]
) -> Marker:
    """Fill plan/ with `fetch.parts` parts and `balance.parquet`; return the stage's marker."""
    files = pair_files(pairs)
    stage_digest = digest(
        VERSION,
        sorted((name, facts.sha256) for name, facts in files.items()),
        config.balance.model_dump(),
        config.fetch.parts,
        config.seed,
        allowlist.sha256,
    )
    done = finished_stage(build.workspace, "plan", stage_digest)
    if done is not None:
        build.progress.say(f"plan           {config.fetch.parts} parts already done")
        return done
    counts = Counter(inputs=add_counts(pairs.values())["kept"])
    candidates = _candidates(build, config, pairs, stage_digest)
    counts[Reason.DUPLICATE_PAIR] = add_counts(candidates.values())[Reason.DUPLICATE_PAIR]

    names = [name for marker in candidates.values() for name in sorted(marker.outputs)]
    cap = plan_cap(config)
    balance = find_balance(build, "plan", names, allowlist, keys, cap=cap, inputs=stage_digest)
    written = _write_plan(build, names, balance, keys, stage_digest)
    counts.update({k: n for k, n in add_counts(written.values()).items() if k != "inputs"})
    outputs = {name: facts for marker in written.values() for name, facts in marker.outputs.items()}
    outputs |= write_balance(build.workspace, "plan/balance.parquet", balance.counts, cap)
    return finish_stage(build.workspace, "plan", stage_digest, outputs, counts)


def plan_cap(config: Config) -> int:
    """Return the cap before fetching, which allows for dead links and duplicates."""
    return math.ceil(config.balance.cap * config.balance.slack)


def part_names(plan: Marker) -> list[str]:
    """Return the plan's parts, in order."""
    return sorted(name for name in plan.outputs if name.startswith("plan/part-"))


def _candidates(build: Build, config: Config, pairs: Mapping[str, Marker], stage_digest: str) -> dict[str, Marker]:
    parts = config.fetch.parts
    buckets = min(parts, MAX_BUCKETS)
    spills = [
        Unit(f"{i:05d}", digest(stage_digest, names), _Spill(f"{i:05d}", names))
        for i, names in enumerate(_groups(pairs))
    ]
    spilled = run_units(build, "plan/spill", spills, Stateless(_SpillPairs(parts, buckets, config.seed)))
    names = [name for marker in spilled.values() for name in marker.outputs]
    gathers = [Unit(f"{bucket:05d}", digest(stage_digest, bucket), bucket) for bucket in range(buckets)]
    return run_units(build, "plan/gather", gathers, Stateless(_GatherParts(names, parts, buckets)))


def _groups(pairs: Mapping[str, Marker]) -> list[list[str]]:
    """Group pairs files, in order, into lists of about _SPILL_ROWS rows."""
    groups: list[list[str]] = []
    rows = _SPILL_ROWS
    for marker in pairs.values():
        if rows >= _SPILL_ROWS:
            groups.append([])
            rows = 0
        groups[-1].extend(pair_files({"": marker}))
        rows += marker.counts["kept"]
    return groups


def url_hashes(urls: Sequence[str], seed: int) -> np.ndarray:
    """Return a keyed 64-bit hash of each URL, (n,) uint64: it determines the part and the order in it."""
    key = seed.to_bytes(8, "little")
    joined = b"".join(hashlib.blake2b(url.encode(), digest_size=8, key=key).digest() for url in urls)
    return np.frombuffer(joined, dtype="<u8")


@dataclass(frozen=True)
class _Spill:
    name: str
    files: list[str]


@dataclass(frozen=True)
class _SpillPairs:
    parts: int
    buckets: int
    seed: int

    def run(self, task: _Spill, output: UnitOutput) -> Mapping[str, int]:
        rows = spill(
            output, f".wit/plan/spilled/{task.name}.rows", _ROUTED, self.buckets, self._routed(output.workspace, task)
        )
        return {"inputs": rows, "kept": rows}

    def _routed(self, workspace: Workspace, task: _Spill) -> Iterator[tuple[pa.Table, np.ndarray]]:
        for name in task.files:
            for batch in workspace.read_batches(name):
                table = pa.Table.from_batches([batch])
                hashes = url_hashes(table["url"].to_pylist(), self.seed)
                part = (hashes % np.uint64(self.parts)).astype(np.int32)
                table = table.append_column("part", pa.array(part)).append_column("url_hash", pa.array(hashes))
                yield table, bucket_of_part(part, self.parts, self.buckets)


@dataclass(frozen=True)
class _GatherParts:
    spilled: list[str]
    parts: int
    buckets: int

    def run(self, bucket: int, output: UnitOutput) -> Mapping[str, int]:
        table = gather(output.workspace, self.spilled, bucket, _ROUTED)
        kept = 0
        in_bucket = bucket_of_part(np.arange(self.parts), self.parts, self.buckets) == bucket
        for part in np.flatnonzero(in_bucket):
            unique = drop_repeats(table.filter(pc.equal(table["part"], int(part))))
            output.write_table(f".wit/plan/candidates/part-{part:05d}.parquet", unique.select(PAIRS.names))
            kept += unique.num_rows
        return {"inputs": table.num_rows, "kept": kept, Reason.DUPLICATE_PAIR: table.num_rows - kept}


def drop_repeats(pairs: pa.Table) -> pa.Table:
    """Sort pairs by (URL hash, uid) and keep each uid once: the row with the smallest page, source, field and offset.

    One whose image is in the source's own file comes before one whose image is on the web (null).
    """
    order = ["url_hash", "uid", "image_bytes", "page_url", "source", "text_field", "source_offset"]
    pairs = pairs.sort_by([(name, "ascending") for name in order]).combine_chunks()
    uids = pairs["uid"]
    if len(uids) < 2:
        return pairs
    first = pc.not_equal(uids[1:].combine_chunks(), uids[:-1].combine_chunks())
    return pairs.filter(pa.concat_arrays([pa.array([True]), first]))


def _write_plan(
    build: Build, candidates: Sequence[str], balance: Balance, keys: QueryHashes, stage_digest: str
) -> dict[str, Marker]:
    """Write the final parts; workers read the thresholds from a file, not from the job."""
    thresholds = ".wit/plan/thresholds.parquet"
    save_thresholds(build.workspace, thresholds, balance.thresholds)
    units = [Unit(name.rsplit("/", 1)[1].split(".")[0], digest(stage_digest, name), name) for name in candidates]
    return run_units(build, "plan/write", units, _OpenWrite(OpenSelect(build.workspace.root, thresholds, keys)))


@dataclass(frozen=True)
class _OpenWrite:
    select: OpenSelect

    def open(self) -> Work:
        return _WritePart(self.select.open())


@dataclass(frozen=True)
class _WritePart:
    select: SelectQueries

    def run(self, candidates: str, output: UnitOutput) -> Mapping[str, int]:
        table = output.workspace.read_table(candidates)
        chosen = self.select.select(table)
        planned = table.append_column("selected_by", chosen).filter(pc.greater(pc.list_value_length(chosen), 0))
        output.write_table(f"plan/{candidates.rsplit('/', 1)[1]}", planned.cast(PLAN))
        kept = planned.num_rows
        return {"inputs": table.num_rows, "kept": kept, Reason.OVER_CAP: table.num_rows - kept}
