"""fetched/ -> dedup/: which fetched pairs stay, and what the evaluation sets have in common with them.

Steps (scratch results lie under `.wit/dedup/` until the stage is done):

    overlap    fetched part -> matches with every evaluation set, before anything is removed
    spill      fetched part -> image facts, in buckets of equal fingerprints
    group      bucket -> exact copies leave; one row per distinct fingerprint, in buckets of equal hash bands
    compare    band bucket -> edges: fingerprints within `max_distance_bits`, verified
    resolve    edges -> dedup/duplicates.parquet: who stands for whom
    survive    fetched part -> the pairs that are no duplicates
    count, select                                            } pipeline/stages/balance.py, with the final cap
    decide     fetched part -> dedup/decisions/part-*.parquet, and its overlap rows with `kept`
    collect    evaluation set -> dedup/overlap/<name>.parquet

Decisions are data: nothing is deleted here, and the shards stage carries them out.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dedup.duplicates import band_values, choose_survivors, find_edges
from dedup.overlap import OVERLAP, hash_matrix
from pipeline.balance import priorities, query_keys, uid_numbers
from pipeline.config import Config, DedupConfig
from pipeline.engine import (
    Build,
    Marker,
    Ready,
    Unit,
    UnitOutput,
    Work,
    add_counts,
    digest,
    finish_stage,
    finished_stage,
    run_units,
)
from pipeline.records import DECISIONS, Reason
from pipeline.shuffle import MAX_BUCKETS, gather, spill
from pipeline.stages.balance import (
    Balance,
    PrepareSelect,
    QueryKeys,
    Select,
    find_balance,
    save_thresholds,
    write_balance,
)
from pipeline.stages.evals import EvalIndexes, LoadedEval, run_evals
from pipeline.stages.plan import bucket_of_part
from pipeline.workspace import Workspace
from queries.allowlist import Allowlist

VERSION = 1
"""Raised when the same images would give other decisions."""

MAX_CAPTIONS = 64
"""A survivor keeps at most this many captions: a placeholder image has been seen under a hundred thousand."""

_IMAGES_PER_BUCKET = 50_000
_IMAGES_PER_BAND_BUCKET = 12_500
"""Every image is in 16 or 32 band buckets."""

_IMAGES = pa.schema(
    [
        ("uid", pa.string()),
        ("rank", pa.uint64()),
        ("part", pa.int32()),
        ("sha256", pa.string()),
        ("pdq", pa.binary(32)),
        ("pdq_quality", pa.int32()),
    ]
)

_BANDED = pa.schema(
    [
        ("uid", pa.string()),
        ("rank", pa.uint64()),
        ("part", pa.int32()),
        ("pdq", pa.binary(32)),
        ("band", pa.int32()),
    ]
)

_EDGES = pa.schema(
    [
        (f"{name}_{side}", kind)
        for side in "ab"
        for name, kind in (("uid", pa.string()), ("rank", pa.uint64()), ("part", pa.int32()))
    ]
    + [("distance", pa.int32())]
)

DUPLICATES = pa.schema(
    [
        ("uid", pa.string()),
        ("survivor", pa.string()),
        ("reason", pa.string()),
        ("distance", pa.int32()),  # bits between the PDQ hashes of the pair and its survivor; 0 for exact copies
        ("part", pa.int32()),
        ("survivor_part", pa.int32()),
    ]
)

_OVERLAP = pa.schema([pa.field("eval", pa.string()), *OVERLAP])

_LOST_CAPTIONS = pa.schema([("survivor", pa.string()), ("uid", pa.string()), ("caption", pa.string())])


def run_dedup(
    build: Build,
    config: Config,
    base_dir: Path,
    allowlist: Allowlist,
    keys: QueryKeys,
    fetched: Mapping[str, Marker],
) -> Marker:
    """Fill dedup/; return the stage's marker, whose counts are those of unique and kept pairs together."""
    indexes = run_evals(build, config, base_dir)
    content = sorted(
        (name, f.sha256) for m in fetched.values() for name, f in m.outputs.items() if name.endswith("parquet")
    )
    stage_digest = digest(
        VERSION, content, indexes.digest, config.dedup.model_dump(), config.balance.cap, config.seed, allowlist.sha256
    )
    done = finished_stage(build.workspace, "dedup", stage_digest)
    if done is not None:
        build.progress.say("dedup          done before")
        return done
    stage = _Stage(build, config, indexes, list(fetched), add_counts(fetched.values())["kept"], stage_digest)
    stage.overlap()
    duplicates = stage.resolve(stage.compare(stage.group()))
    survivors = stage.survive()
    files = [f".wit/dedup/survivors/{part}.parquet" for part in stage.parts]
    balance = find_balance(build, "dedup", files, allowlist, keys, cap=config.balance.cap, inputs=stage_digest)
    decided = stage.decide(balance, keys)
    collected = stage.collect()
    outputs = {
        name: facts
        for markers in (duplicates, decided, collected)
        for m in markers.values()
        for name, facts in m.outputs.items()
        if not name.startswith(".wit/")
    }
    outputs |= write_balance(build.workspace, "dedup/balance.parquet", balance.counts, config.balance.cap)
    lost, kept = add_counts(survivors.values()), add_counts(decided.values())
    counts = {**lost, Reason.OVER_FINAL_CAP: kept[Reason.OVER_FINAL_CAP], "kept": kept["kept"]}
    return finish_stage(build.workspace, "dedup", stage_digest, outputs, counts)


