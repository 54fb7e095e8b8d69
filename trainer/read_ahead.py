"""Copy the shards of the coming steps before a worker needs them, in a process beside the loader's.

It follows the same order as the loader, so it knows which shards come and when. It copies them in the order of their
first use, as long as the copies still needed fit into this rank's part of the cache; and it keeps those fresh, so that
the cache drops the ones that are no longer needed first. Of large shards two are begun at a time, and the second has
the requests that the first leaves: those of later steps would take bandwidth from the one that the run waits for.
"""

import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from trainer.data import RankSampler
from trainer.errors import TrainerError
from trainer.order import rank_offsets
from trainer.remote_shards import REQUESTS, streams_of
from trainer.shards import ShardSet

log = logging.getLogger(__name__)
_PAUSE_S = 0.05
_FRESHEN_S = 10.0  # how often the copies still needed are marked as used


class ReadAhead:
    """What is copied and needed, as of the step that the run has reached."""

    def __init__(self, shards: ShardSet, sampler: RankSampler, max_bytes: float) -> None:
        self._shards, self._sampler, self._max_bytes = shards, sampler, max_bytes
        self._offsets = rank_offsets(sampler.batch, sampler.lanes, sampler.rank, sampler.world_size)
        self._last_use: dict[int, int] = {}  # shard -> the last step known to need it
        self._fetching: dict[int, Future[tuple[Path, int]]] = {}
        self._copies: dict[int, tuple[Path, int]] = {}
        self._queue: list[int] = []
        self._horizon = sampler.start_step  # steps before it have been looked at
        self._freshened_at = 0.0

    def advance(self, step: int, threads: ThreadPoolExecutor) -> None:
        """Take in that `step` is being computed: release, look further ahead, start copies, note finished ones."""
        for shard in [shard for shard, last in self._last_use.items() if last < step]:
            del self._last_use[shard]
            self._copies.pop(shard, None)
        self._queue = [shard for shard in self._queue if shard in self._last_use]
        for shard, future in [item for item in self._fetching.items() if item[1].done()]:
            del self._fetching[shard]
            with suppress(TrainerError):  # the worker that needs it tries again, and tells why it cannot
                self._copies[shard] = future.result()
        while self._streams() < REQUESTS and (coming := self._next()) is not None:
            tar = self._shards.shards[coming]
            self._fetching[coming] = threads.submit(self._shards.cache.keep, tar.path, tar.samples, tar.sha256)
        if time.monotonic() - self._freshened_at > _FRESHEN_S:
            self._freshened_at = time.monotonic()
            for copy, _ in self._copies.values():
                with suppress(OSError):
                    os.utime(copy)

    def _streams(self) -> int:
        fetching = [self._shards.shards[shard] for shard in self._fetching]
        return sum(streams_of(shard.path, shard.size) for shard in fetching)

    def _next(self) -> int | None:
        """Return the shard to copy next, looking further ahead while the cache has room; None if it has none."""
        if self._is_full():
            return None
        while not self._queue:
            if self._horizon >= self._sampler.total_steps:
                return None
            positions = self._horizon * self._sampler.batch + self._offsets
            found, first = np.unique(self._sampler.order.at(positions).shard, return_index=True)
            for shard in found[np.argsort(first)].tolist():
                if shard not in self._last_use and "://" in self._shards.shards[shard].path:
                    self._queue.append(shard)
                self._last_use[shard] = self._horizon
            self._horizon += 1
        return self._queue.pop(0)

    def _is_full(self) -> bool:
        """Return whether one more shard would not fit beside the copies still needed."""
        sizes = [size for _, size in self._copies.values()]
        typical = max(sizes, default=0)
        return sum(sizes) + typical * (len(self._fetching) + 1) > self._max_bytes


@contextmanager
def reading_ahead(shards: ShardSet, sampler: RankSampler, max_bytes: float) -> Iterator["Progress"]:
    """Read ahead in a process of its own while the context lasts; tell it each step with `Progress.reached`.

    Does nothing if all shards are local.
    """
    progress = Progress(sampler.start_step)
    if not any("://" in shard.path for shard in shards.shards):
        yield progress
        return
    context = multiprocessing.get_context("fork")
    process = context.Process(
        target=_run, args=(ReadAhead(shards, sampler, max_bytes), progress), daemon=True, name="read-ahead"
    )
    process.start()
    try:
        yield progress
    finally:
        process.kill()  # a copy that is under way is of no use to anybody
        process.join()


class Progress:
    """The step that a run has reached, shared with its read-ahead process."""

    def __init__(self, step: int) -> None:
        self._step = multiprocessing.get_context("fork").Value("q", step, lock=False)

    def reached(self, step: int) -> None:
        """Say that the run computes this step."""
        self._step.value = step

    @property
    def step(self) -> int:
        """The step that the run computes."""
        return int(self._step.value)


def _run(ahead: ReadAhead, progress: Progress) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the run ends it
    os.nice(5)  # decoding comes first
    parent = os.getppid()
    with ThreadPoolExecutor(REQUESTS) as threads:
        while os.getppid() == parent:
            ahead.advance(progress.step, threads)
            time.sleep(_PAUSE_S)
        os._exit(0)
