"""Which images of the set are copies of each other: the work of the units that find out, bucket by bucket.

dedup/duplicates.py has the rules; here they are applied to a set larger than memory. steps.py has the order
of the steps.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dedup.duplicates import Edges, band_values, choose_survivors, find_edges
from dedup.overlap import hash_matrix
from pipeline.config import DedupConfig
from pipeline.engine.shuffle import bucket_of_part, gather, spill
from pipeline.engine.units import UnitOutput
from pipeline.engine.workspace import Workspace
from pipeline.records import Reason
from pipeline.stages.balance.exact import PACKED_UID, pack_uids, priorities, query_hashes, uid_numbers, unpack_uids

_IMAGES = pa.schema(
    [
        ("uid", PACKED_UID),
        ("rank", pa.uint64()),
        ("part", pa.int32()),
        ("url_hash", pa.binary(8)),
        ("sha256", pa.string()),
        ("pdq", pa.binary(32)),
        ("pdq_quality", pa.int32()),
    ]
)

_BANDED = pa.schema(
    [
        ("uid", PACKED_UID),
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
        for name, kind in (("uid", PACKED_UID), ("rank", pa.uint64()), ("part", pa.int32()))
    ]
    + [("distance", pa.int32())]
)

DUPLICATES = pa.schema(
    [
        ("uid", pa.string()),
        ("survivor", pa.string()),  # null for a placeholder, which is dropped for no other image
        ("reason", pa.string()),
        ("distance", pa.int32()),  # bits between the PDQ hashes of the pair and its survivor; 0 for exact copies
        ("part", pa.int32()),
        ("survivor_part", pa.int32()),
    ]
)

_FOUND = pa.schema(
    [field.with_type(PACKED_UID) if field.name in ("uid", "survivor") else field for field in DUPLICATES]
)
"""DUPLICATES before they are written out."""

_EDGES_AT_ONCE = 1 << 20
_LOSERS_AT_ONCE = 1 << 19
"""Rows of some 400 bytes at the peak."""


@dataclass(frozen=True)
class FetchedPart:
    """One fetched part: the number'th of all. `folder` has its rows: fetched, or filtered."""

    number: int
    name: str
    folder: str = "fetched"

    def file(self, folder: str) -> str:
        return f"{folder}/{self.name}.parquet"


def successes(workspace: Workspace, part: FetchedPart, columns: list[str]) -> pa.Table:
    rows = workspace.read_table(part.file(part.folder), [*columns, "reason"])
    return rows.filter(pc.is_null(rows["reason"])).select(columns)


def in_evals(workspace: Workspace, part: FetchedPart) -> pa.ChunkedArray:
    return workspace.read_table(part.file(".wit/dedup/overlap"), ["uid"])["uid"]


@dataclass(frozen=True)
class PartGroup:
    """Consecutive parts that a unit handles together, so that few files are gathered from, however many parts."""

    name: str
    parts: tuple[FetchedPart, ...]

    def rows(self, folder: str) -> str:
        """Return the name of the spilled file of the group."""
        return f"{folder}/{self.name}.rows"


@dataclass(frozen=True)
class SpillImages:
    buckets: int
    seed: int
    remove_evals: bool

    def run(self, group: PartGroup, output: UnitOutput) -> Mapping[str, int]:
        batches = (self._routed(output.workspace, part) for part in group.parts)
        rows = spill(output, group.rows(".wit/dedup/images"), _IMAGES, self.buckets, batches)
        return {"inputs": rows, "kept": rows}

    def _routed(self, workspace: Workspace, part: FetchedPart) -> tuple[pa.Table, np.ndarray]:
        images = successes(workspace, part, ["uid", "url", "sha256", "pdq", "pdq_quality"])
        if self.remove_evals:
            images = images.filter(pc.invert(pc.is_in(images["uid"], in_evals(workspace, part))))
        packed = pack_uids(images["uid"])
        ranked = images.set_column(0, "uid", packed)
        hashes = [blake2b(url.encode(), digest_size=8).digest() for url in images["url"].to_pylist()]
        ranked = ranked.append_column("url_hash", pa.array(hashes, pa.binary(8)))
        ranked = ranked.append_column("rank", pa.array(survivor_ranks(packed, self.seed)))
        ranked = ranked.append_column("part", pa.repeat(pa.scalar(part.number, pa.int32()), images.num_rows))
        return ranked.select(_IMAGES.names), bucket_of_hash(ranked["pdq"], self.buckets)


def survivor_ranks(uids: pa.Array | pa.ChunkedArray, seed: int) -> np.ndarray:
    """Return the seeded rank of pairs, (n,) uint64: of two copies the one with the smaller rank survives."""
    high, low = uid_numbers(uids)
    return priorities(np.broadcast_to(query_hashes(["\0survivor"], seed), len(high)), high, low)


def bucket_of_hash(hashes: pa.ChunkedArray, buckets: int) -> np.ndarray:
    """Return the bucket of each PDQ hash, (n,) int32; equal hashes share one."""
    words = hash_matrix(hashes).view("<u8")
    return (np.bitwise_xor.reduce(words, axis=1) % np.uint64(buckets)).astype(np.int32)


