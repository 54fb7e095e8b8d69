from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dedup.duplicates
from dedup.duplicates import Comparison, band_values, choose_survivors, find_edges
from dedup.hamming import search_by_scan

Graph = tuple[list[str], list[int], list[tuple[int, int]]]


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Images with ranks (some equal) and edges between them, in any order, repeated, turned round, or loops."""
    ids = draw(st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=12, unique=True))
    ranks = draw(st.lists(st.integers(0, 5) | st.just(2**64 - 1), min_size=len(ids), max_size=len(ids)))
    node = st.integers(0, len(ids) - 1)
    return ids, ranks, draw(st.lists(st.tuples(node, node), max_size=30))


def survivors(ids: list[str], ranks: list[int], edges: list[tuple[int, int]]) -> dict[str, str]:
    pairs = np.array([(ids[a], ids[b]) for a, b in edges], dtype="U4").reshape(-1, 2)
    chosen = choose_survivors(np.array(ids, dtype="U4"), np.array(ranks, dtype=np.uint64), pairs)
    return dict(zip(ids, chosen.tolist(), strict=True))


def greedy(ids: list[str], ranks: list[int], edges: list[tuple[int, int]]) -> dict[str, str]:
    """Go through the images from the best rank on; drop whoever is next to one that stayed."""
    near: dict[int, set[int]] = {i: set() for i in range(len(ids))}
    for a, b in edges:
        near[a].add(b)
        near[b].add(a)
    stayed: list[int] = []
    result = {}
    for i in sorted(range(len(ids)), key=lambda i: (ranks[i], ids[i])):
        stands_for_it = [j for j in stayed if j in near[i]]
        result[ids[i]] = ids[stands_for_it[0]] if stands_for_it else ids[i]
        if not stands_for_it:
            stayed.append(i)
    return result


@given(graphs())
def test_rounds_choose_what_the_sequential_greedy_chooses(graph: Graph) -> None:
    assert survivors(*graph) == greedy(*graph)


@given(graphs(), st.randoms(use_true_random=False))
def test_order_does_not_matter(graph: Graph, random: object) -> None:
    ids, ranks, edges = graph
    shuffled = list(range(len(ids)))
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    at = {old: new for new, old in enumerate(shuffled)}
    moved = [(at[b], at[a]) for a, b in reversed(edges)]
    assert survivors([ids[i] for i in shuffled], [ranks[i] for i in shuffled], moved) == survivors(*graph)


def test_nothing_is_dropped_because_of_a_chain() -> None:
    chain = [(0, 1), (1, 2), (2, 3)]
    assert survivors(["a", "b", "c", "d"], [0, 1, 2, 3], chain) == {"a": "a", "b": "a", "c": "c", "d": "c"}
    assert survivors(["a", "b", "c", "d"], [1, 0, 2, 3], chain) == {"a": "b", "b": "b", "c": "b", "d": "d"}


def test_a_long_chain_is_settled() -> None:
    ids = [f"{i:04}" for i in range(2_000)]
    chosen = survivors(ids, list(range(2_000)), [(i, i + 1) for i in range(1_999)])
    assert [i for i in ids if chosen[i] == i] == ids[::2]


def test_an_edge_to_a_stranger_is_refused() -> None:
    with pytest.raises(ValueError, match="'z'"):
        choose_survivors(np.array(["a"]), np.zeros(1, np.uint64), np.array([["a", "z"]]))


@pytest.mark.parametrize("kind", ["S4", "U4", object])
def test_ids_of_any_sortable_type(kind: str) -> None:
    ids = np.array(["b", "a", "c"]).astype(kind)
    chosen = choose_survivors(ids, np.array([2, 1, 3], np.uint64), ids[[[0, 1]]])
    assert chosen.tolist() == [ids[1], ids[1], ids[2]]


@st.composite
def hash_sets(draw: st.DrawFn) -> np.ndarray:
    """Hashes in clusters: each is one of three centres with up to 40 flipped bits."""
    centres = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, (3, 256)) & 1
    rows = []
    for _ in range(draw(st.integers(0, 25))):
        bits = centres[draw(st.integers(0, 2))].copy()
        bits[draw(st.lists(st.integers(0, 255), max_size=40))] ^= 1
        rows.append(bits)
    return np.packbits(np.array(rows, np.uint8).reshape(-1, 256), axis=1)


@contextmanager
def small_blocks(dense_rows: int) -> Iterator[pytest.MonkeyPatch]:
    """Compare a few rows at a time, buckets from a size on as dense ones."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"_CANDIDATES": 3, "_DENSE_ROWS": dense_rows, "_BLOCK_ROWS": 4, "_BLOCK_BETTER": 3}.items():
            patch.setattr(dedup.duplicates, name, value)
        yield patch


def edges_of(blocks: Iterable[Comparison]) -> list[tuple[int, int, int]]:
    return [tuple(edge) for block in blocks for edge in zip(*(c.tolist() for c in block.edges), strict=True)]


def edges_over_all_buckets(hashes: np.ndarray, max_distance_bits: int) -> list[tuple[int, int, int]]:
    """Spread the hashes over buckets, two buckets at a time into `find_edges`, and collect the edges."""
    values = band_values(hashes, max_distance_bits)
    found = []
    for band in range(values.shape[1]):
        for parity in (0, 1):
            rows = np.flatnonzero(values[:, band] % 2 == parity)
            edges = edges_of(find_edges(np.full(len(rows), band, np.int32), hashes[rows], max_distance_bits))
            found += [(int(rows[a]), int(rows[b]), int(d)) for a, b, d in edges]
    return found