@dataclass(frozen=True)
class _Stage:
    """The steps of one run of the stage; see the module's docstring for the order."""

    build: Build
    config: Config
    indexes: EvalIndexes
    parts: list[str]
    images: int
    stage_digest: str

    @property
    def buckets(self) -> int:
        return min(max(1, math.ceil(self.images / _IMAGES_PER_BUCKET)), MAX_BUCKETS)

    @property
    def band_buckets(self) -> int:
        return min(max(1, math.ceil(self.images / _IMAGES_PER_BAND_BUCKET)), MAX_BUCKETS)

    def _run(self, step: str, payloads: Mapping[str, object], prepare: Callable[[], Work]) -> dict[str, Marker]:
        units = [Unit(name, digest(self.stage_digest, step, name), payload) for name, payload in payloads.items()]
        return run_units(self.build, f"dedup/{step}", units, prepare)

    def _part_tasks(self) -> dict[str, object]:
        return {name: _Part(number, name) for number, name in enumerate(self.parts)}

    def overlap(self) -> dict[str, Marker]:
        prepare = _PrepareOverlap(self.build.workspace.root, self.indexes, self.config.dedup.min_quality)
        return self._run("overlap", self._part_tasks(), prepare)

    def group(self) -> dict[str, Marker]:
        spilling = _SpillImages(self.buckets, self.config.seed, self.config.dedup.evals == "remove")
        spilled = self._run("spill", self._part_tasks(), Ready(spilling))
        names = [name for m in spilled.values() for name in m.outputs]
        grouping = _GroupImages(names, self.config.dedup, self.band_buckets)
        return self._run("group", {f"{b:05d}": b for b in range(self.buckets)}, Ready(grouping))

    def compare(self, grouped: Mapping[str, Marker]) -> list[str]:
        """Return the names of the files of losers and edges."""
        losers = [name for m in grouped.values() for name in m.outputs if "/losers/" in name]
        if not self.config.dedup.near_duplicates:
            return losers
        banded = [name for m in grouped.values() for name in m.outputs if "/banded/" in name]
        comparing = _CompareBands(banded, self.config.dedup.max_distance_bits)
        edges = self._run("compare", {f"{b:05d}": b for b in range(self.band_buckets)}, Ready(comparing))
        return losers + [name for m in edges.values() for name in m.outputs]

    def resolve(self, names: list[str]) -> dict[str, Marker]:
        return self._run("resolve", {"all": names}, Ready(resolve_duplicates))

    def survive(self) -> dict[str, Marker]:
        surviving = _Survive(self.config.dedup.evals == "remove", len(self.parts))
        return self._run("survive", self._part_tasks(), Ready(surviving))

    def decide(self, balance: Balance, keys: QueryKeys) -> dict[str, Marker]:
        thresholds = ".wit/dedup/thresholds.parquet"
        save_thresholds(self.build.workspace, thresholds, balance.thresholds)
        captions = [f".wit/dedup/captions/{part}.parquet" for part in self.parts]
        prepare = _PrepareDecide(
            PrepareSelect(self.build.workspace.root, thresholds, keys),
            captions,
            len(self.parts),
            self.config.dedup.evals == "remove",
        )
        return self._run("decide", self._part_tasks(), prepare)

    def collect(self) -> dict[str, Marker]:
        return self._run("collect", {name: name for name in self.indexes.names}, Ready(_Collect(self.parts)))