@dataclass(frozen=True)
class GroupImages:
    """Let placeholders, exact copies and equal fingerprints go; pass the rest on by the bands of their hashes."""

    images: list[str]
    config: DedupConfig
    band_buckets: int
    max_urls: int | None  # of one file; more make it a placeholder

    def run(self, bucket: int, output: UnitOutput) -> Mapping[str, int]:
        whole = gather(output.workspace, self.images, bucket, _IMAGES).sort_by(
            [("rank", "ascending"), ("uid", "ascending")]
        )
        is_placeholder = files_of_many_urls(whole, self.max_urls)
        rows = whole.filter(pa.array(~is_placeholder))
        comparable = rows["pdq_quality"].to_numpy() >= self.config.min_quality
        comparable &= self.config.near_duplicates
        exact = first_of_each(rows["sha256"])
        same = first_of_each(rows["pdq"], comparable)
        survivor = same[exact]
        lost = survivor != np.arange(rows.num_rows)
        places = np.arange(rows.num_rows)
        reasons = np.where(exact != places, Reason.EXACT_DUPLICATE, Reason.NEAR_DUPLICATE)
        is_same_url = (first_of_each(rows["url_hash"]) != places) & (exact != places)
        reasons = np.where(is_same_url, Reason.OTHER_CAPTION_OF_SAME_IMAGE, reasons)
        losers = _duplicates(
            rows.filter(pa.array(lost)), rows.take(survivor[lost]), reasons[lost], np.zeros(lost.sum())
        )
        losers = pa.concat_tables([losers, _placeholders(whole.filter(pa.array(is_placeholder)))])
        output.write_table(f".wit/dedup/losers/{bucket:05d}.parquet", losers)
        kept = rows.filter(pa.array(~lost & comparable))
        spill(output, f".wit/dedup/banded/{bucket:05d}.rows", _BANDED, self.band_buckets, self._banded(kept))
        return {"inputs": whole.num_rows, "kept": whole.num_rows}

    def _banded(self, rows: pa.Table) -> Iterator[tuple[pa.Table, np.ndarray]]:
        values = band_values(hash_matrix(rows["pdq"]), self.config.max_distance_bits)  # (n, bands)
        for band in range(values.shape[1]):
            table = rows.append_column("band", pa.repeat(pa.scalar(band, pa.int32()), rows.num_rows))
            mixed = (values[:, band].astype(np.uint64) + np.uint64(band << 16)) * np.uint64(0x9E3779B97F4A7C15)
            yield (
                table.select(_BANDED.names),
                ((mixed >> np.uint64(32)) % np.uint64(self.band_buckets)).astype(np.int32),
            )


def files_of_many_urls(images: pa.Table, limit: int | None) -> np.ndarray:
    """Return which rows of `sha256` and `url_hash` are of a file that more than `limit` URLs have, (n,) bool."""
    if limit is None:
        return np.zeros(images.num_rows, bool)
    distinct = images.select(["sha256", "url_hash"]).group_by(["sha256", "url_hash"]).aggregate([])
    urls = distinct.group_by("sha256").aggregate([("url_hash", "count")])
    files = urls.filter(pc.greater(urls["url_hash_count"], limit))["sha256"]
    return np.asarray(pc.is_in(images["sha256"], files.combine_chunks()).to_numpy())


def _placeholders(images: pa.Table) -> pa.Table:
    """Return rows of _FOUND that have no survivor."""
    columns = {
        "uid": images["uid"],
        "reason": pa.repeat(pa.scalar(Reason.PLACEHOLDER_IMAGE.value), images.num_rows),
        "part": images["part"],
    }
    arrays = [columns.get(field.name, pa.nulls(images.num_rows, field.type)) for field in _FOUND]
    return pa.table(arrays, _FOUND)


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
        for c, kind in zip(columns, _FOUND.types, strict=True)
    ]
    return pa.table(arrays, _FOUND)


@dataclass(frozen=True)
class CompareBands:
    banded: list[str]
    max_distance_bits: int

    def run(self, bucket: int, output: UnitOutput) -> Mapping[str, int]:
        by_rank = [("rank", "ascending"), ("uid", "ascending")]
        rows = gather(output.workspace, self.banded, bucket, _BANDED).sort_by(by_rank)
        edges = find_edges(rows["band"].to_numpy(), hash_matrix(rows["pdq"]), self.max_distance_bits)
        images = rows.select(["uid", "rank", "part"]).combine_chunks()
        output.write_batches(f".wit/dedup/edges/{bucket:05d}.parquet", _EDGES, self._tables(images, edges))
        return {"inputs": rows.num_rows, "kept": rows.num_rows}

    def _tables(self, images: pa.Table, edges: Edges) -> Iterator[pa.Table]:
        for start in range(0, len(edges.first), _EDGES_AT_ONCE):
            first, second, distances = (column[start : start + _EDGES_AT_ONCE] for column in edges)
            columns = [column for side in (first, second) for column in images.take(pa.array(side)).columns]
            yield pa.table([*columns, pa.array(distances.astype(np.int32))], _EDGES)


