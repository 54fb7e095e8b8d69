"""Cut many vectors into cells around centres that an integer k-means finds, at two levels if there are many.

Each vector is in two cells, those of the nearest centres: a vector near their border is then found from both sides.
"""

import math

import numpy as np

from dedup.copies.products import halved, products, shifted

_MOST_FLAT_CELLS = 512
"""More cells are found in two steps: the cost per vector grows with the square root of their number."""
_SAMPLE_PER_CELL = 64
_SAMPLE_PER_GROUP = 1_024
_ROUNDS = 6
_BLOCK = 4_096  # vectors compared at once
_GROUPS_LOOKED_INTO = 6  # for a vector's cells: the nearest cells are in one of them for nearly all vectors
_ASSIGNED_AT_ONCE = 65_536
_NONE = -(2**31)


def cut(vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return about `count` centres, `(cells, dimensions)` int8, and each vector's two cells, `(n, 2)` int32.

    The vectors are int8 and may be mapped from a file. A second cell of -1 is none. The same vectors give the same
    cells on every machine.
    """
    sample = np.ascontiguousarray(vectors[:: max(1, len(vectors) // (count * _SAMPLE_PER_CELL))])
    if count <= _MOST_FLAT_CELLS:
        centres = _centres(sample, count)
        return centres, _nearest_some(vectors, centres, 2)[0]
    several = math.isqrt(count)
    groups = _centres(sample[:: max(1, len(sample) // (several * _SAMPLE_PER_GROUP))], several)
    inner = _centres_of_groups(sample, groups, len(sample) / count)
    blocks = range(0, len(vectors), _ASSIGNED_AT_ONCE)
    cells = [_nearest_in_groups(vectors[at : at + _ASSIGNED_AT_ONCE], groups, inner) for at in blocks]
    return np.concatenate(inner), np.concatenate(cells)


def _centres_of_groups(sample: np.ndarray, groups: np.ndarray, size: float) -> list[np.ndarray]:
    """Cut each group into cells of about `size` vectors of the sample; return their centres."""
    group = _nearest(sample, groups)
    found = []
    for number in range(len(groups)):
        members = sample[group == number]
        if not len(members):
            members = groups[number : number + 1]
        found.append(_centres(members, min(len(members), max(1, round(len(members) / size)))))
    return found


def _nearest_in_groups(vectors: np.ndarray, groups: np.ndarray, inner: list[np.ndarray]) -> np.ndarray:
    """Return the nearest two cells of each vector in its nearest groups, `(n, 2)` int32."""
    group = _nearest_some(vectors, groups, _GROUPS_LOOKED_INTO)[0].ravel()
    members = np.argsort(group, kind="stable")
    ends = np.searchsorted(group[members], np.arange(len(groups) + 1))
    members //= _GROUPS_LOOKED_INTO
    cell, near = np.full((len(vectors), 2), -1, np.int32), np.full((len(vectors), 2), _NONE, np.int32)
    first = 0
    for number, centres in enumerate(inner):
        some = members[ends[number] : ends[number + 1]]
        numbers, values = _nearest_some(vectors[some], centres, 2)
        numbers = np.concatenate([cell[some], np.where(numbers < 0, -1, numbers + first)], axis=1)
        values = np.concatenate([near[some], values], axis=1)
        best = np.argsort(-values.astype(np.int64), axis=1, kind="stable")[:, :2]
        cell[some], near[some] = np.take_along_axis(numbers, best, 1), np.take_along_axis(values, best, 1)
        first += len(centres)
    return cell


def _nearest_some(vectors: np.ndarray, centres: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of each vector's `most` nearest centres, -1 for none, and their products, `(n, most)`."""
    numbers = np.full((len(vectors), most), -1, np.int32)
    values = np.full((len(vectors), most), _NONE, np.int32)
    halves = halved(centres)
    for at in range(0, len(vectors), _BLOCK):
        near = products(shifted(vectors[at : at + _BLOCK]), halves)
        block, every = slice(at, at + len(near)), np.arange(len(near))
        for place in range(min(most, len(centres))):
            best = near.argmax(1)
            numbers[block, place], values[block, place] = best, near[every, best]
            near[every, best] = _NONE
    return numbers, values


def _centres(sample: np.ndarray, count: int) -> np.ndarray:
    centres = sample[np.linspace(0, len(sample) - 1, count).astype(np.int64)]
    for _ in range(_ROUNDS):
        centres = _moved(centres, sample, _nearest(sample, centres))
    return centres


def _nearest(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    halves = halved(centres)
    blocks = range(0, len(vectors), _BLOCK)
    near = [products(shifted(vectors[at : at + _BLOCK]), halves).argmax(1).astype(np.int32) for at in blocks]
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
