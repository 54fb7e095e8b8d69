"""Which images of the set are near each other: the work of the units that find out, bucket by bucket.

dedup/duplicates.py has the rules; here they are applied to a set larger than memory. steps.py has the order
of the steps, settle.py what follows from the edges.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dedup.duplicates import Comparison, band_values, find_edges
from dedup.overlap import hash_matrix
from pipeline.config import DedupConfig
from pipeline.engine.shuffle import Pieces, gather_pieces, gather_streams, spill, spilling
from pipeline.engine.sorted_rows import Cut, Sorted
from pipeline.engine.units import UnitOutput
from pipeline.engine.workspace import Workspace
from pipeline.records import Reason
from pipeline.stages import control
from pipeline.stages.balance.exact import PACKED_UID, pack_uids, priorities, query_hashes, uid_numbers
from pipeline.stages.dedup.settle import (
    EDGES,
    LISTENERS,
    PACKED_DUPLICATES,
    distinct_listeners,
    piece_of_loser,
    piece_of_uid,
)

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
    """Return the uids of the images that match an evaluation set; the negative control is not one."""
    overlap = workspace.read_table(part.file(".wit/dedup/overlap"), ["eval", "uid"])
    return overlap.filter(pc.not_equal(overlap["eval"], control.OVERLAP))["uid"]


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
    pieces: Pieces
    seed: int
    remove_evals: bool

    def run(self, group: PartGroup, output: UnitOutput) -> Mapping[str, int]:
        batches = (self._routed(output.workspace, part) for part in group.parts)
        rows = spill(output, group.rows(".wit/dedup/images"), _IMAGES, self.pieces.buckets, batches)
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
        return ranked.select(_IMAGES.names), self.pieces.bucket_of(piece_of_hash(ranked["pdq"], self.pieces.count))


def survivor_ranks(uids: pa.Array | pa.ChunkedArray, seed: int) -> np.ndarray:
    """Return the seeded rank of pairs, (n,) uint64: of two copies the one with the smaller rank survives."""
    high, low = uid_numbers(uids)
    return priorities(np.broadcast_to(query_hashes(["\0survivor"], seed), len(high)), high, low)


def piece_of_hash(hashes: pa.ChunkedArray, pieces: int) -> np.ndarray:
    """Return the piece of each PDQ hash, (n,) int32; equal hashes share one."""
    words = hash_matrix(hashes).view("<u8")
    return (np.bitwise_xor.reduce(words, axis=1) % np.uint64(pieces)).astype(np.int32)


def piece_of_band(bands: np.ndarray, values: np.ndarray, pieces: int) -> np.ndarray:
    """Return the piece of each value of a band, (n,) int32."""
    mixed = (values.astype(np.uint64) + (bands.astype(np.uint64) << np.uint64(16))) * np.uint64(0x9E3779B97F4A7C15)
    return ((mixed >> np.uint64(32)) % np.uint64(pieces)).astype(np.int32)


@dataclass(frozen=True)
class GroupImages:
    """Let placeholders, exact copies and equal fingerprints go; pass the rest on by the bands of their hashes.

    A file may be on any number of pages, so a piece of more than `at_once` images is cut by their URLs.
    """

    images: list[str]
    config: DedupConfig
    pieces: Pieces
    band_pieces: Pieces
    settle_pieces: Pieces
    at_once: int
    max_urls: int | None  # of one file; more make it a placeholder

    def run(self, bucket: int, output: UnitOutput) -> Mapping[str, int]:
        name = f"{bucket:05d}.rows"
        rows, places = 0, self.pieces.of_bucket(bucket)
        streams = gather_streams(output.workspace, self.images, bucket, _IMAGES, places, self._piece_of)
        with (
            spilling(output, f".wit/dedup/banded/{name}", _BANDED, self.band_pieces.buckets) as banded,
            spilling(output, f".wit/dedup/losers/{name}", PACKED_DUPLICATES, self.settle_pieces.buckets) as losers,
        ):
            for tables in streams:
                with Cut(self.at_once, _number_of_url).read(tables, _IMAGES) as cuts:
                    files = find_files(cuts, self.config, self.max_urls)
                    for images in cuts:
                        rows += images.num_rows
                        kept, lost = _split(images, files)
                        losers.add(lost, self.settle_pieces.bucket_of(piece_of_loser(lost, self.settle_pieces.count)))
                        self._add_bands(kept, banded)
        return {"inputs": rows, "kept": rows}

    def _add_bands(self, images: pa.Table, banded: Sorted) -> None:
        values = band_values(hash_matrix(images["pdq"]), self.config.max_distance_bits)  # (n, bands)
        for band in range(values.shape[1]):
            bands = np.full(images.num_rows, band, np.int32)
            piece = piece_of_band(bands, values[:, band], self.band_pieces.count)
            table = images.append_column("band", pa.array(bands)).select(_BANDED.names)
            banded.add(table, self.band_pieces.bucket_of(piece))

    def _piece_of(self, images: pa.Table) -> np.ndarray:
        return piece_of_hash(images["pdq"], self.pieces.count)


def _number_of_url(images: pa.Table) -> np.ndarray:
    return np.frombuffer(b"".join(images["url_hash"].to_pylist()), np.uint64)


_IN_RANK_ORDER = [("rank", "ascending"), ("uid", "ascending")]


def find_files(cuts: Iterable[pa.Table], config: DedupConfig, max_urls: int | None) -> pa.Table:
    """Return a row for each file of a piece, read in cuts by URL: `sha256`; `first`, its first image; `survivor` and
    `survivor_part`, the image that represents it, null for a placeholder; `is_compared`, whether others may be near it.
    """
    found = pa.concat_tables([_files_of(images, max_urls is not None) for images in cuts]).sort_by(_IN_RANK_ORDER)
    file = first_of_each(found["sha256"])
    is_first = file == np.arange(len(file))
    urls = np.bincount(file, found["urls"].to_numpy(), len(file))[is_first]
    files = found.filter(pa.array(is_first))
    is_placeholder = urls > max_urls if max_urls is not None else np.zeros(len(urls), bool)
    comparable = files["pdq_quality"].to_numpy() >= config.min_quality
    comparable &= config.near_duplicates
    comparable &= ~is_placeholder
    survivor = files.take(first_of_each(files["pdq"], comparable)).select(["uid", "part"])
    gone = pa.array(is_placeholder)
    columns = {
        "sha256": files["sha256"],
        "first": files["uid"],
        "survivor": pc.if_else(gone, None, survivor["uid"]),
        "survivor_part": pc.if_else(gone, None, survivor["part"]),
        "is_compared": pa.array(comparable),
    }
    return pa.table(columns)


def _files_of(images: pa.Table, count_urls: bool) -> pa.Table:
    """Return the first image of each file among these, with the number of the file's URLs among them."""
    ordered = images.sort_by(_IN_RANK_ORDER)
    firsts = ordered.take(np.unique(first_of_each(ordered["sha256"])))
    urls = pa.repeat(1, firsts.num_rows)
    if count_urls:
        distinct = ordered.select(["sha256", "url_hash"]).group_by(["sha256", "url_hash"]).aggregate([])
        counted = distinct.group_by("sha256").aggregate([("url_hash", "count")])
        urls = counted["url_hash_count"].take(pc.index_in(firsts["sha256"], counted["sha256"]))
    return firsts.drop_columns(["url_hash"]).append_column("urls", urls)


