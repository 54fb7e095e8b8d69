"""Fingerprints, duplicates and overlap in memory: for lists, NumPy, Arrow, PIL images and paths.

A build uses the functions that these call (`dedup.pdq`, `dedup.duplicates`, `dedup.overlap`), bucket by bucket.
"""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from PIL import Image, ImageOps

from dedup import overlap as _overlap
from dedup import pdq
from dedup.decode import decode_rgb
from dedup.duplicates import band_values, choose_survivors, find_edges
from dedup.hamming import EXACT_BITS
from dedup.overlap import EvalIndex, hash_matrix
from dedup.pdq import PDQ_BYTES, Fingerprint
from dedup.statistics import Proportion, SplitAccuracy, contamination, split_accuracy

AnyImage: TypeAlias = "np.ndarray | Image.Image | bytes | str | Path"
"""(height, width, 3) uint8, a PIL image, the bytes of an image file, or its path."""
Hashes: TypeAlias = "np.ndarray | pa.Array | pa.ChunkedArray | Sequence[bytes]"
"""PDQ hashes: (n, 32) uint8, an Arrow column or a list of 32 bytes each."""

MAX_DISTANCE_BITS = 15
MAX_EVAL_DISTANCE_BITS = 31
MIN_QUALITY = 50
"""The defaults of `[dedup]`; docs/dedup.md has the measurements behind them."""

_IMAGES = pa.schema(
    [("uid", pa.string()), ("pdq", pa.binary(PDQ_BYTES)), ("pdq_quality", pa.int32()), ("sha256", pa.string())]
)


def fingerprint(image: AnyImage) -> Fingerprint:
    """Return the PDQ hash and the quality of an image.

    Raises:
        ImageDecodeError: the bytes or the file are not a readable image.
        FileNotFoundError: the file does not exist.
    """
    return pdq.fingerprint(_pixels(image))


def _pixels(image: AnyImage) -> np.ndarray:
    if isinstance(image, np.ndarray):
        return image
    if isinstance(image, Image.Image):
        upright = ImageOps.exif_transpose(image)
        lossless = upright if upright.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else upright.convert("RGB")
        encoded = io.BytesIO()
        lossless.save(encoded, "PNG", compress_level=0)
        return decode_rgb(encoded.getvalue())
    return decode_rgb(image if isinstance(image, bytes) else Path(image).read_bytes())


def near_duplicates(hashes: Hashes, max_distance_bits: int = MAX_DISTANCE_BITS) -> np.ndarray:
    """Return for each hash the row of its representative, (n,) int64: its own row if it is not a duplicate.

    Of two near hashes the earlier row stays, so put the better image first. A row is a duplicate only of a row that
    itself stays; chains drop nothing (see `dedup.duplicates`). Up to 15 bits every near pair is found; beyond, most.
    """
    matrix = _hash_matrix(hashes)
    if not 0 <= max_distance_bits <= 2 * EXACT_BITS + 1:
        raise ValueError(f"max_distance_bits = {max_distance_bits}: must be 0 to {2 * EXACT_BITS + 1}")
    _, first, of_row = np.unique(matrix, axis=0, return_index=True, return_inverse=True)
    rows = np.sort(first)  # the first of each hash: its copies share its edges
    distinct = np.ascontiguousarray(matrix[rows])
    bands = band_values(distinct, max_distance_bits).shape[1] if len(distinct) else 0
    blocks = [
        b.edges for band in range(bands) for b in find_edges(np.full(len(rows), band), distinct, max_distance_bits)
    ]
    edges = np.concatenate([np.empty((0, 2), np.int64), *(np.stack([e.first, e.second], axis=1) for e in blocks)])
    chosen = choose_survivors(rows, np.arange(len(rows)).astype(np.uint64), rows[edges])
    return chosen[np.searchsorted(rows, first)][of_row.reshape(-1)]


def _hash_matrix(hashes: Hashes) -> np.ndarray:
    if isinstance(hashes, np.ndarray) and hashes.dtype == np.uint8:
        return hashes
    try:
        column = hashes if isinstance(hashes, pa.Array | pa.ChunkedArray) else pa.array(list(hashes), pa.binary())
        return hash_matrix(column.cast(pa.binary()).cast(pa.binary(PDQ_BYTES)))
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"need PDQ hashes of {PDQ_BYTES} bytes each: {error}") from None


def find_overlap(
    images: pa.Table | Mapping[str, AnyImage],
    index: EvalIndex,
    max_distance_bits: int = MAX_EVAL_DISTANCE_BITS,
    min_quality: int = MIN_QUALITY,
) -> pa.Table:
    """Return one row of `dedup.overlap.OVERLAP` per pair of an evaluation example and an image that match.

    `images`: a table with the columns uid, pdq, pdq_quality and sha256 (as the Parquet files of a set have), or a
    mapping from names to images. Of pixels, which have no bytes, only near hashes are found.
    """
    table = images if isinstance(images, pa.Table) else _describe(images)
    return _overlap.find_overlap(table, index, max_distance_bits=max_distance_bits, min_quality=min_quality)


def _describe(images: Mapping[str, AnyImage]) -> pa.Table:
    rows: list[dict[str, Any]] = []
    for uid, image in images.items():
        encoded = Path(image).read_bytes() if isinstance(image, str | Path) else image
        found = fingerprint(encoded)
        digest = hashlib.sha256(encoded).hexdigest() if isinstance(encoded, bytes) else ""
        rows.append({"uid": uid, "pdq": found.pdq, "pdq_quality": found.quality, "sha256": digest})
    return pa.Table.from_pylist(rows, _IMAGES)


@dataclass(frozen=True)
class OverlapStatistics:
    """The fraction of an evaluation set that was found, with a 95 % interval; its effect on a model's accuracy."""

    share: Proportion
    accuracy: SplitAccuracy | None  # None without a model's results


def overlap_statistics(
    overlap: pa.Table, index: EvalIndex, correct: Mapping[str, bool] | None = None
) -> OverlapStatistics:
    """Summarise the rows of `find_overlap`; `correct` has for each eval_id whether a model's prediction is correct.

    Raises:
        ValueError: `correct` has examples that are not in the index.
    """
    overlapping = set(overlap["eval_id"].to_pylist())
    share = contamination(len(overlapping), len(index))
    if correct is None:
        return OverlapStatistics(share, None)
    unknown = correct.keys() - set(index.eval_ids.to_pylist())
    if unknown:
        raise ValueError(f"{len(unknown)} of {len(correct)} examples are not in the index, such as {min(unknown)!r}")
    is_correct = np.array(list(correct.values()), bool)
    return OverlapStatistics(
        share, split_accuracy(is_correct, np.array([name in overlapping for name in correct], bool))
    )
