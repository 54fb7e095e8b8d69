"""Decide which images of the set are duplicates, and which image represents them.

An edge joins two images whose PDQ hashes are within a distance. An image is dropped if, and only if, it has an edge to
a better-ranked image that itself survives; the best-ranked such neighbour is its survivor. Nothing is dropped because
of a chain: if A is near B and B near C, but A not near C, then A and C can both stay. `MAX_BETTER` sets the one limit.

Images with equal hashes have the same edges, so all but the best-ranked of them can be dropped before edges are
computed: their survivor is their representative, or that one's survivor. Callers do that first (an image used a
million times would otherwise have 10^12 edges), and exclude images of low PDQ quality, whose hashes are unreliable: of
those only exact copies are found.
"""

import itertools
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from dedup.hamming import EXACT_BITS, all_band_keys, band_keys, distances_bits, expand_ranges

# Candidate pairs measured at once: bounds the memory of a bucket of any size to some 100 MB.
_CANDIDATES = 1 << 18

MAX_BETTER = 64
"""Maximum edges kept from an image to better-ranked neighbours, the best ones. An image that is on the web in a hundred
thousand versions, all near each other, would have 5 * 10^9 edges."""

MAX_COMPARED = 1 << 16
"""Maximum better-ranked rows of its bucket that a row is compared with, the best ones. A band value that a million
hashes share would cost 5 * 10^11 comparisons; their near pairs are found by the other bands."""

_DENSE_ROWS = 128
"""Buckets from this size on are compared block by block, without an index of candidates."""
_BLOCK_ROWS = 256
_BLOCK_BETTER = 2_048
_WORD_BANDS = 4
"""Row bands per 64-bit word of a hash."""


class Edges(NamedTuple):
    """Pairs of rows within the distance, `first < second`; three arrays of one length."""

    first: np.ndarray  # int64
    second: np.ndarray  # int64
    distances: np.ndarray  # uint16, bits


class Comparison(NamedTuple):
    """What comparing some rows with better ones gave."""

    edges: Edges
    limited: int
    """Rows that were not compared with all better rows of their bucket, because of MAX_COMPARED."""


def band_values(hashes: np.ndarray, max_distance_bits: int = EXACT_BITS) -> np.ndarray:
    """Return the band values of hashes, `(n, 32)` uint8, as `(n, bands)` uint16: the buckets that hold near ones.

    Two hashes within 15 bits share at least one value in the same band (16 bands). For larger distances there are 32,
    and 99 % of the pairs at 31 randomly placed errors share one.
    """
    return band_keys(hashes) if max_distance_bits <= EXACT_BITS else all_band_keys(hashes)


def find_edges(bands: np.ndarray, hashes: np.ndarray, max_distance_bits: int) -> Iterator[Comparison]:
    """Yield the edges between rows that share a bucket, block by block: `bands[i]` is the band that brought row i here.

    Rows are (band, hash) records, `(n,)` and `(n, 32)` uint8; the bucket of a row is its band and the hash's value in
    that band. Rows come in the order of rank, the best first. A pair of hashes is reported only by the first band in
    which the two agree, so over all buckets each edge comes up once. In each bucket a row is compared with better rows,
    the best first, until MAX_BETTER of them are near: so over all buckets, a hash's MAX_BETTER best neighbours are
    found, and few others. The hashes of one band should be distinct (see the module).
    """
    values = band_values(hashes, max_distance_bits)
    words = np.ascontiguousarray(hashes).view(np.uint64)
    buckets = bands.astype(np.int64) << 16 | values[np.arange(len(bands)), bands]
    order = np.argsort(buckets, kind="stable")
    starts = np.flatnonzero(np.diff(buckets[order], prepend=-1))
    sizes = np.diff(starts, append=len(order))
    is_dense = sizes >= _DENSE_ROWS
    dense = (order[start : start + size] for start, size in zip(starts[is_dense], sizes[is_dense], strict=True))
    blocks = itertools.chain(
        _compare_small(order, starts[~is_dense], sizes[~is_dense], words, max_distance_bits),
        *(_compare_dense(rows, words, int(bands[rows[0]]), max_distance_bits) for rows in dense),
    )
    for (first, second, distances), limited in blocks:
        is_new = np.argmax(values[first] == values[second], axis=1) == bands[first]
        yield Comparison(Edges(first[is_new], second[is_new], distances[is_new]), limited)