@given(hash_sets(), st.integers(0, 15), st.sampled_from([2, 100]))
def test_edges_are_all_near_pairs_each_once(hashes: np.ndarray, max_distance_bits: int, dense_rows: int) -> None:
    near = search_by_scan(hashes, hashes, max_distance_bits)
    expected = [(a, b, d) for a, b, d in zip(*(c.tolist() for c in near), strict=True) if a < b]
    with small_blocks(dense_rows):
        assert sorted(edges_over_all_buckets(hashes, max_distance_bits)) == expected


@given(hash_sets())
def test_beyond_15_bits_edges_are_true_and_come_once(hashes: np.ndarray) -> None:
    near = search_by_scan(hashes, hashes, 31)
    expected = {(a, b, d) for a, b, d in zip(*(c.tolist() for c in near), strict=True) if a < b}
    found = edges_over_all_buckets(hashes, 31)
    assert set(found) <= expected
    assert len(found) == len(set(found))


@given(st.integers(0, 31), st.randoms(use_true_random=False))
def test_records_of_many_bands_can_come_mixed(bits: int, random: object) -> None:
    hashes = np.random.default_rng(bits).integers(0, 256, (6, 32), dtype=np.uint8)
    hashes[3:] = hashes[:3]
    hashes[3:, 0] ^= 3
    values = band_values(hashes, bits)
    records = [(row, band) for row in range(6) for band in range(values.shape[1])]
    random.shuffle(records)  # type: ignore[attr-defined]
    rows, bands = np.array(records).T
    edges = edges_of(find_edges(bands, hashes[rows], bits))
    found = {(*sorted((int(rows[a]), int(rows[b]))), d) for a, b, d in edges}
    assert found == ({(0, 3, 2), (1, 4, 2), (2, 5, 2)} if bits >= 2 else set())
    assert len(edges) == len(found)
    assert all(a < b for a, b, _ in edges)


@given(hash_sets(), st.integers(0, 31), st.integers(1, 4), st.sampled_from([2, 100]))
def test_of_many_better_neighbours_the_best_keep_their_edge(
    hashes: np.ndarray, max_distance_bits: int, most: int, dense_rows: int
) -> None:
    every = edges_over_all_buckets(hashes, max_distance_bits)
    with small_blocks(dense_rows) as patch:
        patch.setattr(dedup.duplicates, "MAX_BETTER", most)
        found = edges_over_all_buckets(hashes, max_distance_bits)
    assert len(found) == len(set(found))
    assert set(found) <= set(every)
    by_row: dict[int, list[int]] = {}
    for a, b, _ in sorted(every):
        by_row.setdefault(b, []).append(a)
    best = {(a, b) for b, betters in by_row.items() for a in betters[:most]}
    assert best <= {(a, b) for a, b, _ in found}


def test_in_a_large_bucket_the_best_rows_are_compared_and_the_rest_is_counted() -> None:
    """A band value that is shared by many hashes which are not near each other in their other bits."""
    random = np.random.default_rng(1)
    hashes = random.integers(0, 256, (900, 32), dtype=np.uint8)
    hashes[:, :2] = 7
    hashes[500:] = hashes[:400]
    hashes[500:, 31] ^= 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dedup.duplicates, "MAX_COMPARED", 300)
        blocks = list(find_edges(np.zeros(900, np.int32), hashes, 15))
    assert sorted(edges_of(blocks)) == [(row, row + 500, 1) for row in range(300)]
    assert sum(block.limited for block in blocks) == 900 - 301


def test_a_picture_in_thousands_of_versions_has_few_edges_and_one_survivor() -> None:
    random = np.random.default_rng(1)
    bits = np.tile(random.integers(0, 2, 256, dtype=np.uint8), (3_000, 1))
    versions = np.array(list(combinations(range(100, 200), 2)))[:3_000]  # two flipped bits each: all within 4 bits
    bits[np.arange(3_000)[:, None], versions] ^= 1
    hashes = np.packbits(bits, axis=1)
    found = edges_over_all_buckets(hashes, 15)
    assert len(found) < 3_000 * 64
    pairs = np.array([(a, b) for a, b, _ in found])
    assert (choose_survivors(np.arange(3_000), np.arange(3_000).astype(np.uint64), pairs) == 0).all()


@given(hash_sets(), st.integers(0, 15))
def test_equal_hashes_may_be_left_to_their_best_ranked(hashes: np.ndarray, max_distance_bits: int) -> None:
    """What the module says about equal hashes: collapsing them first changes no survivor."""
    hashes = np.concatenate([hashes, hashes[::2], hashes[::3]])
    ids = [f"{i:03}" for i in range(len(hashes))]
    ranks = np.random.default_rng(len(hashes)).permutation(len(hashes)).tolist()
    near = search_by_scan(hashes, hashes, max_distance_bits)
    everyone = greedy(ids, ranks, list(zip(near.query_rows.tolist(), near.index_rows.tolist(), strict=True)))

    best: dict[bytes, int] = {}
    for i in sorted(range(len(ids)), key=lambda i: ranks[i]):
        best.setdefault(hashes[i].tobytes(), i)
    few = list(best.values())
    edges = edges_over_all_buckets(hashes[few], max_distance_bits)
    chosen = survivors([ids[i] for i in few], [ranks[i] for i in few], [(a, b) for a, b, _ in edges])
    assert {i: chosen[ids[best[h.tobytes()]]] for i, h in zip(ids, hashes, strict=True)} == everyone
