"""pairs/ -> plan/: the pairs to fetch. Split the pairs into parts by URL, drop repeated pairs, balance to cap x slack.

Steps, each a pipeline over files (scratch results are under `.wit/plan/` until the stage is done):

    spill    pairs files -> files sorted into buckets of parts (by a hash of the URL)
    captions, frequent    pairs files -> captions of too many images, if filters.max_images_per_caption is set
    gather   bucket -> candidate parts, every uid once, without frequent captions
    count    candidate parts -> matches per query                 } stages/balance/scans.py
    select   candidate parts -> the largest key each query takes  }
    hosts-n  candidate parts -> those without what is over the caps of hosts, then count and select again (host_cap.py)
    size     candidate parts -> how many pairs some query selects, if no `fetch.parts` is stated (plan_parts.py)
    write    candidate parts -> plan parts: the pairs that some query selects
    hosts    plan parts -> the largest hosts (host_counts.py)

All pairs of a URL are in one part, so a URL is requested once; and each part is a random sample of the whole.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import Config
from pipeline.engine.run import Build, run_units
from pipeline.engine.shuffle import Pieces, gather, gather_pieces, spill
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
from pipeline.engine.workspace import FileFacts, Workspace
from pipeline.filters.frequency import CAPTION_USES, FREQUENT, frequent_captions, needed_uses
from pipeline.records import PAIRS, PLAN, Reason
from pipeline.stages.balance.scans import (
    OpenSelect,
    QueryHashes,
    SelectQueries,
    find_balance,
    save_thresholds,
    write_balance,
)
from pipeline.stages.host_cap import Round
from pipeline.stages.host_counts import spill_hosts, sum_hosts, tally_hosts
from pipeline.stages.pairs import pair_files
from pipeline.stages.plan_parts import PartCut, candidate_parts, count_planned, cut_parts, plan_parts, rows_of_parts
from queries.allowlist import Allowlist

VERSION = 4
"""Raise it when the same pairs would give another plan, or scratch files have another format."""

_SPILL_ROWS, _MOST_SPILLED = 2_000_000, 4_096
"""Pairs files are spilled together until they hold this many rows, or more if there would be too many files to gather
from."""

_USES_AT_ONCE = 20_000_000  # of captions, 20 bytes each

MOST_HOSTS = 100_000
"""Of hosts that plan/hosts.parquet has: those with most pairs."""

_HOSTS = ".wit/plan/of-hosts"

_ROUTED = PAIRS.append(pa.field("part", pa.int32())).append(pa.field("url_hash", pa.uint64()))


def run_plan(
    build: Build, config: Config, allowlist: Allowlist, keys: QueryHashes, pairs: Mapping[str, Marker]
) -> Marker:
    """Fill plan/ with its parts and `balance.parquet`; return the stage's marker."""
    files = pair_files(pairs)
    stage_digest = digest(
        VERSION,
        sorted((name, facts.sha256) for name, facts in files.items()),
        config.balance.model_dump(),
        config.fetch.parts,
        config.fetch.host_budgets(),
        config.seed,
        allowlist.sha256,
        *_pool_filters(config),
    )
    done = finished_stage(build.workspace, "plan", stage_digest)
    if done is not None:
        build.progress.say(f"plan           {len(part_names(done))} parts already done")
        return done
    counts = Counter(inputs=add_counts(pairs.values())["kept"])
    candidates = _candidates(build, config, pairs, counts["inputs"], stage_digest)
    for reason in (Reason.DUPLICATE_PAIR, Reason.FREQUENT_CAPTION):
        counts[reason] = add_counts(candidates.values())[reason]

    names = _in_order(name for marker in candidates.values() for name in marker.outputs)
    balanced = _balance(build, config, allowlist, keys, names, stage_digest)
    counts.update(balanced.counts)
    written = _write_plan(build, config, balanced, stage_digest)
    counts.update({k: n for k, n in add_counts(written.values()).items() if k != "inputs"})
    outputs = {n: facts for marker in written.values() for n, facts in marker.outputs.items() if n.startswith("plan/")}
    outputs |= write_balance(build.workspace, "plan/balance.parquet", balanced.matched, plan_cap(config))
    outputs |= _write_hosts(build, written, stage_digest)
    return finish_stage(build.workspace, "plan", stage_digest, outputs, counts)


