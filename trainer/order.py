"""The order in which samples are read: a pure function of (seed, lanes, window, shard sizes).

A run reads one endless stream of samples: epoch 0, epoch 1, and so on, each a fresh permutation of the whole set. Step
`s` takes the stream's positions `s * batch` up to `(s + 1) * batch`; what a run has read is therefore one number, and a
batch may end one epoch and begin the next, so that no sample is left out.

Inside an epoch the shards are shuffled, laid end to end, and cut into `lanes` runs of equal length. Position p belongs
to lane p mod lanes, and each lane is shuffled in windows of `window` samples. A rank reads whole lanes, so it touches
few shards at a time; which lanes it reads changes where a sample is decoded, never when it is seen.

Lanes do not begin their windows together, or all new shards would be needed in one step. A lane's windows grow at the
start of an epoch, from 1/64 to 1/32 of `window` by doubling; the first size depends on the lane by the golden ratio,
which spreads the later boundaries of any neighbouring lanes evenly. So the first step needs few shards, too.

Random numbers are hashes (SplitMix64), so the order does not depend on a generator's state or a library's version.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

GOLDEN_RATIO = 0x9E3779B97F4A7C15
"""Its fractional part, times 2^64."""
FIRST_WINDOWS = 64
"""A lane's first window is 1 to 2 of as many parts of a whole one."""
Int64s = NDArray[np.int64]
UInt64s = NDArray[np.uint64]


@dataclass(frozen=True)
class SamplePositions:
    """The epoch, shard and index of samples, one entry per position of the stream."""

    epoch: Int64s
    shard: Int64s
    index: Int64s  # of the sample in its shard, in tar order

    def __len__(self) -> int:
        return len(self.epoch)

    def take(self, rows: slice | Int64s) -> "SamplePositions":
        """Return the entries of these rows."""
        return SamplePositions(self.epoch[rows], self.shard[rows], self.index[rows])


def hash64(*parts: int | UInt64s) -> UInt64s:
    """Mix whole numbers, or arrays of them, into uniform 64-bit values."""
    state = np.zeros(1, np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            state = _split_mix(state ^ _split_mix(np.asarray(part, np.uint64)))
    return state


def uniform(*parts: int | UInt64s) -> NDArray[np.float64]:
    """Return numbers in [0, 1) that are a pure function of `parts`."""
    return (hash64(*parts) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _split_mix(value: UInt64s) -> UInt64s:
    """The output function of SplitMix64 (Steele, Lea, Flood 2014)."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _permutation(count: int, *key: int) -> Int64s:
    return np.argsort(hash64(*key, np.arange(count, dtype=np.uint64)), kind="stable")


def _ramp(window: int, lane: int) -> Int64s:
    """Return where the growing windows at the start of a lane begin, and where the last of them ends."""
    fraction = lane * GOLDEN_RATIO % 2**64
    size = max(1, (window * (2**64 + fraction)) // (2**64 * FIRST_WINDOWS))
    edges = [0]
    while size < window:
        edges.append(edges[-1] + size)
        size *= 2
    return np.array(edges, np.int64)


class SampleOrder:
    """The stream over shards of `counts` samples each.

    >>> at = SampleOrder(np.array([3, 2]), seed=0).at(np.arange(5))  # epoch 0: every sample of both shards once
    >>> sorted(zip(at.shard.tolist(), at.index.tolist(), strict=True))
    [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    """

    def __init__(self, counts: Int64s, *, seed: int, lanes: int = 8, window: int = 65_536) -> None:
        self.samples = int(counts.sum())
        self._counts = counts
        self._seed = seed
        self._lanes = lanes
        self._window = window
        self._ramps = [_ramp(window, lane) for lane in range(lanes)]
        self._permutation = lru_cache(maxsize=4 * lanes + 4)(_permutation)

    def at(self, positions: Int64s) -> SamplePositions:
        """Return the epoch, shard and index of the samples at these positions of the stream."""
        epochs, within = np.divmod(positions, self.samples)
        shard, index = np.empty_like(positions), np.empty_like(positions)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            shard[here], index[here] = self._locate(int(epoch), self._shuffled(int(epoch), within[here]))
        return SamplePositions(epochs, shard, index)

    def _shuffled(self, epoch: int, positions: Int64s) -> Int64s:
        """Return offsets into the epoch's row of shards."""
        lane, offset = positions % self._lanes, positions // self._lanes
        result = np.empty_like(positions)
        for one in np.unique(lane):
            in_lane = lane == one
            windows = self._window_of(int(one), offset[in_lane])
            rows = np.flatnonzero(in_lane)
            for number in np.unique(windows):
                here = rows[windows == number]
                start, end = self._edges(int(one), int(number))
                length = min(end, self._lane_length(int(one))) - start
                order = self._permutation(length, self._seed, 1, epoch, int(one), int(number))
                result[here] = self._lane_start(int(one)) + start + order[offset[here] - start]
        return result

    def _window_of(self, lane: int, offsets: Int64s) -> Int64s:
        ramp = self._ramps[lane]
        grown = len(ramp) - 1 + (offsets - ramp[-1]) // self._window
        return np.where(offsets < ramp[-1], np.searchsorted(ramp, offsets, side="right") - 1, grown)

    def _edges(self, lane: int, number: int) -> tuple[int, int]:
        """Return where a window of a lane begins and ends."""
        ramp = self._ramps[lane]
        if number < len(ramp) - 1:
            return int(ramp[number]), int(ramp[number + 1])
        start = int(ramp[-1]) + (number - len(ramp) + 1) * self._window
        return start, start + self._window

    def _lane_length(self, lane: int) -> int:
        return (self.samples - lane + self._lanes - 1) // self._lanes

    def _lane_start(self, lane: int) -> int:
        quotient, longer = divmod(self.samples, self._lanes)
        return lane * quotient + min(lane, longer)

    def _locate(self, epoch: int, offsets: Int64s) -> tuple[Int64s, Int64s]:
        """Turn offsets into the epoch's row of shards into (shard, index in it)."""
        row = self._permutation(len(self._counts), self._seed, 0, epoch)
        ends = np.cumsum(self._counts[row])
        rank = np.searchsorted(ends, offsets, side="right")
        return row[rank], offsets - (ends[rank] - self._counts[row[rank]])


def rank_offsets(batch: int, lanes: int, rank: int, world_size: int) -> Int64s:
    """Return the offsets within a batch that this rank reads.

    Offsets are sorted by lane, so a rank keeps its lanes; concatenated over the ranks, they are the same list for
    every world size.
    """
    by_lane = np.argsort(np.arange(batch) % lanes, kind="stable")
    size = batch // world_size
    return by_lane[rank * size : (rank + 1) * size]
