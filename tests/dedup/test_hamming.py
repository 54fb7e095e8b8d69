import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import dedup.hamming
from dedup.hamming import (
    EXACT_BITS,
    HammingIndex,
    Matches,
    all_band_keys,
    band_keys,
    distances_bits,
    search_by_scan,
)

HASHES = hnp.arrays(np.uint8, st.tuples(st.integers(0, 30), st.just(32)), elements=st.sampled_from([0, 1, 3, 255]))


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the tables however small the index is, in blocks small enough to need several."""
    monkeypatch.setattr(dedup.hamming, "SCANNED_ROWS", 0)
    monkeypatch.setattr(dedup.hamming, "_CANDIDATES", 7)
    return


def random_hashes(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 32), dtype=np.uint8)


def with_errors(hashes: np.ndarray, bits: int, seed: int = 0) -> np.ndarray:
    """Flip `bits` different random bits of each hash."""
    order = np.random.default_rng(seed).random((len(hashes), 256)).argsort(axis=1)
    return np.packbits(np.unpackbits(hashes, axis=1) ^ (order < bits), axis=1)


def as_sets(matches: Matches) -> list[tuple[int, int, int]]:
    return list(zip(*(column.tolist() for column in matches), strict=True))


def naive(hashes: np.ndarray, queries: np.ndarray, max_distance_bits: int) -> list[tuple[int, int, int]]:
    found = []
    for i, query in enumerate(queries):
        for j, known in enumerate(hashes):
            distance = (int.from_bytes(query.tobytes()) ^ int.from_bytes(known.tobytes())).bit_count()
            if distance <= max_distance_bits:
                found.append((i, j, distance))
    return found


@given(HASHES, HASHES, st.integers(0, 31))
def test_a_scan_finds_what_a_loop_finds(hashes: np.ndarray, queries: np.ndarray, max_distance_bits: int) -> None:
    assert as_sets(search_by_scan(hashes, queries, max_distance_bits)) == naive(hashes, queries, max_distance_bits)


@given(HASHES, HASHES, st.integers(0, EXACT_BITS))
def test_tables_are_exact_up_to_15_bits(hashes: np.ndarray, queries: np.ndarray, max_distance_bits: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dedup.hamming, "SCANNED_ROWS", 0)
        patch.setattr(dedup.hamming, "_CANDIDATES", 7)
        found = HammingIndex.build(hashes).search(queries, max_distance_bits)
    assert as_sets(found) == naive(hashes, queries, max_distance_bits)


@pytest.mark.parametrize("bits", [0, 1, 14, 15])
def test_no_copy_within_15_bits_is_missed(bits: int) -> None:
    hashes = random_hashes(20_000, 1)
    index = HammingIndex.build(hashes)
    assert index.buckets is not None
    found = index.search(with_errors(hashes[:2_000], bits), bits)
    assert as_sets(found) == [(i, i, bits) for i in range(2_000)]


@pytest.mark.parametrize("bits", [16, 20, 24, 28, 31])
def test_99_percent_of_copies_within_31_bits_are_found(bits: int) -> None:
    hashes = random_hashes(20_000, 2)
    found = HammingIndex.build(hashes).search(with_errors(hashes[:4_000], bits), 31)
    assert set(zip(found.query_rows.tolist(), found.index_rows.tolist(), strict=True)) <= {(i, i) for i in range(4_000)}
    assert len(found.query_rows) >= 0.985 * 4_000


@pytest.mark.usefixtures("tables")
def test_every_match_of_the_tables_is_true_and_reported_once() -> None:
    hashes = np.concatenate([random_hashes(40, 3), np.zeros((5, 32), np.uint8)])
    queries = with_errors(hashes, 20, seed=4)
    found = as_sets(HammingIndex.build(hashes).search(queries, 31))
    assert set(found) <= set(as_sets(search_by_scan(hashes, queries, 31)))
    assert found == sorted(set(found))


def test_a_small_index_misses_nothing_at_31_bits() -> None:
    hashes = random_hashes(3_000, 5)
    found = HammingIndex.build(hashes).search(with_errors(hashes, 31), 31)
    assert as_sets(found) == [(i, i, 31) for i in range(3_000)]


def test_identical_hashes_all_match() -> None:
    hashes = np.zeros((9_000, 32), np.uint8)
    found = HammingIndex.build(hashes).search(hashes[:3], 0)
    assert found.index_rows.tolist() == list(range(9_000)) * 3


@pytest.mark.parametrize("size", [0, 5, 9_000])
def test_empty_sides(size: int) -> None:
    empty = np.empty((0, 32), np.uint8)
    index = HammingIndex.build(random_hashes(size, 6))
    assert len(index) == size
    assert as_sets(index.search(empty, 31)) == []
    assert as_sets(HammingIndex.build(empty).search(random_hashes(3, 7), 31)) == []


@given(HASHES)
def test_bands_are_the_rows_and_columns_of_a_16x16_grid(hashes: np.ndarray) -> None:
    grid = np.unpackbits(hashes, axis=1).reshape(-1, 16, 16)
    weights = 1 << np.arange(15, -1, -1)
    rows, columns = grid @ weights, grid.transpose(0, 2, 1) @ weights
    assert np.array_equal(band_keys(hashes), rows)
    assert np.array_equal(all_band_keys(hashes), np.concatenate([rows, columns], axis=1))


def test_distances_are_counted_in_bits() -> None:
    hashes = random_hashes(50, 8)
    assert distances_bits(hashes, with_errors(hashes, 9)).tolist() == [9] * 50
    assert distances_bits(hashes[:1], ~hashes[:1]).tolist() == [256]


@pytest.mark.parametrize("bad", [np.zeros((3, 31), np.uint8), np.zeros((3, 32), np.int8), np.zeros(32, np.uint8)])
def test_wrong_arrays_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8, not"):
        HammingIndex.build(bad)


@pytest.mark.parametrize("bits", [-1, 32])
def test_distances_out_of_range_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="0 to 31"):
        HammingIndex.build(random_hashes(2, 9)).search(random_hashes(2, 9), bits)
