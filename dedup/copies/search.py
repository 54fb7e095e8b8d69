"""Find the images with the nearest descriptors: exactly in a small index, by coarse cells and sign bits in a large one.

Vectors are int8, and all scores are exact integers. A small index is scanned. A large one is cut into cells around
centres that an integer k-means finds, at two levels if there are many; a query looks into the nearest cells, compares
sign bits there (32 bytes a vector), and computes the exact score of what is near enough. docs/copies.md has the recall
against a scan.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np

from dedup.copies.detector import scores

SCAN_ROWS = 65_536
"""Up to this number of vectors a search compares all of them."""
PROBES = 48
"""Cells searched per query."""

_ROWS_IN_CELL = 1_024
_MOST_FLAT_CELLS = 512
"""More cells are found in two steps: the cost per vector grows with the square root of their number."""
_SAMPLE_PER_CELL = 32
_ROUNDS = 6
_BLOCK = 4_096  # vectors compared at once
_QUERIES = 64
_SLACK_DEVIATIONS = (
    3.0  # standard deviations of the number of differing sign bits at a cosine: 99.9 % of the pairs pass
)


class Candidates(NamedTuple):
    """Pairs above a score, by query, then falling score; arrays of one length."""

    queries: np.ndarray  # int64
    images: np.ndarray  # int64, numbers in the index
    views: np.ndarray  # int64, the view of the best score
    scores: np.ndarray  # int32


@dataclass(frozen=True)
class Cells:
    """The partition of a large index: its vectors in the order of their cells."""

    centres: np.ndarray  # (cells, dimensions) int8
    starts: np.ndarray  # (cells + 1,) int64
    rows: np.ndarray  # (n,) int32: row of the vectors
    signs: np.ndarray  # (n, dimensions / 64) uint64, in the order of `rows`


@dataclass(frozen=True)
class VectorIndex:
    """Descriptors of images, `views` of each; make one with `build`."""

    vectors: np.ndarray  # (images * views, dimensions) int8; row p * views + v is view v of image p
    views: int
    cells: Cells | None

    @classmethod
    def build(cls, vectors: np.ndarray, views: int, *, scan_rows: int = SCAN_ROWS) -> Self:
        """Index vectors, which may be mapped from a file; the same vectors give the same index on every machine."""
        if vectors.dtype != np.int8 or vectors.ndim != 2 or vectors.shape[1] % 64 or len(vectors) % views:
            raise ValueError(
                f"need int8 vectors of {views} views and 64 n dimensions, not {vectors.shape} {vectors.dtype}"
            )
        return cls(vectors, views, None if len(vectors) <= scan_rows else _cut(vectors))

    def __len__(self) -> int:
        return len(self.vectors) // self.views

    def search(self, queries: np.ndarray, min_score: int, most: int) -> Candidates:
        """Return, per query, up to `most` images that score `min_score` or more, each with its best view."""
        empty = Candidates(*(np.empty(0, kind) for kind in (np.int64, np.int64, np.int64, np.int32)))
        found = []
        for at in range(0, len(queries), _QUERIES):
            block = queries[at : at + _QUERIES]
            # of a block at once: a product with one vector would read all the floats again
            values = scores(block, self._floats)
            near = [self._near(*pair, min_score) for pair in zip(block, values, strict=True)]
            found += [self._best(at + number, *one, most) for number, one in enumerate(near)]
        return Candidates(*(np.concatenate(column) for column in zip(empty, *found, strict=True)))

    def _near(self, query: np.ndarray, values: np.ndarray, min_score: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (rows, scores) of the vectors that reach `min_score`; `values` are the scores with `_floats`."""
        if self.cells is not None:
            return _probe(self.vectors, self.cells, query, values, min_score)
        rows = np.flatnonzero(values >= min_score)
        return rows, values[rows]

    @cached_property
    def _floats(self) -> np.ndarray:
        """Return what every query is compared with: all vectors of a small index, the centres of a large one."""
        return (self.vectors if self.cells is None else self.cells.centres).astype(np.float32)

    def _best(self, number: int, rows: np.ndarray, values: np.ndarray, most: int) -> Candidates:
        images, views = np.divmod(rows, self.views)
        order = np.lexsort((views, images, -values))
        _, first = np.unique(images[order], return_index=True)
        best = order[np.sort(first)][:most]
        return Candidates(np.full(len(best), number, np.int64), images[best], views[best], values[best])


