"""Balance in the loader: the tail whole, the head near its cap, a new draw each epoch, equal however it is read."""

import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.processes import tiny_settings
from support.scene_shards import write_scene_shards

from trainer import capped_draw
from trainer.errors import TrainerError
from trainer.online_balance import BalancedOrder, keep_probabilities
from trainer.order import uniform
from trainer.shard_cache import ShardCache
from trainer.shards import ShardSet, find_shards
from trainer.train import train


def _shards(folder: Path, queries: list[list[list[int]]]) -> ShardSet:
    """Write shards whose samples have these queries, each Parquet with a failed row in between."""
    counts = tuple(len(shard) for shard in queries)
    write_scene_shards(folder / "shards", counts)
    for number, shard in enumerate(queries):
        rows = [{"status": "success", "query_ids": ids} for ids in shard]
        rows.insert(1, {"status": "failed_to_download", "query_ids": [9]})
        schema = pa.schema([("status", pa.string()), ("query_ids", pa.list_(pa.int32()))])
        pq.write_table(pa.Table.from_pylist(rows, schema), folder / "shards" / f"{number:05d}.parquet")
    return find_shards((f"{folder}/shards/*.tar",), ShardCache(folder / "cache", 2**30))


def test_probabilities_are_those_of_metaclip(tmp_path: Path):
    shards = _shards(tmp_path, [[[0], [0, 1], [0]], [[0], [2], []]])
    found = keep_probabilities(shards, 2)
    assert found == pytest.approx([2 / 4, 1.0, 2 / 4, 2 / 4, 1.0, 1.0])
    assert keep_probabilities(shards, 1)[1] == pytest.approx(1.0)
    both = _shards(tmp_path / "two", [[[0, 1]] * 4])
    assert keep_probabilities(both, 1) == pytest.approx([1 - (1 - 1 / 4) ** 2] * 4)


def test_each_epoch_keeps_the_tail_and_about_the_cap_of_the_head():
    is_head = np.arange(4_000) % 4 != 0
    order = BalancedOrder(np.full(8, 500), np.where(is_head, 0.1, 1.0).astype(np.float32), seed=3)
    assert order.samples == 1_300
    found = order.at(np.arange(4_000))
    place = found.shard * 500 + found.index
    epochs = [place[found.epoch == epoch] for epoch in range(2)]
    for kept in epochs:
        assert len(np.unique(kept)) == len(kept)
        assert np.isin(np.arange(0, 4_000, 4), kept).all()
        assert is_head[kept].sum() == pytest.approx(300, abs=70)
    assert len(np.intersect1d(*[kept[is_head[kept]] for kept in epochs])) < 100


@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any),
    cuts=st.lists(st.integers(0, 60), max_size=5),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=25, deadline=None)
def test_a_position_means_the_same_however_the_stream_is_read(counts: list[int], cuts: list[int], seed: int):
    probabilities = np.random.default_rng(seed).choice([0.3, 1.0], sum(counts)).astype(np.float32)
    probabilities[0] = 1.0

    def read(start: int, stop: int) -> list[tuple[int, int, int]]:
        order = BalancedOrder(np.array(counts), probabilities, seed=seed, lanes=3, window=4)
        found = order.at(np.arange(start, stop))
        return list(zip(found.epoch.tolist(), found.shard.tolist(), found.index.tolist(), strict=True))

    edges = [0, *sorted(cuts), 60]
    assert [sample for a, b in pairwise(edges) for sample in read(a, b)] == read(0, 60)
    assert all(index < counts[shard] for _, shard, index in read(0, 60))


def test_a_draw_does_not_depend_on_how_the_set_is_cut_into_shards():
    probabilities = np.random.default_rng(0).random(900).astype(np.float32)
    kept = [
        {place for place in range(900) if uniform(7, 4, epoch, place)[0] < probabilities[place]} for epoch in range(2)
    ]
    for counts in ([900], [1, 0, 499, 400]):
        order = BalancedOrder(np.array(counts), probabilities, seed=7, lanes=3, window=16)
        found = order.at(np.arange(len(kept[0]) + len(kept[1])))
        places = (np.cumsum(counts) - counts)[found.shard] + found.index
        assert [set(places[found.epoch == epoch].tolist()) for epoch in range(2)] == kept


def test_memory_is_four_bytes_a_sample_and_epoch():
    counts, probabilities = np.full(200, 5_000), np.full(1_000_000, 0.5, np.float32)
    order = BalancedOrder(counts, probabilities, seed=7, lanes=2, window=64)
    tracemalloc.start()
    for epoch in range(4):
        order.at(np.array([epoch * 500_000 + 10_000]))
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 2 * 4.2 * 500_000
    assert peak < 3 * 4.2 * 500_000  # the third, before the first is dropped


