"""The search: exact among few, and measured against a scan among many."""

import numpy as np
import pytest

from dedup.copies.detector import scores
from dedup.copies.search import VectorIndex, signs


def unit(count: int, seed: int, dimensions: int = 128) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, dimensions))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def as_int8(vectors: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(vectors * 16 * vectors.shape[1] ** 0.5), -127, 127).astype(np.int8)


def near(vectors: np.ndarray, cosine: float, seed: int) -> np.ndarray:
    other = unit(len(vectors), seed, vectors.shape[1])
    other -= (other * vectors).sum(1, keepdims=True) * vectors
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    return cosine * vectors + np.sqrt(1 - cosine**2) * other


def by_definition(vectors, queries, views, min_score, most):
    found = []
    for number, row in enumerate(queries.astype(np.int64) @ vectors.T.astype(np.int64)):
        best = row.reshape(-1, views).max(1)
        order = sorted(np.flatnonzero(best >= min_score), key=lambda picture: (-best[picture], picture))[:most]
        found += [(number, picture, int(row.reshape(-1, views)[picture].argmax()), best[picture]) for picture in order]
    return found


@pytest.mark.parametrize("views", [1, 3])
def test_a_scan_finds_what_the_definition_says(views):
    vectors, queries = as_int8(unit(300, 1)), as_int8(unit(20, 2))
    for min_score, most in ((200, 5), (-(10**6), 2), (10**6, 3)):
        found = VectorIndex.build(vectors, views).search(queries, min_score, most)
        assert list(zip(*map(list, found), strict=True)) == by_definition(vectors, queries, views, min_score, most)


def test_scores_are_exact_at_the_largest_values():
    extreme = np.full((2, 1024), 127, np.int8)
    extreme[1] = -127
    assert scores(extreme, extreme).tolist() == [
        [127 * 127 * 1024, -127 * 127 * 1024],
        [-127 * 127 * 1024, 127 * 127 * 1024],
    ]


@pytest.mark.parametrize(("cosine", "recall"), [(0.6, 0.95), (0.8, 0.99)])
def test_cells_find_almost_what_a_scan_finds(cosine, recall):
    vectors = unit(6_000, 3)
    index = VectorIndex.build(as_int8(vectors), 1, scan_rows=1_000)
    assert index.cells is not None
    chosen = np.arange(0, 6_000, 30)
    found = index.search(as_int8(near(vectors[chosen], cosine, 4)), int((cosine - 0.05) * 16**2 * 128), 1)
    hits = found.images == chosen[found.queries]
    assert hits.sum() / len(chosen) >= recall
    exact = scores(as_int8(near(vectors[chosen], cosine, 4)), index.vectors)
    assert (found.scores == exact[found.queries, found.images]).all()


def test_the_same_vectors_give_the_same_cells():
    vectors = as_int8(unit(3_000, 5))
    first, second = (VectorIndex.build(vectors, 1, scan_rows=10).cells for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(vars(first).values(), vars(second).values(), strict=True))
    assert np.array_equal(np.sort(first.rows), np.arange(3_000))


def test_an_empty_index_finds_nothing():
    found = VectorIndex.build(np.empty((0, 64), np.int8), 1).search(as_int8(unit(3, 1, 64)), 0, 5)
    assert [len(column) for column in found] == [0, 0, 0, 0]


def test_sign_bits():
    vectors = np.zeros((1, 64), np.int8)
    vectors[0, [0, 9]] = 3
    assert np.bitwise_count(signs(vectors)).sum() == 2


def test_what_is_no_index_is_refused():
    with pytest.raises(ValueError, match="int8"):
        VectorIndex.build(np.zeros((4, 64), np.float32), 1)
    with pytest.raises(ValueError, match="3 views"):
        VectorIndex.build(np.zeros((4, 64), np.int8), 3)
