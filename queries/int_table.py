"""A hash table from 64-bit to 32-bit integers that looks up whole arrays. Immutable, so threads can share it."""

import numpy as np
import numpy.typing as npt

_EMPTY = -1
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: spreads keys over the high bits


class IntTable:
    """Open addressing with linear probing, at most half full."""

    def __init__(self, keys: npt.NDArray[np.int64], values: npt.NDArray[np.int32]) -> None:
        """Store a value for each key; keys are distinct; keys and values are 0 or more."""
        bits = max((2 * len(keys)).bit_length(), 3)
        self._shift = np.uint64(64 - bits)
        self._mask = (1 << bits) - 1
        self._keys = np.full(1 << bits, _EMPTY, dtype=np.int64)
        self._values = np.full(1 << bits, _EMPTY, dtype=np.int32)
        slots = self._home(keys)
        while len(keys):
            free = self._keys[slots] == _EMPTY
            self._keys[slots[free]] = keys[free]  # of keys that want the same slot, the last gets it
            placed = self._keys[slots] == keys
            self._values[slots[placed]] = values[placed]
            keys, values, slots = keys[~placed], values[~placed], (slots[~placed] + 1) & self._mask

    def _home(self, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return ((keys.view(np.uint64) * _MULTIPLIER) >> self._shift).astype(np.int64)

    def find(self, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """Return the value of each key, -1 for missing ones. Keys are 0 or more."""
        slots = self._home(keys)
        seen = self._keys[slots]
        values = np.where(seen == keys, self._values[slots], np.int32(_EMPTY))
        pending = np.flatnonzero((seen != keys) & (seen != _EMPTY))
        while len(pending):
            slots[pending] = (slots[pending] + 1) & self._mask
            seen = self._keys[slots[pending]]
            is_hit = seen == keys[pending]
            values[pending[is_hit]] = self._values[slots[pending[is_hit]]]
            pending = pending[~is_hit & (seen != _EMPTY)]
        return values