@dataclass(frozen=True)
class ResolveDuplicates:
    """Decide from losers and edges who stands for whom, and write `dedup/duplicates.parquet`, sorted by part and uid.

    One worker sees all edges at once, between distinct fingerprints that are near each other; of the exact copies,
    which are far more, it sees some at a time. `ranges` is the number of runs of consecutive parts that are sorted one
    after the other.
    """

    parts: int
    ranges: int

    def run(self, names: list[str], output: UnitOutput) -> Mapping[str, int]:
        near = near_duplicates(_read_all(output.workspace, [n for n in names if "/edges/" in n], _EDGES))
        losers = [name for name in names if "/losers/" in name]
        spilled = []
        for number, rows in enumerate(itertools.chain([near], _resolved(output.workspace, losers, near))):
            spilled.append(f".wit/dedup/resolved/{number:05d}.rows")
            ranges = bucket_of_part(rows["part"].to_numpy(), self.parts, self.ranges)
            spill(output, spilled[-1], _FOUND, self.ranges, [(rows, ranges)])
        counts = Counter[str]()
        output.write_batches("dedup/duplicates.parquet", DUPLICATES, self._in_order(output.workspace, spilled, counts))
        return {"inputs": counts["rows"], "kept": counts["rows"]}

    def _in_order(self, workspace: Workspace, spilled: list[str], counts: Counter[str]) -> Iterator[pa.Table]:
        for number in range(self.ranges):
            rows = gather(workspace, spilled, number, _FOUND).sort_by([("part", "ascending"), ("uid", "ascending")])
            counts["rows"] += rows.num_rows
            for name in ("uid", "survivor"):
                rows = rows.set_column(rows.column_names.index(name), name, unpack_uids(rows[name]))
            yield rows


def _read_all(workspace: Workspace, names: list[str], schema: pa.Schema) -> pa.Table:
    return pa.concat_tables([schema.empty_table(), *map(workspace.read_table, names)])


def _resolved(workspace: Workspace, names: list[str], near: pa.Table) -> Iterator[pa.Table]:
    """Yield the losers with those who stand for them in the end, many files at a time: `near` is looked up in each."""
    tables: list[pa.Table] = []
    for name in names:
        tables.append(workspace.read_table(name))
        if sum(table.num_rows for table in tables) >= _LOSERS_AT_ONCE:
            yield follow_survivors(pa.concat_tables(tables), near)
            tables = []
    if tables:
        yield follow_survivors(pa.concat_tables(tables), near)


def near_duplicates(edges: pa.Table) -> pa.Table:
    """Return the rows of _FOUND that edges between distinct fingerprints give."""
    both = pa.table({name: _both_ends(edges, name) for name in ("uid", "rank", "part")})
    first, node = _numbered(both["uid"])  # nodes are numbered by uid, so numbers decide ties as uids would
    ends = node.reshape(2, -1).T
    numbers = np.arange(len(first))
    survivor = choose_survivors(numbers, both["rank"].to_numpy()[first], ends)
    lost = np.flatnonzero(survivor != numbers)
    distance = _distances(ends, edges["distance"].to_numpy(), lost, survivor[lost], len(first))
    reasons = np.full(len(lost), Reason.NEAR_DUPLICATE)
    return _duplicates(both.take(first[lost]), both.take(first[survivor[lost]]), reasons, distance)


def _both_ends(edges: pa.Table, name: str) -> pa.ChunkedArray:
    chunks = [chunk for side in "ab" for chunk in edges[f"{name}_{side}"].chunks]
    return pa.chunked_array(chunks, _EDGES.field(f"{name}_a").type)


def _numbered(uids: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Number the different uids in their order; return a row of each number, and the number of each row, int64."""
    high, low = uid_numbers(uids)
    order = np.lexsort((low, high))
    high, low = high[order], low[order]
    is_new = np.ones(len(order), bool)
    is_new[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    number = np.empty(len(order), np.int64)
    number[order] = np.cumsum(is_new) - 1
    return order[is_new], number


def _distances(ends: np.ndarray, bits: np.ndarray, first: np.ndarray, second: np.ndarray, nodes: int) -> np.ndarray:
    """Look up the distances of some edges, given by their two ends."""
    edge = ends.min(axis=1) * nodes + ends.max(axis=1)
    order = np.argsort(edge, kind="stable")
    wanted = np.minimum(first, second) * nodes + np.maximum(first, second)
    return bits[order][np.searchsorted(edge[order], wanted)]


def follow_survivors(losers: pa.Table, near: pa.Table) -> pa.Table:
    """Point losers whose representative is itself a near duplicate to the one that stands for it."""
    at = pc.index_in(losers["survivor"], near["uid"])
    moved = near.select(["survivor", "distance", "survivor_part"]).take(at)  # nulls where the representative stays
    for name in moved.column_names:
        column = pc.coalesce(moved[name], losers[name])
        losers = losers.set_column(losers.column_names.index(name), name, column)
    return losers.cast(_FOUND)
