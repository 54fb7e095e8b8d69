"""Shards are copied before they are needed: a simulated store with latency and a bandwidth limit, in simulated time."""

import functools
import json
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from support.processes import run, tiny_settings
from support.scene_shards import write_scene_shards

from trainer.counting import CountedShard
from trainer.data import RankSampler
from trainer.order import SampleOrder, rank_offsets
from trainer.read_ahead import ReadAhead
from trainer.remote_shards import REQUESTS
from trainer.shard_cache import ShardCache
from trainer.shards import ShardSet

SHARDS, SAMPLES, SHARD_BYTES = 400, 1_000, 60e6


class _Cache:
    """Stands for a cache: `keep` is never run, the store below ends its futures."""

    def keep(self, path: str, announced: int | None, sha256: str | None) -> Any:
        raise AssertionError


class _Store:
    """Serves copies in simulated time: each after a latency, all together with a limited bandwidth."""

    def __init__(self, bytes_per_s: float, latency_s: float) -> None:
        self.now_s = 0.0
        self.done: set[str] = set()
        self.most_at_once = 0
        self._rate, self._latency = bytes_per_s, latency_s
        self._active: dict[str, tuple[float, float, Future[Any]]] = {}  # path -> start of its bytes, bytes left

    def submit(self, keep: Any, path: str, samples: int, sha256: str | None) -> Future[Any]:
        if path in self.done:  # the cache has it
            kept: Future[Any] = Future()
            kept.set_result((Path(path), int(SHARD_BYTES)))
            return kept
        if path not in self._active:
            self._active[path] = (self.now_s + self._latency, SHARD_BYTES, Future())
            self.most_at_once = max(self.most_at_once, len(self._active))
        return self._active[path][2]

    def is_fetching(self, path: str) -> bool:
        return path in self._active

    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        flowing = [path for path, (start, _, _) in self._active.items() if start <= self.now_s]
        for path in flowing:
            start, left, future = self._active[path]
            left -= self._rate * seconds / len(flowing)
            self._active[path] = (start, left, future)
            if left <= 0:
                del self._active[path]
                self.done.add(path)
                future.set_result((Path(path), int(SHARD_BYTES)))


def _sampler(rank: int, world: int) -> RankSampler:
    order = SampleOrder(np.full(SHARDS, SAMPLES), seed=1, lanes=8, window=8_000)
    return RankSampler(order, 4_000, 8, 0, 95, rank, world)


def _simulate(
    *, reads_ahead: bool, step_s: float, budget_shards: int, rank: int, world: int, bytes_per_s: float = 200e6
) -> tuple[float, int, float]:
    """Return the share of the time waited after the first step, the most copies held, and when the first step began."""
    shards = ShardSet(
        tuple(CountedShard(f"s3://bucket/{n}.tar", SAMPLES, size=int(SHARD_BYTES)) for n in range(SHARDS)),
        _Cache(),  # type: ignore[arg-type]
    )
    sampler = _sampler(rank, world)
    ahead, store = ReadAhead(shards, sampler, budget_shards * SHARD_BYTES), _Store(bytes_per_s, latency_s=0.2)
    offsets, waited_s, started_s, most = rank_offsets(4_000, 8, rank, world), 0.0, 0.0, 0
    tick_s = 0.05
    for step in range(sampler.total_steps):
        needed = {shards.shards[n].path for n in np.unique(sampler.order.at(step * 4_000 + offsets).shard)}
        begin_s = store.now_s
        while not needed <= store.done:
            for path in sorted(needed - store.done):
                if not store.is_fetching(path):  # as a worker does that needs it
                    store.submit(None, path, SAMPLES, None)
            if reads_ahead:
                ahead.advance(step, store)  # type: ignore[arg-type]
            store.pass_time(tick_s)
        if step:
            waited_s += store.now_s - begin_s
        else:
            started_s = store.now_s
        end_s = store.now_s + step_s
        while store.now_s < end_s:
            if reads_ahead:
                ahead.advance(step, store)  # type: ignore[arg-type]
                most = max(most, len(ahead._copies) + len(ahead._fetching))
            store.pass_time(min(tick_s, end_s - store.now_s))
    assert store.now_s > started_s
    return waited_s / (store.now_s - started_s), most, started_s


