"""Find the fetched images that an evaluation set has too.

Two images count as the same if their bytes are equal, or if the fetched one's PDQ hash is within a distance of one of
the eight views of the evaluation image and both are textured enough for a hash to mean something (`min_quality`). The
gate matters for sets of flat or synthetic pictures (MNIST, rendered scenes, black video frames), which would match any
flat picture of the web; equal bytes count whatever the quality.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dedup.fingerprint import PDQ_BITS, PDQ_BYTES, VIEWS
from dedup.hamming import HammingIndex

OVERLAP = pa.schema(
    [
        ("eval_id", pa.string()),
        ("uid", pa.string()),
        ("score", pa.float32()),  # 1 - distance / 256
        ("distance", pa.int32()),  # bits
        ("view", pa.string()),  # how the evaluation image is turned to look like the fetched one
    ]
)


@dataclass(frozen=True)
class EvalIndex:
    """An evaluation set in memory: 1.3 kB per image. `load` makes one."""

    eval_ids: pa.Array  # of the readable examples
    sha256: pa.Array
    quality: np.ndarray  # (n,) int32: PDQ quality
    views: HammingIndex  # row n * 8 + v is view v of example n

    @classmethod
    def load(cls, table: pa.Table) -> Self:
        """Prepare an index.parquet (`dedup.eval_sets.index.INDEX`) for searching; unreadable examples are left out."""
        readable = table.filter(pc.is_null(table["reason"])).combine_chunks()
        hashes = hash_matrix(readable["views"])
        quality = readable["quality"].to_numpy()
        return cls(combine(readable["eval_id"]), combine(readable["sha256"]), quality, HammingIndex.build(hashes))

    def __len__(self) -> int:
        return len(self.eval_ids)


def find_overlap(images: pa.Table, index: EvalIndex, *, max_distance_bits: int, min_quality: int) -> pa.Table:
    """Return one `OVERLAP` row per evaluation example and fetched image that show the same, by eval_id, then uid.

    `images` has the columns uid, pdq, pdq_quality and sha256, without nulls. Of several matching views the nearest
    counts.
    """
    found = np.concatenate([_equal_bytes(images, index), _near(images, index, max_distance_bits, min_quality)])
    example, image, distance, view = found[_first_of_each_pair(found)].T
    uids = combine(images["uid"])
    columns = [
        index.eval_ids.take(pa.array(example)),
        uids.take(pa.array(image)),
        pa.array(1 - distance / PDQ_BITS, pa.float32()),
        pa.array(distance, pa.int32()),
        pa.array([name for name, _ in VIEWS], pa.string()).take(pa.array(view)),
    ]
    return pa.table(columns, OVERLAP).sort_by([("eval_id", "ascending"), ("uid", "ascending")])


def hash_matrix(hashes: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return a fixed-size binary column as hashes, `(n, 32)` uint8; a value of 256 bytes makes 8 rows."""
    array = combine(hashes)
    if array.null_count:
        raise ValueError(f"{array.null_count} of {len(array)} hashes are null")
    if len(array) == 0:
        return np.empty((0, PDQ_BYTES), np.uint8)
    width = array.type.byte_width
    content = np.frombuffer(array.buffers()[1], np.uint8)[array.offset * width :][: len(array) * width]
    return content.reshape(-1, PDQ_BYTES)


def combine(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    if isinstance(column, pa.Array):
        return column
    whole = column.combine_chunks()
    return whole if isinstance(whole, pa.Array) else pa.concat_arrays(whole.chunks)


def _equal_bytes(images: pa.Table, index: EvalIndex) -> np.ndarray:
    """Return (example, image, distance 0, view 0) for equal SHA-256, every pair of them."""
    left = pa.table({"sha256": index.sha256, "example": pa.array(np.arange(len(index)))})
    right = pa.table({"sha256": images["sha256"], "image": pa.array(np.arange(images.num_rows))})
    pairs = left.join(right, "sha256", join_type="inner")
    zeros = np.zeros(pairs.num_rows, np.int64)
    return np.stack([pairs["example"].to_numpy(), pairs["image"].to_numpy(), zeros, zeros], axis=1)


def _near(images: pa.Table, index: EvalIndex, max_distance_bits: int, min_quality: int) -> np.ndarray:
    """Return (example, image, distance, view) of every near view."""
    textured = np.flatnonzero(images["pdq_quality"].to_numpy() >= min_quality)
    matches = index.views.search(hash_matrix(images["pdq"])[textured], max_distance_bits)
    example, view = np.divmod(matches.index_rows, len(VIEWS))
    found = np.stack([example, textured[matches.query_rows], matches.distances.astype(np.int64), view], axis=1)
    return found[index.quality[example] >= min_quality]


def _first_of_each_pair(found: np.ndarray) -> np.ndarray:
    """Return the rows that hold the least (distance, view) of each (example, image)."""
    example, image, distance, view = found.T
    order = np.lexsort((view, distance, image, example))
    is_first = np.ones(len(order), bool)
    is_first[1:] = (found[order[1:], :2] != found[order[:-1], :2]).any(axis=1)
    return order[is_first]


@dataclass(frozen=True)
class OverlapSummary:
    """What the overlap rows of one set add up to; only pairs in the final shards count, except for `found`."""

    overlap: int
    """Evaluation examples with at least one copy in the final shards."""
    found: int
    """The same among all fetched images, before near-duplicates and balance removed any."""
    images: int
    """Different images of the final shards that are such copies."""
    distances: tuple[int, ...]
    """How many of the examples have their nearest copy at 0, 1, ... `max_distance_bits` bits."""
    most_examples_of_one_image: int
    """Large where one flat or generic image passes for many examples: a sign of false matches."""


def summarise_overlap(overlap: pa.Table, max_distance_bits: int) -> OverlapSummary:
    """Add up overlap rows with the columns eval_id, uid, distance and kept."""
    kept = overlap.filter(overlap["kept"])
    nearest = kept.group_by("eval_id").aggregate([("distance", "min")])["distance_min"].to_numpy()
    per_image = kept.group_by("uid").aggregate([("eval_id", "count_distinct")])["eval_id_count_distinct"].to_numpy()
    return OverlapSummary(
        overlap=len(nearest),
        found=pc.count_distinct(overlap["eval_id"]).as_py(),
        images=len(per_image),
        distances=tuple(np.bincount(nearest, minlength=max_distance_bits + 1).tolist()),
        most_examples_of_one_image=int(per_image.max(initial=0)),
    )


def pick_evidence(overlap: pa.Table, limit: int) -> pa.Table:
    """Return at most `limit` kept rows to look at, nearest first: the nearest copies of examples, over all distances.

    The farthest are always among them: they show whether the threshold is right.
    """
    kept = overlap.filter(overlap["kept"])
    ordered = kept.sort_by([("eval_id", "ascending"), ("distance", "ascending"), ("uid", "ascending")])
    ids = ordered["eval_id"].to_numpy()
    is_nearest = np.ones(len(ids), bool)
    is_nearest[1:] = ids[1:] != ids[:-1]
    nearest = ordered.filter(pa.array(is_nearest)).sort_by([("distance", "ascending"), ("eval_id", "ascending")])
    places = np.linspace(nearest.num_rows - 1, 0, min(limit, nearest.num_rows)).round().astype(np.int64)
    return nearest.take(pa.array(places[::-1]))
