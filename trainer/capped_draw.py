"""Draw each epoch so that no query has more than `cap` pairs, whatever queries share them.

Samples are visited in an order drawn anew for each epoch, and one is kept if all its queries have room. What is left
out is left out because one of its queries is full, so as many are kept as the order allows. Memory: four bytes per
query of a sample, in every process.
"""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from trainer.order import Int64s, hash64

BLOCK = 1 << 16
"""Samples that are visited at a time."""
_DRAW_STREAM = 10  # the other modules use 0 to 9


class CappedDraw:
    """The queries of all samples, and which samples an epoch has."""

    def __init__(self, lists: Iterable[pa.ListArray], cap: int, seed: int) -> None:
        lengths, ids = [np.zeros(1, np.int64)], list[NDArray[np.int32]]()
        for shard in lists:
            listed = pc.list_value_length(shard).fill_null(0).to_numpy().astype(np.int64)
            row = np.repeat(np.arange(len(shard)), listed)
            pairs = np.unique(row << 32 | shard.flatten().to_numpy().astype(np.int64))  # each query of a sample once
            lengths.append(np.bincount(pairs >> 32, minlength=len(shard)))
            ids.append((pairs & 0xFFFFFFFF).astype(np.int32))
        self._ends = np.cumsum(np.concatenate(lengths))
        self._ids = np.concatenate(ids) if ids else np.empty(0, np.int32)
        self._cap, self._seed = cap, seed

    def __call__(self, epoch: int) -> NDArray[np.bool_]:
        """Return which samples an epoch has, in shard and tar order."""
        count = len(self._ends) - 1
        kept = np.zeros(count, np.bool_)
        room = np.full(int(self._ids.max(initial=-1)) + 1, self._cap, np.int64)
        order = np.argsort(hash64(self._seed, _DRAW_STREAM, epoch, np.arange(count, dtype=np.uint64)), kind="stable")
        for start in range(0, count, BLOCK):
            waiting = order[start : start + BLOCK]
            while len(waiting):
                accepted, waiting = self._one_pass(waiting, room)
                kept[accepted] = True
        return kept

    def _one_pass(self, waiting: Int64s, room: Int64s) -> tuple[Int64s, Int64s]:
        """Accept those that have room even if all before them are accepted; return them, and those still possible.

        The first possible one is always accepted, so passes end.
        """
        row, query = self._queries(waiting)
        possible = np.ones(len(waiting), np.bool_)
        possible[row[room[query] <= 0]] = False
        waiting = waiting[possible]
        row, query = self._queries(waiting)
        fits = np.ones(len(waiting), np.bool_)
        fits[row[_rank_among_equals(query) >= room[query]]] = False
        np.subtract.at(room, query[fits[row]], 1)
        return waiting[fits], waiting[~fits]

    def _queries(self, samples: Int64s) -> tuple[Int64s, NDArray[np.int32]]:
        """Return every query of these samples, with the row of its sample, in the order of the samples."""
        starts, lengths = self._ends[samples], self._ends[samples + 1] - self._ends[samples]
        row = np.repeat(np.arange(len(samples)), lengths)
        within = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return row, self._ids[starts[row] + within]


def _rank_among_equals(values: NDArray[np.int32]) -> Int64s:
    """Return how many equal values come before each."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(values) else np.empty(0, np.int64)
    ranks = np.empty(len(values), np.int64)
    ranks[order] = np.arange(len(values)) - np.repeat(first, np.diff(np.r_[first, len(values)]))
    return ranks