def signs(vectors: np.ndarray) -> np.ndarray:
    """Return the sign bits of int8 vectors, `(n, dimensions / 64)` uint64."""
    return np.packbits(vectors > 0, axis=1).view(np.uint64)


def _probe(
    vectors: np.ndarray, cells: Cells, query: np.ndarray, near: np.ndarray, min_score: int
) -> tuple[np.ndarray, np.ndarray]:
    probes = np.sort(np.argpartition(-near, min(PROBES, len(near) - 1))[:PROBES])
    bounds = list(zip(cells.starts[probes], cells.starts[probes + 1], strict=True))
    wanted, most = signs(query[None]), _most_bits(query, min_score)
    coded = np.concatenate([cells.signs[start:end] for start, end in bounds])
    differing = np.bitwise_count(coded ^ wanted).sum(1, dtype=np.uint16)
    rows = np.concatenate([cells.rows[start:end] for start, end in bounds])[differing <= most].astype(np.int64)
    values = scores(query[None], vectors[rows])[0]
    return rows[values >= min_score], values[values >= min_score]


def _most_bits(query: np.ndarray, min_score: int) -> int:
    """Return the maximum of differing sign bits at this score, exceeded by one pair in a thousand."""
    length = float(np.square(query.astype(np.int64)).sum())
    share = np.arccos(np.clip(min_score / length, -1, 1)) / np.pi
    return int(len(query) * share + _SLACK_DEVIATIONS * np.sqrt(len(query) * share * (1 - share)))


def _cut(vectors: np.ndarray) -> Cells:
    count = max(1, len(vectors) // _ROWS_IN_CELL)
    step = max(1, len(vectors) // (count * _SAMPLE_PER_CELL))
    sample = np.ascontiguousarray(vectors[::step])
    if count <= _MOST_FLAT_CELLS:
        centres = _centres(sample, count)
        cell = _nearest(vectors, centres)
    else:
        centres, cell = _two_levels(vectors, sample, math.isqrt(count))
    rows = np.argsort(cell, kind="stable").astype(np.int32)
    starts = np.searchsorted(cell, np.arange(len(centres) + 1), sorter=rows)
    coded = np.empty((len(rows), vectors.shape[1] // 64), np.uint64)
    for at in range(0, len(rows), _BLOCK):
        coded[at : at + _BLOCK] = signs(vectors[rows[at : at + _BLOCK]])
    return Cells(centres, starts, rows, coded)


def _two_levels(vectors: np.ndarray, sample: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut the vectors into `count` groups, and each group into cells; return all centres, and each vector's cell."""
    groups = _centres(sample, count)
    group, of_sample = _nearest(vectors, groups), _nearest(sample, groups)
    cell = np.empty(len(vectors), np.int32)
    centres, cells = [], 0
    for number in range(count):
        members = np.flatnonzero(group == number)
        inner = sample[of_sample == number]
        if len(members) and not len(inner):
            inner = vectors[members[:1]]
        if len(members):
            centres.append(_centres(inner, min(len(inner), max(1, len(members) // _ROWS_IN_CELL))))
            cell[members] = cells + _nearest(vectors[members], centres[-1])
            cells += len(centres[-1])
    return np.concatenate(centres), cell


def _centres(sample: np.ndarray, count: int) -> np.ndarray:
    centres = sample[np.linspace(0, len(sample) - 1, count).astype(np.int64)]
    for _ in range(_ROUNDS):
        centres = _moved(centres, sample, _nearest(sample, centres))
    return centres


def _nearest(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    floats = centres.astype(np.float32)
    blocks = range(0, len(vectors), _BLOCK)
    return np.concatenate([scores(vectors[at : at + _BLOCK], floats).argmax(1).astype(np.int32) for at in blocks])


def _moved(centres: np.ndarray, sample: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Return the mean directions of the cells, as long as the old centres; a cell without members keeps its centre."""
    sums = np.zeros(centres.shape, np.int64)
    np.add.at(sums, cell, sample)
    length = np.sqrt(np.square(sums).sum(1, keepdims=True).astype(np.float64))
    wanted = np.sqrt(np.square(sample[0].astype(np.int64)).sum())
    moved = np.clip(np.rint(sums / np.maximum(length, 1) * wanted), -127, 127).astype(np.int8)
    return np.where(length > 0, moved, centres)