@pytest.mark.parametrize(("rank", "world"), [(0, 1), (2, 4)])
def test_steps_do_not_wait_once_the_run_has_started(rank: int, world: int):
    """The store gives 1.6 times what the steps use: 4 shards of 60 MB per step of 1.9 s, at 200 MB/s."""
    how = {"step_s": 1.9, "rank": rank, "world": world, "bytes_per_s": 200e6 / world}
    waited, most, _ = _simulate(reads_ahead=True, budget_shards=120 // world, **how)
    waited_without, _, _ = _simulate(reads_ahead=False, budget_shards=120 // world, **how)
    print(f"waiting {waited:.2%}, without reading ahead {waited_without:.1%}")
    assert waited < 0.02
    assert waited_without > 0.15
    assert most <= 120 // world


@pytest.mark.parametrize("rank", range(4))
def test_the_first_step_waits_for_its_own_shards_only(rank: int):
    """Two lanes read two or three shards of 1.2 s each; eight streams would have eight or more arrive together."""
    rate = 50e6
    _, _, started_s = _simulate(reads_ahead=True, step_s=1.9, budget_shards=30, rank=rank, world=4, bytes_per_s=rate)
    needed = len(np.unique(_sampler(rank, 4).order.at(rank_offsets(4_000, 8, rank, 4)).shard))
    assert needed <= 3
    assert started_s <= (needed + 1) * SHARD_BYTES / rate + 0.5  # the last one may share the bandwidth with another


@pytest.mark.parametrize(("store", "at_once"), [("s3://bucket", REQUESTS // 4), ("https://host", REQUESTS)])
def test_as_many_shards_at_a_time_as_make_the_requests(store: str, at_once: int):
    """A large shard of an object store comes in parts, of a web server in one request."""
    shards = tuple(CountedShard(f"{store}/{n}.tar", SAMPLES, size=int(SHARD_BYTES)) for n in range(SHARDS))
    simulated = _Store(200e6, latency_s=0.2)
    ahead = ReadAhead(ShardSet(shards, _Cache()), _sampler(0, 1), 120 * SHARD_BYTES)  # type: ignore[arg-type]
    ahead.advance(0, simulated)  # type: ignore[arg-type]
    assert simulated.most_at_once == at_once


def test_a_cache_smaller_than_the_working_set_slows_but_does_not_stop():
    _, most, _ = _simulate(reads_ahead=True, step_s=1.9, budget_shards=3, rank=0, world=1)
    assert most <= 3


def _children(folder: Path, step: int, batch: Any) -> None:
    (folder / "names").write_text(json.dumps([child.name() for child in psutil.Process().children()]))


def test_a_run_on_remote_shards_equals_one_on_local_ones(tmp_path: Path):
    write_scene_shards(tmp_path / "shards", (30,) * 6)
    local = tiny_settings(tmp_path, tmp_path / "local", steps=8, log_steps=1)
    glob = f"file://{tmp_path}/shards/*.tar"
    remote = tiny_settings(tmp_path, tmp_path / "remote", steps=8, log_steps=1, shards=[glob], workers=1)
    assert run(local) == [0]
    assert run(remote, functools.partial(_children, tmp_path)) == [0]
    losses = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("local", "remote")]
    local_curve, remote_curve = ([json.loads(line)["train/loss"] for line in lines] for lines in losses)
    assert remote_curve == local_curve
    assert len(json.loads((tmp_path / "names").read_text())) == 2  # the loader's and the one that reads ahead
    copies = list((tmp_path / "remote" / "cache" / "shards").iterdir())
    assert len([copy for copy in copies if copy.suffix == ".tar"]) == 6
    assert not [copy for copy in copies if copy.suffix == ".part"]


def test_what_is_local_is_not_copied(tmp_path: Path):
    write_scene_shards(tmp_path / "shards", (30,))
    settings = tiny_settings(tmp_path, tmp_path / "out", steps=1)
    assert run(settings, functools.partial(_children, tmp_path)) == [0]
    assert json.loads((tmp_path / "names").read_text()) == []
    assert torch.get_num_threads() == 1
    assert ShardCache(tmp_path, 1) is not None
