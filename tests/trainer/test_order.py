"""The stream of samples: every sample once an epoch, another order each epoch, the same for any ranks."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.order import SampleOrder, hash64, rank_offsets, uniform

COUNTS = st.lists(st.integers(0, 12), min_size=1, max_size=8).filter(lambda counts: sum(counts) > 0)
SHAPE = {"lanes": st.integers(1, 9), "window": st.integers(1, 20), "seed": st.integers(0, 2**63 - 1)}


def _read(order: SampleOrder, start: int, stop: int) -> list[tuple[int, int, int]]:
    found = order.at(np.arange(start, stop))
    return list(zip(found.epoch.tolist(), found.shard.tolist(), found.index.tolist(), strict=True))


@given(counts=COUNTS, **SHAPE)
@settings(max_examples=75, deadline=None)
def test_every_epoch_holds_every_sample_once(counts: list[int], lanes: int, window: int, seed: int):
    order = SampleOrder(np.array(counts), seed=seed, lanes=lanes, window=window)
    everything = [(shard, index) for shard, count in enumerate(counts) for index in range(count)]
    for epoch in range(3):
        samples = _read(order, epoch * order.samples, (epoch + 1) * order.samples)
        assert {sample[0] for sample in samples} == {epoch}
        assert sorted(sample[1:] for sample in samples) == everything


@given(counts=COUNTS, cuts=st.lists(st.integers(0, 90), max_size=6), **SHAPE)
@settings(max_examples=50, deadline=None)
def test_a_position_means_the_same_however_the_stream_is_read(
    counts: list[int], cuts: list[int], lanes: int, window: int, seed: int
):
    shape = {"seed": seed, "lanes": lanes, "window": window}
    whole = _read(SampleOrder(np.array(counts), **shape), 0, 90)
    edges = [0, *sorted(cuts), 90]
    pieces = [_read(SampleOrder(np.array(counts), **shape), a, b) for a, b in pairwise(edges)]
    assert [sample for piece in pieces for sample in piece] == whole


def test_epochs_and_seeds_differ():
    epochs = [_read(SampleOrder(np.array([50, 50]), seed=seed), 0, 300) for seed in (1, 2)]
    orders = {tuple(s[1:] for s in run[start : start + 100]) for run in epochs for start in (0, 100, 200)}
    assert len(orders) == 6


@given(batch=st.integers(1, 12), lanes=st.integers(1, 9), world=st.sampled_from([1, 2, 3, 4]))
def test_the_ranks_shares_are_the_batch_in_one_order(batch: int, lanes: int, world: int):
    shares = [rank_offsets(batch * 12, lanes, rank, world) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    assert np.concatenate(shares).tolist() == rank_offsets(batch * 12, lanes, 0, 1).tolist()
    assert sorted(np.concatenate(shares).tolist()) == list(range(batch * 12))


def test_a_rank_reads_few_shards_at_a_time():
    order = SampleOrder(np.full(64, 1_000), seed=5, lanes=8, window=2_000)
    positions = np.concatenate([step * 64 + rank_offsets(64, 8, 3, 8) for step in range(100)])
    assert len(np.unique(order.at(positions).shard)) <= 3


def _new_shards_per_step(order: SampleOrder, batch: int, steps: int, lanes: list[int], of: int) -> list[int]:
    """Return how many shards each step reads that the step before it did not."""
    offsets = np.arange(batch)
    offsets = offsets[np.isin(offsets % of, lanes)]
    per_step = [set(order.at(step * batch + offsets).shard.tolist()) for step in range(steps)]
    return [len(now - before) for before, now in pairwise(per_step)]


@pytest.mark.parametrize("node", [list(range(8)), [0, 1, 2, 3], [2, 3], [5, 6, 7]])
def test_lanes_change_their_windows_one_after_another(node: list[int]):
    """New shards arrive in small numbers all the time, for all lanes and for the lanes of any machine."""
    order = SampleOrder(np.full(1_200, 1_000), seed=5, lanes=8, window=8_000)
    new = _new_shards_per_step(order, batch=4_000, steps=200, lanes=node, of=8)  # 16 steps per window
    assert max(new) <= 2 * 9  # two lanes' windows of 8 or 9 shards; together it would be all of them
    spans = [sum(new[start : start + 16]) for start in range(16, 192, 16)]
    assert max(spans) <= 1.4 * np.mean(spans)


@pytest.mark.parametrize("epoch", [0, 1])
def test_an_epoch_begins_with_few_shards(epoch: int):
    order = SampleOrder(np.full(1_200, 1_000), seed=5, lanes=8, window=64_000)
    start = epoch * order.samples
    first = order.at(np.arange(start, start + 4_000))
    assert len(np.unique(first.shard)) <= 8 * 3  # of 8 x 64 that the grown windows read


def test_hashes_are_uniform_and_order_sensitive():
    draws = uniform(7, np.arange(20_000, dtype=np.uint64))
    assert np.histogram(draws, bins=10, range=(0, 1))[0] == pytest.approx(np.full(10, 2_000), rel=0.1)
    assert hash64(1, 2) != hash64(2, 1)
    assert len(np.unique(hash64(0, np.arange(20_000, dtype=np.uint64)))) == 20_000
