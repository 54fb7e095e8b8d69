"""Several sets in one stream, each with its share of every batch; a pure function of position like each set's order.

Every lane is mixed by itself, in blocks of offsets: how many of a block belong to a set follows from the shares by
rounding cumulative sums, so no set drifts from its share; which ones is a hash. The n-th offset of a set in a lane is
the n-th offset of that lane in the set's own endless stream, so a rank that reads whole lanes reads few shards.
"""

from functools import lru_cache
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from trainer.online_balance import BalancedOrder
from trainer.order import Int64s, SampleOrder, SamplePositions, hash64

BLOCK = 4_096
"""Offsets of a lane that are mixed at a time; no share may be so small that a block can lack the set."""
_MIX_STREAM = 6  # the other modules use 0 to 5


class MixedOrder:
    """The stream of several sets. `shares` are positive numbers; only their ratios count."""

    block = BLOCK

    def __init__(
        self,
        orders: tuple[SampleOrder | BalancedOrder, ...],
        shares: tuple[float, ...],
        first_shards: tuple[int, ...],
        *,
        seed: int,
        lanes: int,
    ) -> None:
        self.samples = sum(order.samples for order in orders)
        self.shares = tuple(share / sum(shares) for share in shares)
        self._orders, self._first_shards = orders, first_shards
        self._seed, self._lanes = seed, lanes
        self._edges = np.array([0.0, *accumulate(self.shares)])
        self._edges[-1] = 1.0
        self._sets = lru_cache(maxsize=4 * lanes + 4)(self._sets_of_block)

    def at(self, positions: Int64s) -> SamplePositions:
        """Return the epoch (of its set), shard and index of the samples at these positions of the stream."""
        lane, offset = positions % self._lanes, positions // self._lanes
        block, within = np.divmod(offset, self.block)
        chosen, number = np.empty_like(positions), np.empty_like(positions)
        for key in np.unique(lane * (int(block.max(initial=0)) + 1) + block):
            this_lane, this_block = divmod(int(key), int(block.max()) + 1)
            here = (lane == this_lane) & (block == this_block)
            sets, numbers = self._sets(this_lane, this_block)
            chosen[here], number[here] = sets[within[here]], numbers[within[here]]
        own = number * self._lanes + lane
        result = SamplePositions(np.empty_like(positions), np.empty_like(positions), np.empty_like(positions))
        for one, (order, first) in enumerate(zip(self._orders, self._first_shards, strict=True)):
            here = chosen == one
            found = order.at(own[here])
            result.epoch[here], result.shard[here], result.index[here] = found.epoch, found.shard + first, found.index
        return result

    def _sets_of_block(self, lane: int, block: int) -> tuple[Int64s, Int64s]:
        """Return for each offset of a block its set, and which offset of the set's own lane it is."""
        before, after = (np.diff(np.rint(self._edges * (self.block * number))) for number in (block, block + 1))
        counts = (after - before).astype(np.int64)
        sets: Int64s = np.repeat(np.arange(len(counts)), np.maximum(counts, 0))
        draws = hash64(self._seed, _MIX_STREAM, lane, block, np.arange(self.block, dtype=np.uint64))
        sets = sets[np.argsort(draws, kind="stable")]
        numbers: NDArray[np.int64] = np.empty_like(sets)
        for one, start in enumerate(before.astype(np.int64)):
            here = sets == one
            numbers[here] = int(start) + np.arange(here.sum())
        return sets, numbers
