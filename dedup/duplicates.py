"""Decide which images of the set are duplicates, and which image represents them.

An edge joins two images whose PDQ hashes are within a distance. An image is dropped if, and only if, it has an edge to
a better-ranked image that itself survives; the best-ranked such neighbour is its survivor. Nothing is dropped because
of a chain: if A is near B and B near C, but A not near C, then A and C can both stay. `MAX_BETTER` sets the one limit.

Images with equal hashes have the same edges, so all but the best-ranked of them can be dropped before edges are
computed: their survivor is their representative, or that one's survivor. Callers do that first (an image used a
million times would otherwise have 10^12 edges), and exclude images of low PDQ quality, whose hashes are unreliable: of
those only exact copies are found.
"""

from typing import NamedTuple

import numpy as np

from dedup.hamming import EXACT_BITS, all_band_keys, band_keys, distances_bits, expand_ranges

# Candidate pairs measured at once: bounds the memory of a bucket of any size to some 100 MB.
_CANDIDATES = 1 << 18

MAX_BETTER = 64
"""Maximum edges kept from an image to better-ranked neighbours in one bucket, the best ones. An image that is on the
web in a hundred thousand versions, all near each other, would have 5 * 10^9 edges."""


class Edges(NamedTuple):
    """Pairs of rows within the distance, `first < second`, sorted; three arrays of one length."""

    first: np.ndarray  # int64
    second: np.ndarray  # int64
    distances: np.ndarray  # uint16, bits


def band_values(hashes: np.ndarray, max_distance_bits: int = EXACT_BITS) -> np.ndarray:
    """Return the band values of hashes, `(n, 32)` uint8, as `(n, bands)` uint16: the buckets that hold near ones.

    Two hashes within 15 bits share at least one value in the same band (16 bands). For larger distances there are 32,
    and 99 % of the pairs at 31 randomly placed errors share one.
    """
    return band_keys(hashes) if max_distance_bits <= EXACT_BITS else all_band_keys(hashes)


def find_edges(bands: np.ndarray, hashes: np.ndarray, max_distance_bits: int) -> Edges:
    """Return the edges between rows that share a bucket: `bands[i]` is the band that brought row i here.

    Rows are (band, hash) records, `(n,)` and `(n, 32)` uint8; the bucket of a row is its band and the hash's value in
    that band. Rows come in the order of rank, the best first. A pair of hashes is reported only by the first band in
    which the two agree, so over all buckets each edge comes up once; and, of a row's edges to better rows, only those
    to the MAX_BETTER best. The hashes of one band should be distinct (see the module).
    """
    values = band_values(hashes, max_distance_bits)
    buckets = bands.astype(np.int64) << 16 | values[np.arange(len(bands)), bands]
    order = np.argsort(buckets, kind="stable")
    after = np.arange(1, len(order) + 1)
    rest = np.searchsorted(buckets[order], buckets[order], side="right") - after
    found = [Edges(*(np.empty(0, kind) for kind in (np.int64, np.int64, np.uint16)))]
    better = np.zeros(len(bands), np.int64)  # edges found so far from each row to better ones
    for left, right in expand_ranges(after, rest, _CANDIDATES):
        first, second = order[left], order[right]
        distances = distances_bits(hashes[first], hashes[second])
        shared = np.argmax(values[first] == values[second], axis=1)
        is_edge = (distances <= max_distance_bits) & (shared == bands[first])
        edges = Edges(first[is_edge], second[is_edge], distances[is_edge])
        is_kept = better[edges.second] + _earlier_equals(edges.second) < MAX_BETTER
        np.add.at(better, edges.second, 1)
        found.append(Edges(*(column[is_kept] for column in edges)))
    first, second, distances = (np.concatenate(column) for column in zip(*found, strict=True))
    by_row = np.lexsort((second, first))
    return Edges(first[by_row], second[by_row], distances[by_row])


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
    stays = _greedy_rounds(len(ids), better, worse)
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
        raise ValueError(f"an edge names {unknown!r}, which is not among the ids")
    place = np.empty(len(ids), np.int64)
    place[order] = np.arange(len(ids))
    return place[by_id[at]].reshape(-1, 2)


def _greedy_rounds(count: int, better: np.ndarray, worse: np.ndarray) -> np.ndarray:
    """Return which of `count` images stay, given their edges as positions in the order of rank."""
    dropped = np.zeros(count, bool)
    decided = np.zeros(count, bool)
    proper = better < worse
    better, worse = better[proper], worse[proper]
    while len(better):
        has_better = np.zeros(count, bool)
        has_better[worse] = True
        stays = ~has_better & ~decided
        dropped[worse[stays[better]]] = True
        decided = decided | stays | dropped
        open_edges = ~decided[better] & ~decided[worse]
        better, worse = better[open_edges], worse[open_edges]
    return ~dropped
