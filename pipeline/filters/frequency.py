"""Captions of many images: "Image", "Logo", "Click to enlarge", or the name of a shop on each of its pictures.

Exact over the whole pool, in memory that does not grow with it: rows of 64-bit hashes are brought together by caption
(engine/shuffle.py), and what is too frequent is sent back to the parts that have it. Two of a billion captions share a
hash with a probability of three in a hundred; that matters only where the two together have too many images.
"""

import numpy as np
import pyarrow as pa

CAPTION_USES = pa.schema([("caption_hash", pa.uint64()), ("url_hash", pa.uint64()), ("bucket", pa.int32())])
"""A caption on an image; `bucket` is the one that has the image's part."""

FREQUENT = pa.schema([("caption_hash", pa.uint64()), ("bucket", pa.int32())])


def needed_uses(uses: pa.Table, limit: int) -> pa.Table:
    """Return the rows that suffice to tell, with those of other files, what is on more than `limit` images, and where.

    Of each caption, `limit` + 1 images and one row in each bucket: what a file says of a caption on each of a million
    images is then no longer than the number of buckets.
    """
    columns = (uses[name].to_numpy() for name in CAPTION_USES.names)
    caption, url, bucket, order = _sorted(*columns)
    is_new_caption = _changes(caption)
    is_new_image = is_new_caption | _changes(url)
    images = np.cumsum(is_new_image)
    starts = np.flatnonzero(is_new_caption)
    rank = images - np.repeat(images[starts], np.diff(np.append(starts, len(order))))
    by_bucket = np.lexsort((bucket, caption))
    first_in_bucket = np.zeros(len(order), bool)
    first_in_bucket[by_bucket] = _changes(caption[by_bucket]) | _changes(bucket[by_bucket])
    return uses.take(pa.array(order[(is_new_image & (rank <= limit)) | first_in_bucket]))


def frequent_captions(uses: pa.Table, limit: int) -> pa.Table:
    """Return the captions that are on more than `limit` different images, each once for every bucket that has it."""
    columns = (uses[name].to_numpy() for name in CAPTION_USES.names)
    caption, url, bucket, _ = _sorted(*columns)
    found, images = np.unique(caption[_changes(caption) | _changes(url)], return_counts=True)
    is_frequent = np.isin(caption, found[images > limit])
    places = np.unique(np.rec.fromarrays([caption[is_frequent], bucket[is_frequent]]))
    return pa.table([places["f0"], places["f1"]], FREQUENT)


def _sorted(
    captions: np.ndarray, urls: np.ndarray, buckets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    order = np.lexsort((buckets, urls, captions))
    return captions[order], urls[order], buckets[order], order


def _changes(values: np.ndarray) -> np.ndarray:
    """Return which values differ from the one before, (n,) bool; the first does."""
    changes = np.ones(len(values), bool)
    changes[1:] = values[1:] != values[:-1]
    return changes
