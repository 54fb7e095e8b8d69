"""Find the fetched images that are also in an evaluation set.

Two images count as the same if their bytes are equal, or if the fetched one's PDQ hash is within a distance of one of
the eight views of the evaluation image and both are textured enough for a hash to mean something (`min_quality`). The
gate matters for sets of flat or synthetic images (MNIST, rendered scenes, black video frames), which would match any
flat image of the web; equal bytes count regardless of the quality. Edited copies come from the copy detector, if there
is one (docs/copies.md).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dedup.copies.match import Copy
from dedup.hamming import HammingIndex
from dedup.pdq import PDQ_BITS, PDQ_BYTES, VIEWS

OVERLAP = pa.schema(
    [
        ("eval_id", pa.string()),
        ("uid", pa.string()),
        ("score", pa.float32()),  # 1 - distance / 256
        ("distance", pa.int32()),  # bits
        ("view", pa.string()),  # the rotation or mirroring of the evaluation image that matches the fetched one
        ("degree", pa.string()),  # `Degree`
        ("edit", pa.string()),  # the geometric edit, in words; empty if there is none
        ("cosine", pa.float32()),  # of the descriptors; null where the copy detector did not propose the pair
        ("inliers", pa.int32()),  # of the alignment on the pixels, as are the next two; null for small pictures
        (
            "agreement",
            pa.float32(),
        ),  # share of the textured cells in the overlap that agree; of small pictures the correlation
        ("probability", pa.float32()),  # that the two are copies and not look-alikes
        (
            "corners",
            pa.list_(pa.float32()),
        ),  # x, y of the fetched image's four corners, as fractions of the other's sides
    ]
)

EQUAL_BYTES, RE_ENCODED, EDITED = "equal bytes", "re-encoded", "edited"
"""The degrees of a copy, from identical to edited."""

_TURNS = {
    "upright": "",
    "rotate90": "rotated by 90°",
    "rotate180": "rotated by 180°",
    "rotate270": "rotated by -90°",
    "mirror": "mirrored",
    "flip": "mirrored, rotated by 180°",
    "transpose": "mirrored, rotated by 90°",
    "transverse": "mirrored, rotated by -90°",
}


@dataclass(frozen=True)
class EvalIndex:
    """An evaluation set in memory: 1.3 kB per image, 0.1 kB if the hashes are mapped. `load` makes one."""

    eval_ids: pa.Array  # of the readable examples
    sha256: pa.Array
    quality: np.ndarray  # (n,) int32: PDQ quality
    views: HammingIndex  # row n * 8 + v is view v of example n

    @classmethod
    def load(cls, table: pa.Table | str | Path, views: HammingIndex | None = None) -> Self:
        """Prepare an index.parquet (`dedup.eval_sets.index.INDEX`), or the table in it, for searching.

        Unreadable examples are left out. `views` is the index of the hashes, if there is one; the table then needs no
        column of this name.
        """
        if not isinstance(table, pa.Table):
            with fsspec.open(str(table), "rb") as file:
                table = pq.read_table(file, page_checksum_verification=True)
        readable = table.filter(pc.is_null(table["reason"])).combine_chunks()
        if views is None:
            views = HammingIndex.build(hash_matrix(readable["views"]))
        return cls(combine(readable["eval_id"]), combine(readable["sha256"]), readable["quality"].to_numpy(), views)

    def __len__(self) -> int:
        return len(self.eval_ids)


def find_overlap(
    images: pa.Table, index: EvalIndex, *, max_distance_bits: int, min_quality: int, copies: Sequence[Copy] = ()
) -> pa.Table:
    """Return one `OVERLAP` row per matching evaluation example and fetched image, by eval_id, then uid.

    `images` has the columns uid, pdq, pdq_quality and sha256, without nulls. Of several matching views the nearest
    counts. `copies` are additional matches of the copy detector, by the row numbers of the index's examples and the
    images.
    """
    copies = [copy for copy in copies if copy.alignment or _both_textured(images, index, copy, min_quality)]
    by_hash = [_equal_bytes(images, index), _near(images, index, max_distance_bits, min_quality)]
    matches = np.concatenate([*by_hash, _by_detector(images, index, copies)])
    matches = matches[_first_of_each_pair(matches)]
    example, image, distance, view = matches.T
    uids = combine(images["uid"])
    proofs = {(copy.example, copy.image): copy for copy in copies}
    columns = [
        index.eval_ids.take(pa.array(example)),
        uids.take(pa.array(image)),
        pa.array(1 - distance / PDQ_BITS, pa.float32()),
        pa.array(distance, pa.int32()),
        pa.array([name for name, _ in VIEWS], pa.string()).take(pa.array(view)),
        *_edit_columns(images, index, matches, proofs, max_distance_bits),
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


def _both_textured(images: pa.Table, index: EvalIndex, copy: Copy, min_quality: int) -> bool:
    """Return whether both are textured: else a copy must be verified on the pixels, since flat images look alike."""
    return bool(min(index.quality[copy.example], images["pdq_quality"][copy.image].as_py()) >= min_quality)


def _by_detector(images: pa.Table, index: EvalIndex, copies: Sequence[Copy]) -> np.ndarray:
    """Return (example, image, distance, view) of the detector's copies, with their nearest views at any distance."""
    example = np.array([copy.example for copy in copies], np.int64)
    image = np.array([copy.image for copy in copies], np.int64)
    words = hash_matrix(images["pdq"])[image].view(np.uint64)
    views = index.views.words.reshape(-1, len(VIEWS), words.shape[1])[example]
    bits = np.bitwise_count(views ^ words[:, None]).sum(2, dtype=np.int64)
    return np.stack([example, image, bits.min(1, initial=PDQ_BITS), bits.argmin(1)], axis=1)


