"""Cut many vectors into cells around centres that an integer k-means finds, at two levels if there are many."""

import math

import numpy as np

from dedup.copies.products import halved, products

_MOST_FLAT_CELLS = 512
"""More cells are found in two steps: the cost per vector grows with the square root of their number."""
_SAMPLE_PER_CELL = 64
_SAMPLE_PER_GROUP = 1_024
_ROUNDS = 6
_BLOCK = 4_096  # vectors compared at once


def cut(vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return about `count` centres, `(cells, dimensions)` int8, and each vector's cell, int32.

    The vectors are int8 and may be mapped from a file. The same vectors give the same cells on every machine.
    """
    sample = np.ascontiguousarray(vectors[:: max(1, len(vectors) // (count * _SAMPLE_PER_CELL))])
    if count <= _MOST_FLAT_CELLS:
        centres = _centres(sample, count)
        return centres, _nearest(vectors, centres)
    return _two_levels(vectors, sample, math.isqrt(count), len(vectors) / count)


def _two_levels(vectors: np.ndarray, sample: np.ndarray, count: int, size: float) -> tuple[np.ndarray, np.ndarray]:
    """Cut the vectors into `count` groups, and each group into cells of about `size` vectors."""
    groups = _centres(sample[:: max(1, len(sample) // (count * _SAMPLE_PER_GROUP))], count)
    group, of_sample = _nearest(vectors, groups), _nearest(sample, groups)
    members = np.argsort(group, kind="stable")
    ends = np.searchsorted(group, np.arange(count + 1), sorter=members)
    cell = np.empty(len(vectors), np.int32)
    centres, cells = [], 0
    for number in range(count):
        rows = members[ends[number] : ends[number + 1]]
        if not len(rows):
            continue
        inner = sample[of_sample == number]
        if not len(inner):
            inner = vectors[rows[:1]]
        centres.append(_centres(inner, min(len(inner), max(1, round(len(rows) / size)))))
        for at in range(0, len(rows), _BLOCK):
            some = rows[at : at + _BLOCK]
            cell[some] = cells + _nearest(vectors[some], centres[-1])
        cells += len(centres[-1])
    return np.concatenate(centres), cell


def _centres(sample: np.ndarray, count: int) -> np.ndarray:
    centres = sample[np.linspace(0, len(sample) - 1, count).astype(np.int64)]
    for _ in range(_ROUNDS):
        centres = _moved(centres, sample, _nearest(sample, centres))
    return centres


def _nearest(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    columns = np.ascontiguousarray(centres.T)
    blocks = range(0, len(vectors), _BLOCK)
    near = [products(halved(vectors[at : at + _BLOCK]), columns).argmax(1).astype(np.int32) for at in blocks]
    return np.concatenate(near)


def _moved(centres: np.ndarray, sample: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Return the mean directions of the cells, as long as the old centres; a cell without members keeps its centre."""
    order = np.argsort(cell, kind="stable")
    used, first = np.unique(cell[order], return_index=True)
    sums = np.add.reduceat(sample[order], first, axis=0, dtype=np.int64)
    length = np.sqrt(np.square(sums).sum(1, keepdims=True).astype(np.float64))
    wanted = np.sqrt(np.square(sample[0].astype(np.int64)).sum())
    moved = centres.copy()
    moved[used] = np.clip(np.rint(sums / np.maximum(length, 1) * wanted), -127, 127).astype(np.int8)
    return moved