@dataclass(frozen=True)
class _Part:
    """One fetched part."""

    number: int
    name: str

    def file(self, folder: str) -> str:
        return f"{folder}/{self.name}.parquet"


@dataclass(frozen=True)
class _PrepareOverlap:
    root: str
    indexes: EvalIndexes
    min_quality: int

    def __call__(self) -> Work:
        return _FindOverlap(self.indexes.load(Workspace(self.root)), self.min_quality)


@dataclass(frozen=True)
class _FindOverlap:
    """Compare every fetched image of a part with every evaluation set."""

    sets: list[LoadedEval]
    min_quality: int

    def __call__(self, part: _Part, output: UnitOutput) -> Mapping[str, int]:
        images = _successes(output.workspace, part, ["uid", "pdq", "pdq_quality", "sha256"])
        found = [_OVERLAP.empty_table()]
        for loaded in self.sets:
            matches = loaded.find(images, self.min_quality)
            found.append(
                matches.append_column("eval", pa.repeat(loaded.name, matches.num_rows))
                .select(_OVERLAP.names)
                .cast(_OVERLAP)
            )
        output.write_table(part.file(".wit/dedup/overlap"), pa.concat_tables(found))
        return {"inputs": images.num_rows, "kept": images.num_rows}


def _successes(workspace: Workspace, part: _Part, columns: list[str]) -> pa.Table:
    rows = workspace.read_table(part.file("fetched"), [*columns, "reason"])
    return rows.filter(pc.is_null(rows["reason"])).select(columns)


def _in_evals(workspace: Workspace, part: _Part) -> pa.ChunkedArray:
    return workspace.read_table(part.file(".wit/dedup/overlap"), ["uid"])["uid"]


@dataclass(frozen=True)
class _SpillImages:
    buckets: int
    seed: int
    remove_evals: bool

    def __call__(self, part: _Part, output: UnitOutput) -> Mapping[str, int]:
        images = _successes(output.workspace, part, ["uid", "sha256", "pdq", "pdq_quality"])
        if self.remove_evals:
            images = images.filter(pc.invert(pc.is_in(images["uid"], _in_evals(output.workspace, part))))
        ranked = images.append_column("rank", pa.array(survivor_ranks(images["uid"], self.seed)))
        ranked = ranked.append_column("part", pa.repeat(pa.scalar(part.number, pa.int32()), images.num_rows))
        batch = (ranked.select(_IMAGES.names), bucket_of_hash(ranked["pdq"], self.buckets))
        rows = spill(output, part.file(".wit/dedup/images"), _IMAGES, [batch])
        return {"inputs": rows, "kept": rows}


def survivor_ranks(uids: pa.ChunkedArray, seed: int) -> np.ndarray:
    """Return the seeded rank of pairs, (n,) uint64: of two copies the one with the smaller rank survives."""
    high, low = uid_numbers(uids)
    return priorities(np.broadcast_to(query_keys(["\0survivor"], seed), len(high)), high, low)


def bucket_of_hash(hashes: pa.ChunkedArray, buckets: int) -> np.ndarray:
    """Return the bucket of each PDQ hash, (n,) int32; equal hashes share one."""
    words = hash_matrix(hashes).view("<u8")
    return (np.bitwise_xor.reduce(words, axis=1) % np.uint64(buckets)).astype(np.int32)