def _compare_small(
    order: np.ndarray, starts: np.ndarray, sizes: np.ndarray, words: np.ndarray, max_distance_bits: int
) -> Iterator[Comparison]:
    """Yield the near pairs of many small buckets, each a range of `order`: all candidates are listed and measured."""
    best = np.repeat(starts, sizes)
    better = np.arange(len(best)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # rows before each in its bucket
    for number, place in expand_ranges(best, better, _CANDIDATES):
        first, second = order[place], order[best[number] + better[number]]
        distances = _distances_bits(words, first, second)
        is_near = distances <= max_distance_bits
        is_near[is_near] = _earlier_equals(second[is_near]) < MAX_BETTER
        yield Comparison(Edges(first[is_near], second[is_near], distances[is_near]), 0)


def _compare_dense(rows: np.ndarray, words: np.ndarray, band: int, max_distance_bits: int) -> Iterator[Comparison]:
    """Yield the near pairs of one bucket, `rows` in the order of rank.

    Blocks of rows are compared with blocks of better ones in one word of their hashes, which rules out nearly all pairs
    that are not near; the rest is measured in full. A word that does not contain the band excludes the most.
    """
    column = np.ascontiguousarray(words[rows, (band // _WORD_BANDS + 1) % words.shape[1]])
    for start in range(0, len(rows), _BLOCK_ROWS):
        active = np.arange(start, min(start + _BLOCK_ROWS, len(rows)))  # rows with fewer than MAX_BETTER near ones
        missing = np.full(len(active), MAX_BETTER)
        better, block_rows = 0, MAX_BETTER  # where most are near, few better rows suffice
        while len(active) and better < min(active[-1], MAX_COMPARED):
            stop = min(better + block_rows, int(active[-1]), MAX_COMPARED)
            bits = np.bitwise_count(column[active, None] ^ column[None, better:stop])
            number, place = np.divmod(np.flatnonzero(bits <= max_distance_bits), stop - better)
            place += better
            is_better = place < active[number]
            number, place = number[is_better], place[is_better]
            distances = _distances_bits(words, rows[place], rows[active[number]])
            is_near = distances <= max_distance_bits
            number, place, distances = number[is_near], place[is_near], distances[is_near]
            is_kept = _earlier_equals(number) < missing[number]
            number, place, distances = number[is_kept], place[is_kept], distances[is_kept]
            yield Comparison(Edges(rows[place], rows[active[number]], distances), 0)
            missing -= np.bincount(number, minlength=len(active))
            active, missing = active[missing > 0], missing[missing > 0]
            better, block_rows = stop, min(2 * block_rows, _BLOCK_BETTER)
        yield Comparison(_NO_EDGES, int((active > MAX_COMPARED).sum()))


def _distances_bits(words: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return distances_bits(words[first].view(np.uint8), words[second].view(np.uint8))


_NO_EDGES = Edges(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint16))


def _earlier_equals(values: np.ndarray) -> np.ndarray:
    """Return for each value the number of equal ones before it, (n,) int64."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    earlier = np.empty(len(values), np.int64)
    earlier[order] = np.arange(len(values)) - np.searchsorted(ordered, ordered)
    return earlier


def choose_survivors(ids: np.ndarray, ranks: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the id of the survivor of each image: its own where the image stays.

    `ids` are distinct, in any order and of any sortable type; `ranks` are uint64, lower is better, and ties are
    resolved by id; `edges` are pairs of ids, `(m, 2)`. The result does not depend on the order of the inputs.

    This is the greedy choice in the order of rank, computed in rounds over all edges at once: an image without a better
    undecided neighbour stays, and its neighbours are dropped. With random ranks some log(n) rounds suffice.
    """
    order = np.lexsort((ids, ranks))
    places = _places(ids, order, edges)
    better, worse = places.min(axis=1), places.max(axis=1)
    survivor = np.arange(len(ids))
    everyone = np.ones(len(ids), bool)
    stays = decide(better, worse, np.full(len(ids), Status.UNKNOWN), everyone) == Status.STAYS
    counts = stays[better] & ~stays[worse]
    dropped = np.full(len(ids), len(ids))
    np.minimum.at(dropped, worse[counts], better[counts])
    survivor[~stays] = dropped[~stays]
    result = np.empty_like(ids)
    result[order] = ids[order[survivor]]
    return result


def _places(ids: np.ndarray, order: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the edges with each id replaced by its position in the order of rank."""
    by_id = np.argsort(ids, kind="stable")
    sorted_ids = ids[by_id]
    at = np.minimum(np.searchsorted(sorted_ids, edges), len(ids) - 1)
    if len(edges) and (sorted_ids[at] != edges).any():
        unknown = edges[sorted_ids[at] != edges][0]
        raise ValueError(f"an edge has the id {unknown!r}, which is not in `ids`")
    place = np.empty(len(ids), np.int64)
    place[order] = np.arange(len(ids))
    return place[by_id[at]].reshape(-1, 2)


class Status(IntEnum):
    """What is decided about an image."""

    UNKNOWN = 0
    STAYS = 1
    GOES = 2


def decide(better: np.ndarray, worse: np.ndarray, status: np.ndarray, is_own: np.ndarray) -> np.ndarray:
    """Return the status of images, (n,) int, after all decisions that follow from what is known.

    Edges join images by number; every edge of an image to a better one is given if the image `is_own`, (n,) bool. An
    own image without a better neighbour, or whose better neighbours all go, stays; one with a better neighbour that
    stays goes. `status` has what is known of the others.
    """
    status = status.copy()
    proper = better != worse
    better, worse = better[proper], worse[proper]
    while True:
        is_open = (status[better] != Status.GOES) & (status[worse] == Status.UNKNOWN)
        better, worse = better[is_open], worse[is_open]
        has_better = np.zeros(len(status), bool)
        has_better[worse] = True
        stays = is_own & ~has_better & (status == Status.UNKNOWN)
        status[stays] = Status.STAYS
        goes = worse[status[better] == Status.STAYS]
        status[goes] = Status.GOES
        if not len(goes) and not stays.any():
            return status
