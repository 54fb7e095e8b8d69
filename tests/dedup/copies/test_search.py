"""The search: exact among few, and measured against a scan among many."""

import itertools

import numpy as np
import pytest

from dedup.copies import cells, search
from dedup.copies.detector import scores
from dedup.copies.products import DEVIATION, halved, products, shifted
from dedup.copies.search import VectorIndex


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


def by_definition(vectors, queries, views, min_scores, most, sets):
    found = []
    first = np.cumsum([0, *sets])
    for number, row in enumerate(queries.astype(np.int64) @ vectors.T.astype(np.int64)):
        best = row.reshape(-1, views).max(1)
        nearest = []
        for (start, end), least in zip(itertools.pairwise(first), min_scores, strict=True):
            high = [image for image in range(start, end) if least is not None and best[image] >= least]
            nearest += sorted(high, key=lambda image: (-best[image], image))[:most]
        nearest.sort(key=lambda image: (-best[image], image))
        found += [(number, image, int(row.reshape(-1, views)[image].argmax()), best[image]) for image in nearest]
    return found


def listed(found):
    return list(zip(*(column.tolist() for column in found), strict=True))


def arrays(index):
    return [getattr(index, name) for name in ("vectors", "rows", "places", "starts", "centres", "sets")]


@pytest.mark.parametrize(("views", "sets"), [(1, [300]), (3, [100]), (3, [20, 0, 80])])
@pytest.mark.parametrize("most_found", [7, 1 << 20])
def test_a_scan_finds_what_the_definition_says(views, sets, most_found, monkeypatch):
    monkeypatch.setattr(search, "_MOST_FOUND", most_found)  # few: the best are taken many times
    monkeypatch.setattr(search, "_MOST_IN_BLOCK", 64)
    monkeypatch.setattr(search, "_QUERIES_AT_ONCE", 8)
    vectors, queries = as_int8(unit(300, 1)), as_int8(unit(20, 2))
    vectors[50:60] = vectors[200:210]  # equal scores
    index = VectorIndex.build(vectors, views, sets)
    assert index.is_exact
    for min_score, most in ((200, 5), (-(10**6), 2), (10**6, 3)):
        each = [min_score] * len(sets)
        for min_scores in (each, [*each[:-1], 900], [*each[:-1], None], [None] * len(sets)):
            found = index.search(queries, min_scores, most)
            assert listed(found) == by_definition(vectors, queries, views, min_scores, most, sets)


def test_of_too_many_vectors_the_first_sets_are_still_compared_with_all():
    vectors, queries = as_int8(unit(6_000, 7)), as_int8(unit(30, 8))
    sets = [40, 0, 100, 1_860]
    index = VectorIndex.build(vectors, 3, sets, searched_rows=3_000)
    assert not index.is_exact
    assert index.rows[:420].tolist() == list(range(420))
    assert np.array_equal(np.sort(index.rows[420:]), np.repeat(np.arange(420, 6_000), 2))
    for min_scores in ([100, 100, 200, None], [None, None, 150, None], [300, None, None, None]):
        found = index.search(queries, min_scores, 4)
        assert listed(found) == by_definition(vectors, queries, 3, min_scores, 4, sets) != []
    every, exact = index.search(queries, [200] * 4, 2), by_definition(vectors, queries, 3, [200] * 4, 2, sets)
    few = [row for row in exact if row[1] < 140]
    assert [row for row in listed(every) if row[1] < 140] == few
    assert len(few) < len(listed(every)) <= len(exact)


def test_an_image_in_cells_is_found_by_any_view_and_scored_by_its_best():
    images = unit(2_000, 11)
    views = np.stack([images, near(images, 0.75, 12), near(images, 0.75, 13)], axis=1)
    vectors = as_int8(views.reshape(6_000, -1))
    chosen = np.arange(0, 2_000, 40)
    queries = as_int8(near(images[chosen], 0.9, 14))
    index = VectorIndex.build(vectors, 3, searched_rows=900)
    found = listed(index.search(queries, [int(0.75 * 16**2 * 128)], 3))
    exact = by_definition(vectors, queries, 3, [int(0.75 * 16**2 * 128)], 3, [2_000])
    assert set(found) <= set(exact)
    assert len(found) >= 0.85 * len(exact) >= 0.85 * len(chosen)
    shuffled = np.random.default_rng(0).permutation(len(queries))
    again = index.search(queries[shuffled], [int(0.75 * 16**2 * 128)], 3)
    assert {(int(shuffled[row[0]]), *row[1:]) for row in listed(again)} == set(found)


def test_scores_are_exact_at_the_largest_values():
    extreme = np.full((2, 1024), 127, np.int8)
    extreme[1] = -127
    assert scores(extreme, extreme).tolist() == [
        [127 * 127 * 1024, -127 * 127 * 1024],
        [-127 * 127 * 1024, 127 * 127 * 1024],
    ]