def _edit_columns(
    images: pa.Table,
    index: EvalIndex,
    matches: np.ndarray,
    proofs: Mapping[tuple[int, int], Copy],
    max_distance_bits: int,
) -> list[pa.Array]:
    """Return the columns degree, edit, cosine, inliers, agreement, probability and corners of found pairs."""
    equal = pc.equal(
        index.sha256.take(pa.array(matches[:, 0])), combine(images["sha256"]).take(pa.array(matches[:, 1]))
    )
    rows = []
    for (example, image, distance, view), same_bytes in zip(matches.tolist(), equal.to_pylist(), strict=True):
        copy = proofs.get((example, image))
        edit = (
            copy.edit() if copy and copy.transform else _TURNS[VIEWS[view][0]] if distance <= max_distance_bits else ""
        )
        degree = EQUAL_BYTES if same_bytes else EDITED if edit or distance > max_distance_bits else RE_ENCODED
        alignment = copy.alignment if copy else None
        corners = [value for corner in copy.transform.corners for value in corner] if copy and copy.transform else None
        measured = (alignment.inliers, alignment.agreement, alignment.probability) if alignment else (None, None, None)
        rows.append((degree, "" if same_bytes else edit, copy.cosine if copy else None, *measured, corners))
    schema = pa.schema(
        [OVERLAP.field(name) for name in ("degree", "edit", "cosine", "inliers", "agreement", "probability", "corners")]
    )
    table = pa.table([list(column) for column in zip(*rows, strict=True)] if rows else [[]] * len(schema), schema)
    return [column.combine_chunks() for column in table.columns]


def _first_of_each_pair(matches: np.ndarray) -> np.ndarray:
    """Return the rows that hold the least (distance, view) of each (example, image)."""
    example, image, distance, view = matches.T
    order = np.lexsort((view, distance, image, example))
    is_first = np.ones(len(order), bool)
    is_first[1:] = (matches[order[1:], :2] != matches[order[:-1], :2]).any(axis=1)
    return order[is_first]


@dataclass(frozen=True)
class OverlapSummary:
    """The sums of the overlap rows of one set; only pairs in the final shards count, except for `found`."""

    overlap: int
    """Evaluation examples with at least one copy in the final shards."""
    found: int
    """The same among all fetched images, before near-duplicates and balance removed any."""
    images: int
    """Different images of the final shards that are such copies."""
    distances: tuple[int, ...]
    """How many of the examples have their nearest copy at 0, 1, ... `max_distance_bits` bits."""
    most_examples_of_one_image: int
    """Large if one flat or generic image matches many examples: a sign of false matches."""
    edited: int
    """How many of the examples have no copy within `max_distance_bits`, only copies found by the copy detector."""


def summarise_overlap(overlap: pa.Table, max_distance_bits: int) -> OverlapSummary:
    """Add up overlap rows with the columns eval_id, uid, distance and kept."""
    kept = overlap.filter(overlap["kept"])
    nearest = kept.group_by("eval_id").aggregate([("distance", "min")])["distance_min"].to_numpy()
    within = nearest[nearest <= max_distance_bits]
    per_image = kept.group_by("uid").aggregate([("eval_id", "count_distinct")])["eval_id_count_distinct"].to_numpy()
    return OverlapSummary(
        overlap=len(nearest),
        found=pc.count_distinct(overlap["eval_id"]).as_py(),
        images=len(per_image),
        distances=tuple(np.bincount(within, minlength=max_distance_bits + 1).tolist()),
        edited=len(nearest) - len(within),
        most_examples_of_one_image=int(per_image.max(initial=0)),
    )


def pick_evidence(overlap: pa.Table, limit: int) -> pa.Table:
    """Return at most `limit` kept rows to inspect, farthest first: the nearest copies of examples, over all distances.

    The farthest are always among them: they show whether the threshold is right.
    """
    kept = overlap.filter(overlap["kept"])
    ordered = kept.sort_by([("eval_id", "ascending"), ("distance", "ascending"), ("uid", "ascending")])
    ids = ordered["eval_id"].to_numpy()
    is_nearest = np.ones(len(ids), bool)
    is_nearest[1:] = ids[1:] != ids[:-1]
    nearest = ordered.filter(pa.array(is_nearest)).sort_by([("distance", "ascending"), ("eval_id", "ascending")])
    places = np.linspace(nearest.num_rows - 1, 0, min(limit, nearest.num_rows)).round().astype(np.int64)
    return nearest.take(pa.array(places))
