"""The score that a fraction of the pairs reach, exact, in two readings and constant memory."""

import math
from collections.abc import Callable, Iterable

import numpy as np

_HALF_BITS = 16
_HALF = 1 << _HALF_BITS


def order_keys(scores: np.ndarray) -> np.ndarray:
    """Return integers in the order of finite float32 scores, (n,) uint32; -0 counts as 0."""
    bits = (scores.astype(np.float32) + np.float32(0)).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.uint32)


def _score_of(key: int) -> float:
    bits = np.array([key ^ (1 << 31) if key >> 31 else ~key & 0xFFFFFFFF], np.uint32)
    return float(bits.view(np.float32)[0])


def threshold_of_best(read: Callable[[], Iterable[np.ndarray]], fraction: float) -> float:
    """Return the score of the last of the best ceil(fraction x n) pairs; equal scores reach it too.

    `read` gives all scores, finite float32, in parts and the same each time. Without any, -inf.
    """
    high = np.zeros(_HALF, np.int64)
    for scores in read():
        high += np.bincount(order_keys(scores) >> _HALF_BITS, minlength=_HALF)
    wanted = math.ceil(fraction * int(high.sum()))
    if not wanted:
        return -math.inf
    block, above = _place(high, wanted)
    low = np.zeros(_HALF, np.int64)
    for scores in read():
        keys = order_keys(scores)
        low += np.bincount(keys[keys >> _HALF_BITS == block] & (_HALF - 1), minlength=_HALF)
    rest, _ = _place(low, wanted - above)
    return _score_of(block << _HALF_BITS | rest)


def _place(counts: np.ndarray, wanted: int) -> tuple[int, int]:
    """Return the bin, from the last down, that holds the wanted-th value, and how many values are above that bin."""
    from_above = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_above, wanted))
    return len(counts) - 1 - place, int(from_above[place - 1]) if place else 0