def test_products_are_those_of_the_halves_at_all_values():
    chance = np.random.default_rng(1)
    queries = chance.integers(-127, 128, (40, 256)).astype(np.int8)
    queries[0], queries[1] = 127, -127
    vectors = chance.integers(-128, 128, (300, 256)).astype(np.int8)
    vectors[0], vectors[1], vectors[2] = 127, -128, -127
    halves = halved(queries)
    exact = vectors.astype(np.int64) @ halves.T.astype(np.int64)
    assert np.array_equal(products(shifted(vectors), halves), exact)
    assert np.abs(2 * halves.astype(np.int64) - queries).max() == 1
    length = np.sqrt(np.square(vectors.astype(np.float64)).sum(1, keepdims=True))
    error = (2 * exact - vectors.astype(np.int64) @ queries.T.astype(np.int64))[3:, 2:] / length[3:]
    assert np.std(error) == pytest.approx(DEVIATION, rel=0.1)


@pytest.mark.parametrize(("cosine", "recall"), [(0.6, 0.65), (0.8, 0.9)])
def test_cells_find_almost_what_a_scan_finds(cosine, recall):
    vectors = unit(20_000, 3)
    index = VectorIndex.build(as_int8(vectors), 1, searched_rows=6_000)
    assert 5_000 < np.diff(index.starts).mean() * index.probes < 7_500
    chosen = np.arange(0, 20_000, 50)
    queries = as_int8(near(vectors[chosen], cosine, 4))
    found = index.search(queries, [int((cosine - 0.05) * 16**2 * 128)], 1)
    assert (found.images == chosen[found.queries]).sum() / len(chosen) >= recall
    assert (found.scores == scores(queries, as_int8(vectors))[found.queries, found.images]).all()
    alone = [index.search(query[None], [int((cosine - 0.05) * 16**2 * 128)], 1) for query in queries[:20]]
    expected = [(number, *row[1:]) for number, one in enumerate(alone) for row in listed(one)]
    assert [row for row in listed(found) if row[0] < 20] == expected


def test_the_same_vectors_give_the_same_index_in_memory_and_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "_MOST_IN_BLOCK", 500)
    monkeypatch.setattr("dedup.copies.cells._MOST_FLAT_CELLS", 2)  # so there are two levels
    vectors = as_int8(unit(3_000, 5))
    vectors[:1200] = vectors[0]  # more in a cell than a block has
    built = [VectorIndex.build(vectors, 1, searched_rows=300, folder=folder) for folder in (None, tmp_path)]
    for index in (*built, VectorIndex.open(tmp_path)):
        assert all(np.array_equal(a, b) for a, b in zip(arrays(built[0]), arrays(index), strict=True))
        assert (index.views, index.probes) == (1, built[0].probes)
        assert np.array_equal(np.sort(index.rows), np.repeat(np.arange(3_000), 2))
        assert np.array_equal(index.rows[index.places], np.arange(3_000))
        assert np.diff(index.starts).max() == 500
        assert all((np.diff(index.rows[start:end]) > 0).all() for start, end in itertools.pairwise(index.starts))
        assert np.array_equal(index.vectors, shifted(vectors[index.rows]))
    queries = as_int8(unit(5, 6))
    assert listed(built[0].search(queries, [0], 3)) == listed(built[1].search(queries, [0], 3)) != []


def test_an_empty_index_finds_nothing():
    index = VectorIndex.build(np.empty((0, 64), np.int8), 1)
    assert [len(column) for column in index.search(as_int8(unit(3, 1, 64)), [0], 5)] == [0, 0, 0, 0]
    index = VectorIndex.build(as_int8(unit(9, 1, 64)), 1)
    assert [len(column) for column in index.search(np.empty((0, 64), np.int8), [0], 5)] == [0, 0, 0, 0]


def test_what_is_no_index_is_refused():
    with pytest.raises(ValueError, match="int8"):
        VectorIndex.build(np.zeros((4, 64), np.float32), 1)
    with pytest.raises(ValueError, match="3 views"):
        VectorIndex.build(np.zeros((4, 64), np.int8), 3)
    with pytest.raises(ValueError, match="2 views"):
        VectorIndex.build(np.zeros((4, 64), np.int8), 2, [3])
    with pytest.raises(ValueError, match="scores of 2 sets, not 1"):
        VectorIndex.build(np.zeros((4, 64), np.int8), 2, [1, 1]).search(np.zeros((1, 64), np.int8), [0], 3)


def test_equal_vectors_are_compared_block_by_block_too(monkeypatch):
    rows = []

    def noted(vectors: np.ndarray, halves: np.ndarray) -> np.ndarray:
        rows.append(len(vectors))
        return products(vectors, halves)

    monkeypatch.setattr(cells, "_MOST_FLAT_CELLS", 4)
    monkeypatch.setattr(cells, "products", noted)
    centres, cell = cells.cut(np.full((3 * cells._BLOCK, 64), 9, np.int8), 20)
    assert cell[:, 0].max() < len(centres)
    assert max(rows) <= cells._BLOCK