def _one_shard(folder: Path, query_ids: pa.Array | None) -> ShardSet:
    write_scene_shards(folder / "shards", (3,))
    columns = {"status": ["success"] * 3} | ({} if query_ids is None else {"query_ids": query_ids})
    pq.write_table(pa.table(columns), folder / "shards" / "00000.parquet")
    return find_shards((f"{folder}/shards/*.tar",), ShardCache(folder / "cache", 2**30))


@pytest.mark.parametrize(
    "query_ids",
    [
        pa.array([[0, None], [1], [1]]),
        pa.array([[0, -1], [1], [1]]),
        pa.array([[0, 1 << 27], [1], [1]]),
        pa.array([[1 << 40], [1], [1]]),
        pa.array([["cat"], ["dog"], []]),
        pa.array([1, 2, 3]),
        pa.array([{"a": 1}] * 3),
        None,
    ],
    ids=["null", "negative", "large", "larger", "text", "no lists", "structs", "missing"],
)
def test_queries_that_are_no_numbers_are_one_line(tmp_path: Path, query_ids: pa.Array | None):
    with pytest.raises(TrainerError, match=r"query_ids of .*00000\.parquet") as caught:
        keep_probabilities(_one_shard(tmp_path, query_ids), 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "query_ids",
    [pa.nulls(3), pa.array([None, [], None], pa.list_(pa.int64())), pa.array([[]] * 3, pa.list_(pa.null()))],
)
def test_samples_without_queries_stay(tmp_path: Path, query_ids: pa.Array):
    assert keep_probabilities(_one_shard(tmp_path, query_ids), 1).tolist() == [1, 1, 1]


def test_a_run_balances_and_says_what_it_misses(tmp_path: Path):
    shards = _shards(tmp_path, [[[0]] * 30 + [[1]] * 10])
    assert train(tiny_settings(tmp_path, tmp_path / "out", balance_cap=10, batch=10, steps=3)) is not None
    (tmp_path / "shards" / "00000.parquet").unlink()
    with pytest.raises(TrainerError, match=r"train\.balance_cap needs the query_ids of .*00000\.parquet"):
        keep_probabilities(shards, 10)


def _lists(random: np.random.Generator, samples: int, queries: int) -> pa.ListArray:
    """Return queries as on the web: few have most pairs; a pair has none to four, each once."""
    weights = 1 / np.arange(1, queries + 1)
    rows = [
        random.choice(queries, size=random.integers(0, 5), replace=False, p=weights / weights.sum()).tolist()
        for _ in range(samples)
    ]
    return pa.array(rows, pa.list_(pa.int32()))


@pytest.mark.parametrize("cap", [1, 7, 50, 10_000])
def test_at_most_the_cap_and_as_many_as_the_order_allows(cap: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(capped_draw, "BLOCK", 300)
    lists = _lists(np.random.default_rng(cap), samples=1_000, queries=40)
    draw = capped_draw.CappedDraw([lists[:600], lists[600:]], cap, seed=3)
    rows = lists.to_pylist()
    epochs = [draw(epoch) for epoch in range(3)]
    for kept in epochs:
        counts = np.bincount(
            [query for row, here in zip(rows, kept, strict=True) if here for query in row], minlength=40
        )
        assert counts.max() <= cap
        for row, here in zip(rows, kept, strict=True):
            assert here or any(counts[query] == cap for query in row)
    assert (cap < 1_000) == (not (epochs[0] == epochs[1]).all())
    assert (draw(1) == epochs[1]).all()


def test_a_query_listed_twice_counts_once():
    lists = pa.array([[3, 3], [3], None, [3, 5, 3]], pa.list_(pa.int32()))
    kept = capped_draw.CappedDraw([lists], 1, seed=0)(0)
    assert kept[[0, 1, 3]].sum() == 1
    assert kept[2]


def test_an_order_with_at_most_the_cap_reads_what_was_drawn():
    lists = _lists(np.random.default_rng(0), samples=120, queries=6)
    draw = capped_draw.CappedDraw([lists], 9, seed=3)
    order = BalancedOrder(np.array([70, 50]), draw, seed=3, lanes=2, window=16)
    found = order.at(np.arange(order.samples))
    read = np.zeros(120, bool)
    read[np.array([0, 70])[found.shard] + found.index] = True
    assert (read == draw(0)).all()
    assert set(found.epoch.tolist()) == {0}
