"""Balance by query while training, on shards that were not balanced (or with a smaller cap): a new draw each epoch.

A query with `count` pairs keeps each with probability cap / max(count, cap), and a pair stays if one of its queries
keeps it (MetaCLIP, arXiv 2309.16671, algorithm 1, moved into the loader). Rare queries keep everything, every epoch.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from queries.parquet_pages import TEXT, GuardedParquet
from trainer.errors import TrainerError, one_line
from trainer.order import Int64s, SampleOrder, SamplePositions, hash64, uniform
from trainer.shards import ShardSet

MAX_QUERIES = 1 << 27
"""Far above any allowlist's size; memory is eight bytes per id up to the largest."""
_BALANCE_STREAM = 4  # order.py and data.py use 0 to 3


def keep_probabilities(shards: ShardSet, cap: int) -> NDArray[np.float32]:
    """Return each sample's chance of being in an epoch, in shard and tar order.

    Raises:
        TrainerError: a shard has no Parquet beside it, or one without the samples' `query_ids`.
    """
    counts = np.zeros(1, np.int64)
    for queries in query_lists(shards):
        shard_counts = np.bincount(queries.flatten().to_numpy(), minlength=len(counts))
        counts = np.pad(counts, (0, len(shard_counts) - len(counts))) + shard_counts
    probabilities = np.empty(shards.counts.sum(), np.float32)
    start = 0
    for queries in query_lists(shards):  # read again: all shards' ids take several times the memory of the result
        probabilities[start : start + len(queries)] = _probabilities(queries, counts, cap)
        start += len(queries)
    return probabilities


def query_lists(shards: ShardSet) -> Iterator[pa.ListArray]:
    """Yield the queries of each shard's samples.

    Raises:
        TrainerError: a shard has no Parquet beside it, or one without the samples' `query_ids`.
    """
    return (_shard_query_ids(shard.path, shard.samples) for shard in shards.shards)


def _shard_query_ids(tar: str, samples: int) -> pa.ListArray:
    """Return the queries of a tar's samples; the Parquet beside it also has a row for each pair that failed."""
    path = f"{tar.removesuffix('.tar')}.parquet"
    try:
        with fsspec.open(path, "rb") as file:
            table = _read(file)
        kept = table.filter(pc.equal(table["status"], "success"))["query_ids"].cast(pa.list_(pa.int32()))
    except (OSError, pa.ArrowException, KeyError) as error:
        raise TrainerError(f"train.balance_cap needs the query_ids of {path}: {one_line(error)}") from error
    if len(kept) != samples:
        raise TrainerError(f"{path} lists {len(kept)} samples where {tar} has {samples}: write the set again")
    lists: pa.ListArray = kept.combine_chunks()
    ids = lists.flatten()
    if ids.null_count or not all(0 <= id < MAX_QUERIES for id in pc.min_max(ids).as_py().values() if id is not None):
        raise TrainerError(
            f"query_ids of {path} are not all numbers from 0 to {MAX_QUERIES - 1}: write the set again, "
            "or leave out train.balance_cap"
        )
    return lists


def _read(file: Any) -> pa.Table:
    table = GuardedParquet(file, TEXT)
    schema = pa.schema([table.schema.field(name) for name in ("status", "query_ids")])
    return pa.Table.from_batches(table.batches(schema.names), schema)


def _probabilities(lists: pa.ListArray, counts: Int64s, cap: int) -> NDArray[np.float32]:
    """Return 1 - prod(1 - cap / max(count, cap)) over each sample's queries; 1 for a sample without any."""
    lengths = pc.list_value_length(lists).fill_null(0).to_numpy()
    query = lists.flatten().to_numpy()
    with np.errstate(divide="ignore"):
        log_dropped = np.log1p(-cap / np.maximum(counts[query], cap))
    sums = np.zeros(len(lengths))
    np.add.at(sums, np.repeat(np.arange(len(lengths)), lengths), log_dropped)
    return np.where(lengths == 0, 1.0, -np.expm1(sums)).astype(np.float32)


class BalancedOrder:
    """The stream of samples when each epoch is a new draw; same guarantees as `SampleOrder`.

    Memory: four bytes per sample of the set, and four more per sample kept in the two epochs read last.
    """

    def __init__(
        self,
        counts: Int64s,
        draws: NDArray[np.float32] | Callable[[int], NDArray[np.bool_]],
        *,
        seed: int,
        lanes: int = 8,
        window: int = 65_536,
    ) -> None:
        """`draws`: each sample's probability, or a function from an epoch to which samples it has."""
        if callable(draws):
            self.samples = int(draws(0).sum())  # of the first epoch; others have nearly as many
        else:
            self.samples = round(float(draws.sum(dtype=np.float64)))  # of one epoch, expected
        self._counts, self._draws = counts, draws
        self._seed, self._lanes, self._window = seed, lanes, window
        self._starts = [0]  # where each epoch begins, as far as it is known
        self._epoch = lru_cache(maxsize=2)(self._draw)

    def at(self, positions: Int64s) -> SamplePositions:
        """Return the epoch, shard and index of the samples at these positions of the stream."""
        while len(positions) and self._starts[-1] <= positions.max():
            self._starts.append(self._starts[-1] + self._epoch(len(self._starts) - 1).order.samples)
        epochs = np.searchsorted(self._starts, positions, side="right") - 1
        shard, index = np.empty_like(positions), np.empty_like(positions)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            shard[here], index[here] = self._epoch(int(epoch)).at(positions[here] - self._starts[epoch])
        return SamplePositions(epochs, shard, index)

    def _chosen(self, epoch: int) -> Callable[[int, int], NDArray[np.bool_]]:
        """Return which of the samples from one number to another an epoch has."""
        draws = self._draws
        if callable(draws):
            whole = draws(epoch)
            return lambda start, end: whole[start:end]

        def by_probability(start: int, end: int) -> NDArray[np.bool_]:
            numbers = np.arange(start, end, dtype=np.uint64)
            return uniform(self._seed, _BALANCE_STREAM, epoch, numbers) < draws[start:end]

        return by_probability

    def _draw(self, epoch: int) -> "_Epoch":
        """Draw an epoch shard by shard, so that memory holds little more than the kept indices."""
        kept: list[NDArray[np.int32]] = []
        end = 0
        chosen = self._chosen(epoch)
        for count in self._counts.tolist():
            start, end = end, end + count
            kept.append(np.flatnonzero(chosen(start, end)).astype(np.int32))
        seed = int(hash64(self._seed, _BALANCE_STREAM, epoch)[0])
        counts = np.array([len(indices) for indices in kept])
        return _Epoch(SampleOrder(counts, seed=seed, lanes=self._lanes, window=self._window), kept)


class _Epoch(NamedTuple):
    """The samples of one draw."""

    order: SampleOrder  # of the kept samples
    kept: list[NDArray[np.int32]]  # per shard, the indices of its kept samples in it

    def at(self, positions: Int64s) -> tuple[Int64s, Int64s]:
        """Return the shard of each sample, and its index in it."""
        kept = self.order.at(positions)
        index = np.empty_like(positions)
        for shard in np.unique(kept.shard):
            here = kept.shard == shard
            index[here] = self.kept[shard][kept.index[here]]
        return kept.shard, index