@dataclass(frozen=True)
class _GroupImages:
    """Let exact copies and equal fingerprints go; pass the rest on by the bands of their hashes."""

    images: list[str]
    config: DedupConfig
    band_buckets: int

    def __call__(self, bucket: int, output: UnitOutput) -> Mapping[str, int]:
        rows = gather(output.workspace, self.images, bucket, _IMAGES).sort_by(
            [("rank", "ascending"), ("uid", "ascending")]
        )
        comparable = rows["pdq_quality"].to_numpy() >= self.config.min_quality
        comparable &= self.config.near_duplicates
        exact = first_of_each(rows["sha256"])
        same = first_of_each(rows["pdq"], comparable)
        survivor = same[exact]
        lost = survivor != np.arange(rows.num_rows)
        reasons = np.where(exact != np.arange(rows.num_rows), Reason.EXACT_DUPLICATE, Reason.NEAR_DUPLICATE)
        losers = _duplicates(
            rows.filter(pa.array(lost)), rows.take(survivor[lost]), reasons[lost], np.zeros(lost.sum())
        )
        output.write_table(f".wit/dedup/losers/{bucket:05d}.parquet", losers)
        kept = rows.filter(pa.array(~lost & comparable))
        spill(output, f".wit/dedup/banded/{bucket:05d}.parquet", _BANDED, self._banded(kept))
        return {"inputs": rows.num_rows, "kept": rows.num_rows}

    def _banded(self, rows: pa.Table) -> Iterator[tuple[pa.Table, np.ndarray]]:
        values = band_values(hash_matrix(rows["pdq"]), self.config.max_distance_bits)  # (n, bands)
        for band in range(values.shape[1]):
            table = rows.append_column("band", pa.repeat(pa.scalar(band, pa.int32()), rows.num_rows))
            mixed = (values[:, band].astype(np.uint64) + np.uint64(band << 16)) * np.uint64(0x9E3779B97F4A7C15)
            yield (
                table.select(_BANDED.names),
                ((mixed >> np.uint64(32)) % np.uint64(self.band_buckets)).astype(np.int32),
            )


def first_of_each(column: pa.ChunkedArray, among: np.ndarray | None = None) -> np.ndarray:
    """Return for each row the first row with an equal value, (n,) int64; rows not `among` stand for themselves."""
    codes = pc.dictionary_encode(column).combine_chunks().indices.to_numpy().astype(np.int64)
    if among is not None:
        codes = np.where(among, codes, len(codes) + np.arange(len(codes)))
    _, first, group = np.unique(codes, return_index=True, return_inverse=True)
    return first[group]


def _duplicates(losers: pa.Table, survivors: pa.Table, reasons: np.ndarray, distances: np.ndarray) -> pa.Table:
    columns = [losers["uid"], survivors["uid"], reasons, distances.astype(np.int32), losers["part"], survivors["part"]]
    arrays = [
        c if isinstance(c, pa.ChunkedArray) else pa.array(c.tolist(), kind)
        for c, kind in zip(columns, DUPLICATES.types, strict=True)
    ]
    return pa.table(arrays, DUPLICATES)


@dataclass(frozen=True)
class _CompareBands:
    banded: list[str]
    max_distance_bits: int

    def __call__(self, bucket: int, output: UnitOutput) -> Mapping[str, int]:
        rows = gather(output.workspace, self.banded, bucket, _BANDED)
        edges = find_edges(rows["band"].to_numpy(), hash_matrix(rows["pdq"]), self.max_distance_bits)
        sides = [rows.select(["uid", "rank", "part"]).take(pa.array(side)) for side in (edges.first, edges.second)]
        columns = [column for side in sides for column in side.columns]
        table = pa.table([*columns, pa.array(edges.distances.astype(np.int32))], _EDGES)
        output.write_table(f".wit/dedup/edges/{bucket:05d}.parquet", table)
        return {"inputs": rows.num_rows, "kept": rows.num_rows}


def resolve_duplicates(names: list[str], output: UnitOutput) -> Mapping[str, int]:
    """Decide from losers and edges who stands for whom, and write `dedup/duplicates.parquet`, sorted by part and uid.

    The one step that sees all duplicates at once: about 100 bytes each, in one worker.
    """
    read = output.workspace.read_table
    losers = pa.concat_tables([DUPLICATES.empty_table(), *(read(n) for n in names if "/losers/" in n)])
    edges = pa.concat_tables([_EDGES.empty_table(), *(read(n) for n in names if "/edges/" in n)])
    near = near_duplicates(edges)
    duplicates = pa.concat_tables([follow(losers, near), near])
    output.write_table("dedup/duplicates.parquet", duplicates.sort_by([("part", "ascending"), ("uid", "ascending")]))
    return {"inputs": duplicates.num_rows, "kept": duplicates.num_rows}