def _pool_filters(config: Config) -> list[int]:
    """Return what the filters over the whole pool add to the digest: nothing where they are off."""
    limit = config.filters.max_images_per_caption
    return [] if limit is None else [limit]


def read_hosts(workspace: Workspace) -> pa.Table:
    """Return the hosts of the plan with most pairs, as HOSTS, most first."""
    return workspace.read_table("plan/hosts.parquet")


def plan_cap(config: Config) -> int:
    """Return the cap before fetching, which allows for dead links and duplicates."""
    return math.ceil(config.balance.cap * config.balance.slack)


def part_names(plan: Marker) -> list[str]:
    """Return the plan's parts, in order."""
    return _in_order(name for name in plan.outputs if name.startswith("plan/part-"))


def _in_order(names: Iterable[str]) -> list[str]:
    """Return the files of parts in the order of their numbers, which have five digits or, from 100,000 on, more."""
    return sorted(names, key=lambda name: (len(name), name))


def _candidates(
    build: Build, config: Config, pairs: Mapping[str, Marker], rows: int, stage_digest: str
) -> dict[str, Marker]:
    parts = Pieces(candidate_parts(rows, config.fetch.parts))
    inputs = digest(stage_digest, parts.count)
    groups = {f"{i:05d}": names for i, names in enumerate(_groups(pairs, max(_SPILL_ROWS, rows // _MOST_SPILLED)))}

    def of_groups(step: str, work: Work) -> list[str]:
        units = [Unit(name, digest(inputs, names), _Spill(name, names)) for name, names in groups.items()]
        return _files_of(run_units(build, f"plan/{step}", units, Stateless(work)))

    def of_buckets(step: str, work: Work) -> dict[str, Marker]:
        units = [Unit(f"{bucket:05d}", digest(inputs, bucket), bucket) for bucket in range(parts.buckets)]
        return run_units(build, f"plan/{step}", units, Stateless(work))

    frequent: list[str] = []
    if (limit := config.filters.max_images_per_caption) is not None:
        uses = of_groups("captions", _SpillCaptions(parts, config.seed, limit))
        pieces = -(-rows // (parts.buckets * _USES_AT_ONCE)) or 1
        frequent = _files_of(of_buckets("frequent", _FindFrequent(uses, parts.buckets, pieces, limit)))
    spilled = of_groups("spill", _SpillPairs(parts, config.seed))
    return of_buckets("gather", _GatherParts(spilled, parts, frequent, config.seed))


def _files_of(markers: Mapping[str, Marker]) -> list[str]:
    return [name for marker in markers.values() for name in marker.outputs]


def _groups(pairs: Mapping[str, Marker], group_rows: int) -> list[list[str]]:
    """Group pairs files, in order, into lists of about `group_rows` rows."""
    groups: list[list[str]] = []
    rows = group_rows
    for marker in pairs.values():
        if rows >= group_rows:
            groups.append([])
            rows = 0
        groups[-1].extend(pair_files({"": marker}))
        rows += marker.counts["kept"]
    return groups


def url_hashes(urls: Sequence[str], seed: int) -> np.ndarray:
    """Return a keyed 64-bit hash of each URL, (n,) uint64: it determines the part and the order in it.

    Also that of other texts: captions.
    """
    key = seed.to_bytes(8, "little")
    joined = b"".join(hashlib.blake2b(url.encode(), digest_size=8, key=key).digest() for url in urls)
    return np.frombuffer(joined, dtype="<u8")


@dataclass(frozen=True)
class _Spill:
    name: str
    files: list[str]


@dataclass(frozen=True)
class _SpillPairs:
    parts: Pieces
    seed: int

    def run(self, task: _Spill, output: UnitOutput) -> Mapping[str, int]:
        rows = spill(
            output,
            f".wit/plan/spilled/{task.name}.rows",
            _ROUTED,
            self.parts.buckets,
            self._routed(output.workspace, task),
        )
        return {"inputs": rows, "kept": rows}

    def _routed(self, workspace: Workspace, task: _Spill) -> Iterator[tuple[pa.Table, np.ndarray]]:
        for name in task.files:
            for batch in workspace.read_batches(name, PAIRS.names):
                table = pa.Table.from_batches([batch])
                hashes = url_hashes(table["url"].to_pylist(), self.seed)
                part = (hashes % np.uint64(self.parts.count)).astype(np.int32)
                table = table.append_column("part", pa.array(part)).append_column("url_hash", pa.array(hashes))
                yield table, self.parts.bucket_of(part)


@dataclass(frozen=True)
class _SpillCaptions:
    """Bring the uses of each caption together, as few as tell whether it is too frequent."""

    parts: Pieces
    seed: int
    limit: int

    def run(self, task: _Spill, output: UnitOutput) -> Mapping[str, int]:
        rows = 0
        held = [CAPTION_USES.empty_table()]
        for name in task.files:
            for batch in output.workspace.read_batches(name, ["url", "caption"]):
                rows += batch.num_rows
                held.append(self._uses(batch))
                if sum(table.num_rows for table in held) >= _SPILL_ROWS:
                    held = [needed_uses(pa.concat_tables(held), self.limit)]
        needed = needed_uses(pa.concat_tables(held), self.limit)
        buckets = self.parts.buckets
        bucket = (needed["caption_hash"].to_numpy() % np.uint64(buckets)).astype(np.int32)
        spill(output, f".wit/plan/captions/{task.name}.rows", CAPTION_USES, buckets, [(needed, bucket)])
        return {"inputs": rows, "kept": rows}

    def _uses(self, batch: pa.RecordBatch) -> pa.Table:
        urls = url_hashes(batch.column("url").to_pylist(), self.seed)
        part = (urls % np.uint64(self.parts.count)).astype(np.int32)
        captions = url_hashes(batch.column("caption").to_pylist(), self.seed)
        return pa.table([captions, urls, self.parts.bucket_of(part)], CAPTION_USES)


@dataclass(frozen=True)
class _FindFrequent:
    """Send the captions of too many images to the buckets of parts that have them."""

    uses: list[str]
    buckets: int
    pieces: int
    limit: int

    def run(self, bucket: int, output: UnitOutput) -> Mapping[str, int]:
        pieces = gather_pieces(output.workspace, self.uses, bucket, CAPTION_USES, range(self.pieces), self._piece_of)
        found = (frequent_captions(uses, self.limit) for uses in pieces)
        routed = ((captions, captions["bucket"].to_numpy()) for captions in found)
        rows = spill(output, f".wit/plan/frequent/{bucket:05d}.rows", FREQUENT, self.buckets, routed)
        return {"inputs": rows, "kept": rows}

    def _piece_of(self, uses: pa.Table) -> np.ndarray:
        """All hashes of captions of a bucket have the same remainder; their quotients differ."""
        quotients = uses["caption_hash"].to_numpy() // np.uint64(self.buckets)
        return (quotients % np.uint64(self.pieces)).astype(np.int32)


@dataclass(frozen=True)
class _GatherParts:
    spilled: list[str]
    parts: Pieces
    frequent: list[str]
    seed: int

    def run(self, bucket: int, output: UnitOutput) -> Mapping[str, int]:
        counts = Counter(inputs=0, kept=0)
        frequent = gather(output.workspace, self.frequent, bucket, FREQUENT)["caption_hash"].to_numpy()
        parts = self.parts.of_bucket(bucket)
        tables = gather_pieces(output.workspace, self.spilled, bucket, _ROUTED, parts, _part_of)
        for part, of_part in zip(parts, tables, strict=True):
            unique = drop_repeats(of_part)
            kept = self._without(unique, frequent) if len(frequent) else unique
            output.write_table(f".wit/plan/candidates/part-{part:05d}.parquet", kept.select(PAIRS.names))
            counts[Reason.DUPLICATE_PAIR] += of_part.num_rows - unique.num_rows
            counts[Reason.FREQUENT_CAPTION] += unique.num_rows - kept.num_rows
            counts.update(inputs=of_part.num_rows, kept=kept.num_rows)
        return counts

    def _without(self, pairs: pa.Table, frequent: np.ndarray) -> pa.Table:
        captions = url_hashes(pairs["caption"].to_pylist(), self.seed)
        return pairs.filter(pa.array(~np.isin(captions, frequent)))


def _part_of(rows: pa.Table) -> np.ndarray:
    """Return the column `part`, (n,) int32."""
    return np.asarray(rows["part"].to_numpy())


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


@dataclass(frozen=True)
class _Balanced:
    """What may be planned, how to select from it, and what became of the other candidates."""

    names: list[str]
    select: OpenSelect
    matched: np.ndarray  # (queries,) int64, of all candidates
    counts: Counter[str]


def _balance(
    build: Build, config: Config, allowlist: Allowlist, keys: QueryHashes, names: list[str], stage_digest: str
) -> _Balanced:
    """Balance by query, and by host until no host has too many pairs."""
    counts: Counter[str] = Counter()
    matched: np.ndarray | None = None
    attempt = 0
    while True:
        step, inputs = ("plan" if attempt == 0 else f"plan/again-{attempt}"), digest(stage_digest, attempt)
        balance = find_balance(build, step, names, allowlist, keys, cap=plan_cap(config), inputs=inputs)
        matched = balance.counts if matched is None else matched
        # Workers read the thresholds from a file, not from the job.
        thresholds = f".wit/{step}/thresholds.parquet"
        save_thresholds(build.workspace, thresholds, balance.thresholds)
        select = OpenSelect(build.workspace.root, thresholds, keys)
        limited = None
        if config.fetch.host_budgets():
            limited = Round(build, config.fetch, names, select, config.seed, attempt, stage_digest).limit()
        if limited is None:
            return _Balanced(names, select, matched, counts)
        names, lost = limited
        counts.update(lost)
        attempt += 1


def _write_plan(build: Build, config: Config, balanced: _Balanced, stage_digest: str) -> dict[str, Marker]:
    parts = config.fetch.parts or plan_parts(count_planned(build, balanced.names, balanced.select, stage_digest))
    cuts = cut_parts(_in_order(balanced.names), parts)
    units = [Unit(cut.name, digest(stage_digest, cut.candidates), cut) for cut in cuts]
    return run_units(build, "plan/write", units, _OpenWrite(balanced.select, parts, config.seed))


def _write_hosts(build: Build, written: Mapping[str, Marker], stage_digest: str) -> dict[str, FileFacts]:
    """Write the hosts with most pairs, and how many there are of all, to plan/hosts.parquet."""
    counts = sum_hosts(build, "plan/hosts", written, _HOSTS, stage_digest, MOST_HOSTS)
    output = UnitOutput(build.workspace)
    output.write_table("plan/hosts.parquet", counts.largest.replace_schema_metadata({"hosts": str(counts.hosts)}))
    return output.files


@dataclass(frozen=True)
class _OpenWrite:
    select: OpenSelect
    parts: int
    seed: int

    def open(self) -> Work:
        return _WriteParts(self.select.open(), self.parts, self.seed)


@dataclass(frozen=True)
class _WriteParts:
    select: SelectQueries
    parts: int
    seed: int

    def run(self, cut: PartCut, output: UnitOutput) -> Mapping[str, int]:
        counts, tables = Counter[str](), []
        for candidates in cut.candidates:
            table = output.workspace.read_table(candidates)
            chosen = self.select.select(table)
            tables.append(
                table.append_column("selected_by", chosen).filter(pc.greater(pc.list_value_length(chosen), 0))
            )
            counts["inputs"] += table.num_rows
        planned = pa.concat_tables(tables)
        for part, rows in zip(cut.parts, self._split(planned, cut), strict=True):
            output.write_table(f"plan/part-{part:05d}.parquet", rows.cast(PLAN))
            spill_hosts(output, f"{_HOSTS}/part-{part:05d}.rows", tally_hosts(rows["url"]), self.parts)
        counts.update({"kept": planned.num_rows, Reason.OVER_CAP: counts["inputs"] - planned.num_rows})
        return counts

    def _split(self, planned: pa.Table, cut: PartCut) -> list[pa.Table]:
        if cut.is_whole:
            return [planned]
        return rows_of_parts(planned, url_hashes(planned["url"].to_pylist(), self.seed), cut, self.parts)
