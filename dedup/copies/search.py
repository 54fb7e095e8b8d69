"""Find the images with the nearest descriptors, for thousands of queries at once.

Vectors are int8. They lie in blocks of some thousand, and each block is compared with all queries that look into it: by
fast integer products that are nearly right (`products.py`), then exactly where those are high enough. Up to
`SEARCHED_ROWS` vectors, queries look into every block. Of more, only the first sets are compared in this way, up to a
quarter of that; the others are cut into cells (`cells.py`), and a query looks into the nearest ones, so that it is
compared with that many vectors in all. Each vector lies in two cells. If any view of an image is somewhat near there,
its other views, which may lie in other cells, are compared too. docs/copies.md has the recall against a scan.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from dedup.copies.cells import cut
from dedup.copies.detector import scores
from dedup.copies.products import DEVIATION, SHIFT, halved, products, shifted
from dedup.mapped_arrays import create_array

SEARCHED_ROWS = 300_000
"""Vectors that are compared with a query, about."""

_NEAR = 0.8  # of a set's minimum score: views in cells that are as near lead to the others
_LOOKED_AT = 3  # times the images that are wanted: so many of each set in cells have their other views compared

_ROWS_IN_CELL = 512  # that have it as the nearest; as many have it as the second
_MOST_IN_BLOCK = 4_096
_QUERIES_AT_ONCE = 8_192
_QUERIES_IN_PRODUCT = 256  # products that fit the processor's cache
_MOST_FOUND = 1 << 22  # pairs held before the best of each query are taken
_SLACK_DEVIATIONS = 6.0
_DENSE = 0.02  # share of pairs from which all of a product are scored exactly
_SCORED_AT_ONCE = 1 << 12  # pairs, which fit the processor's cache as floats
_NEVER = 1 << 24  # above every score
_FILES = ("vectors", "rows", "places", "starts", "centres", "sets")


class Candidates(NamedTuple):
    """Pairs above a score, by query, then falling score, then image; arrays of one length."""

    queries: np.ndarray  # int64
    images: np.ndarray  # int64, numbers in the index
    views: np.ndarray  # int64, the view of the best score
    scores: np.ndarray  # int32


@dataclass(frozen=True)
class VectorIndex:
    """Descriptors of the images of several sets, `views` of each; make one with `build`, or `open` one."""

    vectors: np.ndarray  # (m, dimensions) uint8: block after block, as `shifted` returns them; twice in cells
    rows: np.ndarray  # (m,) int32: p * views + v is view v of image p; they ascend in each block
    places: np.ndarray  # (n,) int32: one place in `vectors` where a row is
    starts: np.ndarray  # (blocks + 1,) int64
    centres: np.ndarray  # (cells, dimensions) int8, of the last blocks; queries look into all the blocks before them
    sets: np.ndarray  # (sets + 1,) int64: the first image of each set
    views: int
    probes: int  # cells that a query looks into

    @classmethod
    def build(
        cls,
        vectors: np.ndarray,
        views: int,
        images: Sequence[int] | None = None,
        *,
        folder: Path | None = None,
        searched_rows: int = SEARCHED_ROWS,
    ) -> Self:
        """Index int8 vectors, which may be mapped from a file; the same vectors give the same index everywhere.

        Args:
            vectors: Unit vectors times a scale, `(n, dimensions)`; row p * views + v is view v of image p.
            views: Views of an image.
            images: The number of images of each set, one set after another; default: all are of one set. The first
                sets are searched more thoroughly than the last, so small ones should come first.
            folder: Write the index there and map its files; default: hold it in memory.
            searched_rows: Vectors compared with a query, about.
        """
        sets = np.cumsum([0, *(images if images is not None else [len(vectors) // views])])
        if vectors.dtype != np.int8 or vectors.ndim != 2 or vectors.shape[1] % 64 or len(vectors) != views * sets[-1]:
            raise ValueError(
                f"need int8 vectors of {views} views and 64 n dimensions, not {vectors.shape} {vectors.dtype}"
            )
        scanned = _scanned(sets * views, searched_rows)
        rows, starts, centres = _blocks(vectors, scanned)
        ordered: np.ndarray
        shape = (len(rows), vectors.shape[1])
        if folder is None:
            ordered = np.empty(shape, np.uint8)
        else:
            ordered = create_array(folder / "vectors.npy", np.uint8, shape)
        for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            ordered[start:end] = shifted(vectors[rows[start:end]])
        places = np.empty(len(vectors), np.int32)
        places[rows] = np.arange(len(rows), dtype=np.int32)
        probes = -(-(searched_rows - scanned) * len(centres) // max(1, len(rows) - scanned))
        index = cls(ordered, rows, places, starts, centres, sets, views, probes)
        if folder is None:
            return index
        for name in _FILES[1:]:
            np.save(folder / f"{name}.npy", getattr(index, name))
        np.save(folder / "settings.npy", np.array([views, probes]))
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Map the files that `build` wrote; the processes of a machine share their pages."""
        vectors, rows, places, starts, centres, sets = (
            np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in _FILES
        )
        views, probes = np.load(folder / "settings.npy").tolist()
        return cls(vectors, rows, places, starts, centres, sets, views, probes)

    def __len__(self) -> int:
        return len(self.places) // self.views

    @property
    def is_exact(self) -> bool:
        """Return whether queries are compared with all vectors, so that what is found of a set is the set's alone."""
        return not len(self.centres)

    def search(self, queries: np.ndarray, min_scores: Sequence[int | None], most: int) -> Candidates:
        """Return, per query and set, up to `most` images with the set's minimum score or more, each with its best view.

        A set whose minimum is None is not searched.
        """
        least = np.array([_NEVER if score is None else score for score in min_scores], np.int64)
        if len(least) != len(self.sets) - 1:
            raise ValueError(f"need the minimum scores of {len(self.sets) - 1} sets, not {len(least)}")
        found = []
        for at in range(0, max(1, len(queries)), _QUERIES_AT_ONCE):
            best = _Batch(self, queries[at : at + _QUERIES_AT_ONCE], least, most).run()
            found.append(best._replace(queries=best.queries + at))
        return Candidates(*(np.concatenate(column) for column in zip(*found, strict=True)))

    def visits(self, queries: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yield each block that some of the queries look into, and the numbers of these queries."""
        scanned = len(self.starts) - 1 - len(self.centres)
        yield from ((block, np.arange(len(queries))) for block in range(scanned))
        if self.is_exact:
            return
        centres, parts = halved(self.centres), range(0, len(queries), _QUERIES_IN_PRODUCT)
        pairs = [self._nearest(queries[at : at + _QUERIES_IN_PRODUCT], centres) + np.array([at, 0]) for at in parts]
        visiting, visited = np.concatenate([np.empty((0, 2), np.int64), *pairs]).T
        order = np.argsort(visited, kind="stable")
        ends = np.searchsorted(visited[order], np.arange(len(self.centres) + 1))
        for cell in np.flatnonzero(np.diff(ends)).tolist():
            yield scanned + cell, visiting[order[ends[cell] : ends[cell + 1]]]

    def _nearest(self, queries: np.ndarray, centres: np.ndarray) -> np.ndarray:
        """Return (query, cell) of the nearest centres; more than `probes` of a query if several are equally near."""
        near = products(shifted(queries), centres)
        last = near.shape[1] - self.probes
        return np.argwhere(near >= np.partition(near, last, axis=1)[:, last, None])


class _Batch:
    """A search: the best pairs found so far, and the least score that can still be among them."""

    def __init__(self, index: VectorIndex, queries: np.ndarray, min_scores: np.ndarray, most: int) -> None:
        self._index, self._queries, self._most = index, np.ascontiguousarray(queries), most
        self._floats, self._halves = queries.astype(np.float32), halved(self._queries)
        longest = np.sqrt(np.square(self._floats).sum(1).max(initial=0))
        self._slack = int(_SLACK_DEVIATIONS * DEVIATION * longest) + 1
        self._scanned = int(index.starts[len(index.starts) - 1 - len(index.centres)])  # rows
        in_cells = index.sets[1:] * index.views > self._scanned
        lower = in_cells & (min_scores > 0) & (min_scores < _NEVER)
        self._min_scores, self._near_scores = min_scores, np.where(lower, min_scores * _NEAR, min_scores).astype(int)
        self._looked_at = np.where(in_cells, _LOOKED_AT * most, most)  # images of each set
        searched = np.minimum(np.diff(index.sets), self._looked_at)[min_scores < _NEVER]
        self._enough = max(1, int(searched.sum()))  # images of all sets
        self._least = np.full(len(queries), self._near_scores.min(initial=_NEVER), np.int64)
        self._found = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64))]  # queries, scores, rows
        self._held = 0

    def run(self) -> Candidates:
        index = self._index
        for block, numbers in index.visits(self._queries):
            start, end = index.starts[block : block + 2].tolist()
            rows = index.rows[start:end]
            first, last = self._set_of(rows[[0, -1]])
            least = self._near_scores[first : last + 1].min()
            if least == _NEVER:
                continue
            for at in range(0, len(numbers), _QUERIES_IN_PRODUCT):
                some = numbers[at : at + _QUERIES_IN_PRODUCT]
                self._compare(some, index.vectors[start:end], rows, least, exactly=start < self._scanned)
        self._keep_best(self._looked_at)
        self._look_at_other_views()
        queries, values, rows = self._found[0]
        return Candidates(queries, rows // index.views, rows % index.views, values.astype(np.int32))

    def _set_of(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._index.sets, rows // self._index.views, side="right") - 1

    def _compare(
        self, numbers: np.ndarray, vectors: np.ndarray, rows: np.ndarray, least: np.ndarray, *, exactly: bool
    ) -> None:
        """Add the pairs of some queries and a block that score at least `least`."""
        near = products(vectors, self._halves[numbers])
        limits = ((np.maximum(self._least[numbers], least) - (self._slack if exactly else 0)) // 2).astype(np.int32)
        hits = np.flatnonzero(near >= limits.min())  # one limit for all is compared twice as fast
        if len(hits) > _DENSE * near.size:
            hits = np.flatnonzero(near >= limits)
        places, queries = np.divmod(hits, len(numbers))
        if not exactly:
            values = 2 * near.ravel()[hits]
        elif len(hits) > _DENSE * near.size:
            values = scores(_floats(vectors), self._floats[numbers])[places, queries]
        else:
            values = _scores_of_pairs(self._floats[numbers], queries, vectors, places)
        queries, rows = numbers[queries], rows[places]
        high = np.flatnonzero(values >= np.maximum(self._least[queries], self._near_scores[self._set_of(rows)]))
        self._found.append((queries[high], values[high].astype(np.int64), rows[high].astype(np.int64)))
        self._held += len(high)
        if self._held > _MOST_FOUND:
            self._keep_best(self._looked_at)

    def _keep_best(self, most: np.ndarray) -> None:
        """Drop the pairs that others exceed; where each set has enough, the last one is the new least score."""
        queries, values, rows = _ordered(*(np.concatenate(column) for column in zip(*self._found, strict=True)))
        images = rows // self._index.views
        first = np.unique(queries * len(self._index) + images, return_index=True)[1]
        first.sort()
        of_set = self._set_of(rows[first])
        kept = first[_among_first(queries[first] * len(self._index.sets) + of_set, most[of_set])]
        self._found = [(queries[kept], values[kept], rows[kept])]
        self._held = len(kept)
        count = np.bincount(queries[kept], minlength=len(self._least))
        full = np.flatnonzero(count == self._enough)
        self._least[full] = values[kept][np.cumsum(count)[full] - 1]

    def _look_at_other_views(self) -> None:
        """Compare all views of the images that were found in cells, and keep the best images of each set."""
        index = self._index
        queries, values, rows = self._found[0]
        in_cells = rows >= self._scanned
        views = (rows[in_cells] // index.views)[:, None] * index.views + np.arange(index.views)
        repeated = np.repeat(queries[in_cells], index.views)
        every = _scores_of_pairs(self._floats, repeated, index.vectors, index.places[views.ravel()])
        high = np.flatnonzero(every >= self._min_scores[self._set_of(views.ravel())])
        self._found = [
            (queries[~in_cells], values[~in_cells], rows[~in_cells]),
            (repeated[high], every[high].astype(np.int64), views.ravel()[high]),
        ]
        self._keep_best(np.full(len(self._min_scores), self._most))


def _floats(vectors: np.ndarray) -> np.ndarray:
    """Return `shifted` vectors as floats, which are integers."""
    return vectors.astype(np.float32) - np.float32(SHIFT)


def _scores_of_pairs(queries: np.ndarray, numbers: np.ndarray, vectors: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the score of each pair of a query and a `shifted` vector, int32; exact, as in `scores`."""
    found = np.empty(len(numbers), np.int32)
    for at in range(0, len(numbers), _SCORED_AT_ONCE):
        some = slice(at, at + _SCORED_AT_ONCE)
        found[some] = np.einsum("pd,pd->p", queries[numbers[some]], _floats(vectors[places[some]]))
    return found


def _ordered(queries: np.ndarray, values: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sort by query, then falling score, then row; as single integers, which sort ten times as fast as three keys."""
    if not len(queries):
        return queries, values, rows
    top = int(values.max())
    of_row, of_value = int(rows.max()).bit_length(), (top - int(values.min())).bit_length()
    assert of_row + of_value + int(queries.max()).bit_length() < 64, "vectors of unit length need 61 bits at most"
    keys = np.sort((queries << (of_value + of_row)) | ((top - values) << of_row) | rows)
    return (
        keys >> (of_value + of_row),
        top - ((keys >> of_row) & ((1 << of_value) - 1)),
        keys & ((1 << of_row) - 1),
    )


def _among_first(groups: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Return the places of the first members of each group, in order; `most` has how many, for each member."""
    order = np.argsort(groups, kind="stable")
    grouped = groups[order]
    rank = np.arange(len(groups)) - np.searchsorted(grouped, grouped)
    return np.sort(order[rank < most[order]])


def _scanned(sets: np.ndarray, searched_rows: int) -> int:
    """Return how many of the first rows all queries are compared with; `sets` has the first row of each set."""
    if sets[-1] <= searched_rows:
        return int(sets[-1])
    return int(sets[sets <= searched_rows // 4].max())


def _blocks(vectors: np.ndarray, scanned: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rows block by block, where each block begins (and the end), and the centres of the cells."""
    first = np.arange(scanned, dtype=np.int32)
    starts = np.array([*range(0, scanned, _MOST_IN_BLOCK), scanned])
    if scanned == len(vectors):
        return first, starts, np.empty((0, vectors.shape[1]), np.int8)
    centres, cell = cut(vectors[scanned:], -(-(len(vectors) - scanned) // _ROWS_IN_CELL))
    order = np.sort((cell.astype(np.int64) * len(vectors) + np.arange(len(cell))[:, None]).ravel())
    order = order[np.searchsorted(order, 0) :]
    ends = np.searchsorted(order, np.arange(len(centres) + 1) * len(vectors))
    pieces = [
        (number, start)
        for number, (begin, end) in enumerate(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True))
        for start in range(begin, end, _MOST_IN_BLOCK)
    ]
    of_cell = np.array([number for number, _ in pieces])
    starts = np.concatenate([starts[:-1], scanned + np.array([*(start for _, start in pieces), len(order)])])
    rows = np.concatenate([first, (scanned + order % len(vectors)).astype(np.int32)])
    return rows, starts, centres[of_cell]