def near_duplicates(edges: pa.Table) -> pa.Table:
    """Return the rows of DUPLICATES that edges between distinct fingerprints give."""
    both = {
        n: pa.chunked_array([*edges[f"{n}_a"].chunks, *edges[f"{n}_b"].chunks], _EDGES.field(f"{n}_a").type)
        for n in ("uid", "rank", "part")
    }
    nodes = pa.table(both)
    nodes = nodes.take(pa.array(np.flatnonzero(first_of_each(nodes["uid"]) == np.arange(nodes.num_rows)))).sort_by(
        "uid"
    )
    ends = np.stack([pc.index_in(edges[f"uid_{side}"], nodes["uid"]).to_numpy() for side in "ab"], axis=1).astype(
        np.int64
    )
    place = np.arange(nodes.num_rows)  # nodes are sorted by uid, so places decide ties as uids would
    survivor = choose_survivors(place, nodes["rank"].to_numpy(), ends)
    lost = np.flatnonzero(survivor != place)
    distance = _distances(ends, edges["distance"].to_numpy(), lost, survivor[lost], nodes.num_rows)
    reasons = np.full(len(lost), Reason.NEAR_DUPLICATE)
    return _duplicates(nodes.take(lost), nodes.take(survivor[lost]), reasons, distance)


def _distances(ends: np.ndarray, bits: np.ndarray, first: np.ndarray, second: np.ndarray, nodes: int) -> np.ndarray:
    """Look up the distances of some edges, given by their two ends."""
    edge = ends.min(axis=1) * nodes + ends.max(axis=1)
    order = np.argsort(edge, kind="stable")
    wanted = np.minimum(first, second) * nodes + np.maximum(first, second)
    return bits[order][np.searchsorted(edge[order], wanted)]


def follow(losers: pa.Table, near: pa.Table) -> pa.Table:
    """Point losers whose representative is itself a near duplicate to the one that stands for it."""
    at = pc.index_in(losers["survivor"], near["uid"])
    moved = near.select(["survivor", "distance", "survivor_part"]).take(at)  # nulls where the representative stays
    for name in moved.column_names:
        column = pc.coalesce(moved[name], losers[name])
        losers = losers.set_column(losers.column_names.index(name), name, column)
    return losers.cast(DUPLICATES)


@dataclass(frozen=True)
class _Survive:
    """Write a part's survivors for the balance, and send the captions of its duplicates to their survivors."""

    remove_evals: bool
    parts: int

    def __call__(self, part: _Part, output: UnitOutput) -> Mapping[str, int]:
        rows = _successes(output.workspace, part, ["uid", "query_ids", "caption"])
        outcome = removals(output.workspace, part, rows["uid"], self.remove_evals)
        lost = pc.is_valid(outcome["reason"])
        output.write_table(part.file(".wit/dedup/survivors"), rows.filter(pc.invert(lost)).select(["uid", "query_ids"]))
        told = pc.is_valid(outcome["survivor"])
        captions = (
            outcome.select(["survivor"]).append_column("uid", rows["uid"]).append_column("caption", rows["caption"])
        )
        buckets = bucket_of_part(
            outcome["survivor_part"].filter(told).to_numpy(), self.parts, _caption_buckets(self.parts)
        )
        spill(output, part.file(".wit/dedup/captions"), _LOST_CAPTIONS, [(captions.filter(told), buckets)])
        counts = Counter(reason for reason in outcome["reason"].to_pylist() if reason is not None)
        return {**counts, "inputs": rows.num_rows, "kept": rows.num_rows - counts.total()}


def _caption_buckets(parts: int) -> int:
    return min(parts, MAX_BUCKETS)


def removals(workspace: Workspace, part: _Part, uids: pa.ChunkedArray, remove_evals: bool) -> pa.Table:
    """Return, per fetched image of a part, why it goes: `reason`, `survivor`, `survivor_part`; nulls where it stays."""
    with workspace.open("dedup/duplicates.parquet") as source:
        duplicates = pq.read_table(source, filters=[("part", "=", part.number)], use_threads=False)
    outcome = duplicates.select(["reason", "survivor", "survivor_part"]).take(pc.index_in(uids, duplicates["uid"]))
    if remove_evals:
        matched = pc.is_in(uids, _in_evals(workspace, part))
        outcome = outcome.set_column(0, "reason", pc.if_else(matched, Reason.EVAL_OVERLAP.value, outcome["reason"]))
    return outcome