def _split(images: pa.Table, files: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Return the images to compare by their bands, and PACKED_DUPLICATES of those that go."""
    rows = images.sort_by(_IN_RANK_ORDER)
    of = files.take(pc.index_in(rows["sha256"], files["sha256"]))
    is_placeholder = pc.is_null(of["survivor"])
    stays = pc.fill_null(pc.equal(rows["uid"], of["survivor"]), False)
    is_copy = pc.not_equal(rows["uid"], of["first"]).to_numpy()
    is_first_of_url = first_of_each(rows["url_hash"], ~is_placeholder.to_numpy()) == np.arange(rows.num_rows)
    reasons = np.where(is_copy, Reason.EXACT_DUPLICATE, Reason.NEAR_DUPLICATE)
    reasons = np.where(is_copy & ~is_first_of_url, Reason.OTHER_CAPTION_OF_SAME_IMAGE, reasons)
    reasons = np.where(is_placeholder.to_numpy(), Reason.PLACEHOLDER_IMAGE, reasons)
    distance = pc.if_else(is_placeholder, None, pa.scalar(0, pa.int32()))
    columns = [rows["uid"], of["survivor"], pa.array(reasons.tolist(), pa.string()), distance]
    duplicates = pa.table([*columns, rows["part"], of["survivor_part"]], PACKED_DUPLICATES)
    return rows.filter(pc.and_(stays, of["is_compared"])), duplicates.filter(pc.invert(stays))


def first_of_each(column: pa.ChunkedArray, among: np.ndarray | None = None) -> np.ndarray:
    """Return for each row the first row with an equal value, (n,) int64; rows not `among` stand for themselves."""
    codes = pc.dictionary_encode(column).combine_chunks().indices.to_numpy().astype(np.int64)
    if among is not None:
        codes = np.where(among, codes, len(codes) + np.arange(len(codes)))
    _, first, group = np.unique(codes, return_index=True, return_inverse=True)
    return first[group]


@dataclass(frozen=True)
class CompareBands:
    """Compare the fingerprints of a band bucket; spill edges by the worse image, and who waits by the better one."""

    banded: list[str]
    max_distance_bits: int
    pieces: Pieces
    settle_pieces: Pieces

    def run(self, bucket: int, output: UnitOutput) -> Mapping[str, int]:
        listeners, counts = [LISTENERS.empty_table()], Counter(inputs=0, kept=0)
        settling = self.settle_pieces
        edges = self._edges(output.workspace, bucket, listeners, counts)
        spill(output, f".wit/dedup/edges/{bucket:05d}.rows", EDGES, settling.buckets, edges)
        waiting = distinct_listeners(pa.concat_tables(listeners))
        by_uid = [(waiting, settling.bucket_of(piece_of_uid(waiting["uid"], settling.count)))]
        spill(output, f".wit/dedup/listeners/{bucket:05d}.rows", LISTENERS, settling.buckets, by_uid)
        return counts

    def _edges(
        self, workspace: Workspace, bucket: int, listeners: list[pa.Table], counts: Counter[str]
    ) -> Iterator[tuple[pa.Table, np.ndarray]]:
        pieces = self.pieces.of_bucket(bucket)
        for piece in gather_pieces(workspace, self.banded, bucket, _BANDED, pieces, self._piece_of):
            rows = piece.sort_by([("rank", "ascending"), ("uid", "ascending")])
            counts.update(inputs=rows.num_rows, kept=rows.num_rows)
            blocks = find_edges(rows["band"].to_numpy(), hash_matrix(rows["pdq"]), self.max_distance_bits)
            yield from self._routed(rows.select(["uid", "rank", "part"]).combine_chunks(), blocks, listeners, counts)

    def _piece_of(self, rows: pa.Table) -> np.ndarray:
        bands = rows["band"].to_numpy()
        values = band_values(hash_matrix(rows["pdq"]), self.max_distance_bits)
        return piece_of_band(bands, values[np.arange(len(bands)), bands], self.pieces.count)

    def _routed(
        self, images: pa.Table, blocks: Iterable[Comparison], listeners: list[pa.Table], counts: Counter[str]
    ) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """Yield EDGES with the bucket of the worse image; note who listens to the better one, and the limits."""
        for (first, second, distances), limited in blocks:
            counts.update(limited=limited, edges=len(first))
            if not len(first):
                continue
            better, worse = images.take(pa.array(first)), images.take(pa.array(second))
            columns = [worse["uid"], worse["part"], better["uid"], better["rank"], better["part"]]
            table = pa.table([*columns, pa.array(distances.astype(np.int32))], schema=EDGES)
            piece = piece_of_uid(table["worse"], self.settle_pieces.count)
            listeners.append(distinct_listeners(pa.table([table["better"], piece], schema=LISTENERS)))
            yield table, self.settle_pieces.bucket_of(piece)