@dataclass(frozen=True)
class _PrepareDecide:
    select: PrepareSelect
    captions: list[str]
    parts: int
    remove_evals: bool

    def __call__(self) -> Work:
        return _Decide(self.select(), self.captions, self.parts, self.remove_evals)


@dataclass(frozen=True)
class _Decide:
    """Write a part's decisions, and which of its overlap rows are about pairs that stay."""

    select: Select
    captions: list[str]
    parts: int
    remove_evals: bool

    def __call__(self, part: _Part, output: UnitOutput) -> Mapping[str, int]:
        rows = _successes(output.workspace, part, ["uid", "query_ids", "caption"])
        outcome = removals(output.workspace, part, rows["uid"], self.remove_evals)
        survives = pc.is_null(outcome["reason"])
        selected = self.select(rows)
        chosen = pc.greater(pc.list_value_length(selected), 0)
        kept = pc.and_(survives, chosen)
        over = pc.and_(survives, pc.invert(chosen))
        columns = {
            "uid": rows["uid"],
            "reason": pc.if_else(over, Reason.OVER_FINAL_CAP.value, outcome["reason"]),
            "survivor": outcome["survivor"],
            "selected_by": pc.if_else(kept, selected, pa.scalar([], selected.type)),
            "captions": self._captions(output.workspace, part, rows, kept),
        }
        output.write_table(part.file("dedup/decisions"), pa.table(columns).cast(DECISIONS))
        self._mark_overlap(part, rows["uid"].filter(kept), output)
        return {
            "inputs": rows.num_rows,
            "kept": pc.sum(kept).as_py() or 0,
            Reason.OVER_FINAL_CAP: pc.sum(over).as_py() or 0,
        }

    def _captions(self, workspace: Workspace, part: _Part, rows: pa.Table, kept: pa.ChunkedArray) -> pa.Array:
        """Return the captions of each kept pair: its own, then those of its duplicates by uid, without repeats."""
        bucket = int(bucket_of_part(np.array([part.number]), self.parts, _caption_buckets(self.parts))[0])
        lost = gather(workspace, self.captions, bucket, _LOST_CAPTIONS).sort_by(
            [("survivor", "ascending"), ("uid", "ascending")]
        )
        own = dict(zip(rows["uid"].to_pylist(), rows["caption"].to_pylist(), strict=True))
        found = {uid: {caption: None} for uid, caption in own.items()}  # a dict keeps the first of each, in order
        for survivor, caption in zip(lost["survivor"].to_pylist(), lost["caption"].to_pylist(), strict=True):
            if survivor in found:
                found[survivor][caption] = None
        lists = [
            list(found[uid])[:MAX_CAPTIONS] if stays else [] for uid, stays in zip(own, kept.to_pylist(), strict=True)
        ]
        return pa.array(lists, pa.list_(pa.string()))

    def _mark_overlap(self, part: _Part, kept: pa.ChunkedArray, output: UnitOutput) -> None:
        overlap = output.workspace.read_table(part.file(".wit/dedup/overlap"))
        marked = overlap.append_column("kept", pc.is_in(overlap["uid"], kept))
        output.write_table(part.file(".wit/dedup/marked"), marked)


@dataclass(frozen=True)
class _Collect:
    """Join the overlap rows of all parts with one evaluation set."""

    parts: list[str]

    def __call__(self, name: str, output: UnitOutput) -> Mapping[str, int]:
        tables = []
        for part in self.parts:
            rows = output.workspace.read_table(f".wit/dedup/marked/{part}.parquet")
            tables.append(rows.filter(pc.equal(rows["eval"], name)).drop_columns(["eval"]))
        found = pa.concat_tables(tables).sort_by(
            [("eval_id", "ascending"), ("distance", "ascending"), ("uid", "ascending")]
        )
        output.write_table(f"dedup/overlap/{name}.parquet", found)
        return {"inputs": found.num_rows, "kept": found.num_rows}
