"""Decide in rounds, bucket by bucket, which near duplicates go, and which pair represents them.

dedup/duplicates.py has the rule: an image goes if a better-ranked neighbour of it stays. Each image belongs to the
bucket of its uid, which holds the edges to its better neighbours. In a round, a bucket decides what it can: an image
all of whose better neighbours have gone stays; an image with one that stays goes. It tells the buckets of the
neighbours, which decide more in the next round. No process ever holds more than one bucket's edges; with one bucket,
one round decides everything. With random ranks some log(n) rounds suffice.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dedup.duplicates import MAX_BETTER, Status, decide
from pipeline.engine.shuffle import bucket_of_part, gather, spill
from pipeline.engine.units import UnitOutput
from pipeline.engine.workspace import Workspace
from pipeline.records import Reason
from pipeline.stages.balance.exact import PACKED_UID, uid_numbers, unpack_uids

EDGES = pa.schema(
    [
        ("worse", PACKED_UID),
        ("worse_part", pa.int32()),
        ("better", PACKED_UID),
        ("better_rank", pa.uint64()),
        ("better_part", pa.int32()),
        ("distance", pa.int32()),  # bits
    ]
)
"""Near fingerprints, in the bucket of the worse-ranked image."""

LISTENERS = pa.schema([("uid", PACKED_UID), ("bucket", pa.int32())])
"""Buckets that wait for the decision about an image, in the bucket of the image."""

_WAITING = EDGES.append(pa.field("better_stays", pa.bool_()))
_MESSAGES = pa.schema([("uid", PACKED_UID), ("stays", pa.bool_())])

DUPLICATES = pa.schema(
    [
        ("uid", pa.string()),
        ("survivor", pa.string()),  # null for a placeholder, which is dropped for no other image
        ("reason", pa.string()),
        ("distance", pa.int32()),  # bits between the PDQ hashes of the pair and its survivor; 0 for exact copies
        ("part", pa.int32()),
        ("survivor_part", pa.int32()),
    ]
)

PACKED_DUPLICATES = pa.schema(
    [field.with_type(PACKED_UID) if field.name in ("uid", "survivor") else field for field in DUPLICATES]
)
"""DUPLICATES before they are written out."""


def bucket_of_uid(uids: pa.Array | pa.ChunkedArray, buckets: int) -> np.ndarray:
    """Return the bucket of each uid, (n,) int32."""
    return (uid_numbers(uids)[1] % np.uint64(buckets)).astype(np.int32)


class Round(NamedTuple):
    """The files that a round leaves for the next."""

    number: int

    def waiting(self, bucket: int) -> str:
        return f".wit/dedup/settled/{self.number:03d}/waiting/{bucket:05d}.parquet"

    def listeners(self, bucket: int) -> str:
        return f".wit/dedup/settled/{self.number:03d}/listeners/{bucket:05d}.parquet"

    def messages(self, bucket: int) -> str:
        return f".wit/dedup/settled/{self.number:03d}/messages/{bucket:05d}.rows"

    def near(self, bucket: int) -> str:
        return f".wit/dedup/settled/{self.number:03d}/near/{bucket:05d}.parquet"


@dataclass(frozen=True)
class SettleFirst:
    """The first round: from the spilled edges and listeners, without messages."""

    edges: list[str]
    listeners: list[str]
    buckets: int

    def run(self, bucket: int, output: UnitOutput) -> Mapping[str, int]:
        edges = gather(output.workspace, self.edges, bucket, EDGES)
        waiting = keep_best_edges(edges)
        unknown = pa.nulls(waiting.num_rows, pa.bool_())
        listeners = gather(output.workspace, self.listeners, bucket, LISTENERS)
        state = _State(waiting.append_column("better_stays", unknown), distinct_listeners(listeners))
        left = _settle(state, _MESSAGES.empty_table(), bucket, self.buckets, Round(1), output)
        return {"inputs": edges.num_rows, "kept": waiting.num_rows, "waiting": left}


@dataclass(frozen=True)
class SettleNext:
    """A later round: from what the round before it left."""

    number: int
    buckets: int

    def run(self, bucket: int, output: UnitOutput) -> Mapping[str, int]:
        before, workspace = Round(self.number - 1), output.workspace
        state = _State(
            workspace.read_table(before.waiting(bucket)).cast(_WAITING),
            workspace.read_table(before.listeners(bucket)).cast(LISTENERS),
        )
        messages = gather(workspace, [before.messages(b) for b in range(self.buckets)], bucket, _MESSAGES)
        left = _settle(state, messages, bucket, self.buckets, Round(self.number), output)
        return {"inputs": state.waiting.num_rows, "kept": state.waiting.num_rows, "waiting": left}


class _State(NamedTuple):
    waiting: pa.Table  # _WAITING, sorted by worse image, then by the rank of the better one
    listeners: pa.Table


def keep_best_edges(edges: pa.Table) -> pa.Table:
    """Return EDGES sorted by worse image and the rank of the better one, of each image the MAX_BETTER best."""
    ordered = edges.sort_by([("worse", "ascending"), ("better_rank", "ascending"), ("better", "ascending")])
    high, low = uid_numbers(ordered["worse"])
    is_first = np.ones(len(high), bool)
    is_first[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    starts = np.flatnonzero(is_first)
    place = np.arange(len(high)) - np.repeat(starts, np.diff(starts, append=len(high)))
    return ordered.filter(pa.array(place < MAX_BETTER))


def distinct_listeners(listeners: pa.Table) -> pa.Table:
    """Return each row of LISTENERS once."""
    return listeners.group_by(["uid", "bucket"]).aggregate([]).select(LISTENERS.names).cast(LISTENERS)


def _settle(state: _State, messages: pa.Table, bucket: int, buckets: int, step: Round, output: UnitOutput) -> int:
    """Decide what can be decided in a bucket and write it down; return the number of edges that wait."""
    waiting, listeners = state
    columns = [waiting["worse"], waiting["better"], listeners["uid"], messages["uid"]]
    every = pa.chunked_array([chunk for column in columns for chunk in column.chunks], PACKED_UID)
    first, node = _numbered(every)
    worse, better, listening, told = np.split(node, np.cumsum([len(column) for column in columns[:-1]]))

    status = np.full(len(first), Status.UNKNOWN)
    status[told] = np.where(messages["stays"].to_numpy(), Status.STAYS, Status.GOES)
    status[better[waiting["better_stays"].fill_null(False).to_numpy()]] = Status.STAYS
    is_own = bucket_of_uid(every, buckets)[first] == bucket
    status = decide(better, worse, status, is_own)

    is_open = (status[worse] != Status.STAYS) & (status[better] != Status.GOES)
    at = np.flatnonzero(is_open)
    is_best = np.diff(worse[at], prepend=-1) != 0
    settled = at[is_best & (status[worse[at]] == Status.GOES) & (status[better[at]] == Status.STAYS)]
    output.write_table(step.near(bucket), _near_rows(waiting.take(pa.array(settled))))
    left = at[~np.isin(worse[at], worse[settled])]
    stays = pa.array(np.full(len(left), True), mask=status[better[left]] != Status.STAYS)
    column = waiting.column_names.index("better_stays")
    output.write_table(step.waiting(bucket), waiting.take(pa.array(left)).set_column(column, "better_stays", stays))

    is_decided = status[listening] != Status.UNKNOWN
    output.write_table(step.listeners(bucket), listeners.filter(pa.array(~is_decided)))
    is_sent = is_decided & (listeners["bucket"].to_numpy() != bucket)
    sent = listeners.filter(pa.array(is_sent))
    content = pa.table([sent["uid"], pa.array(status[listening[is_sent]] == Status.STAYS)], schema=_MESSAGES)
    spill(output, step.messages(bucket), _MESSAGES, buckets, [(content, sent["bucket"].to_numpy())])
    return len(left)


def _numbered(uids: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Number the different uids in their order; return a row of each number, and the number of each row, int64."""
    high, low = uid_numbers(uids)
    order = np.lexsort((low, high))
    high, low = high[order], low[order]
    is_new = np.ones(len(order), bool)
    is_new[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    number = np.empty(len(order), np.int64)
    number[order] = np.cumsum(is_new) - 1
    return order[is_new], number


def _near_rows(edges: pa.Table) -> pa.Table:
    reasons = pa.repeat(pa.scalar(str(Reason.NEAR_DUPLICATE)), edges.num_rows)
    columns = [edges["worse"], edges["better"], reasons, edges["distance"], edges["worse_part"], edges["better_part"]]
    return pa.table(columns, schema=PACKED_DUPLICATES)


@dataclass(frozen=True)
class FollowSurvivors:
    """Point what went for an image that has gone itself to the image that represents it; spill all by part."""

    losers: list[str]
    rounds: int
    parts: int
    ranges: int

    def run(self, bucket: int, output: UnitOutput) -> Mapping[str, int]:
        files = [Round(number).near(bucket) for number in range(1, self.rounds + 1)]
        read = [output.workspace.read_table(name).cast(PACKED_DUPLICATES) for name in files]
        near = pa.concat_tables([PACKED_DUPLICATES.empty_table(), *read])
        losers = gather(output.workspace, self.losers, bucket, PACKED_DUPLICATES)
        tables = [near, follow_survivors(losers, near)]
        routed = ((t, bucket_of_part(t["part"].to_numpy(), self.parts, self.ranges)) for t in tables)
        rows = spill(output, f".wit/dedup/followed/{bucket:05d}.rows", PACKED_DUPLICATES, self.ranges, routed)
        return {"inputs": rows, "kept": rows}


def follow_survivors(losers: pa.Table, near: pa.Table) -> pa.Table:
    """Point losers whose representative is itself a near duplicate to the one that represents it."""
    at = pc.index_in(losers["survivor"], near["uid"])
    moved = near.select(["survivor", "distance", "survivor_part"]).take(at)  # nulls where the representative stays
    for name in moved.column_names:
        column = pc.coalesce(moved[name], losers[name])
        losers = losers.set_column(losers.column_names.index(name), name, column)
    return losers.cast(PACKED_DUPLICATES)


@dataclass(frozen=True)
class WriteDuplicates:
    """Write `dedup/duplicates.parquet`, sorted by part and uid; `ranges` of consecutive parts one after the other.

    `limits` go to `dedup/limits.json`: how often a limit of dedup/duplicates.py acted.
    """

    ranges: int
    limits: Mapping[str, int]

    def run(self, names: list[str], output: UnitOutput) -> Mapping[str, int]:
        counts: list[int] = []
        in_order = self._in_order(output.workspace, names, counts)
        output.write_batches("dedup/duplicates.parquet", DUPLICATES, in_order)
        output.write_json("dedup/limits.json", {name: int(n) for name, n in self.limits.items()})
        return {"inputs": sum(counts), "kept": sum(counts)}

    def _in_order(self, workspace: Workspace, names: list[str], counts: list[int]) -> Iterator[pa.Table]:
        for number in range(self.ranges):
            rows = gather(workspace, names, number, PACKED_DUPLICATES)
            rows = rows.sort_by([("part", "ascending"), ("uid", "ascending")])
            counts.append(rows.num_rows)
            for name in ("uid", "survivor"):
                rows = rows.set_column(rows.column_names.index(name), name, unpack_uids(rows[name]))
            yield rows
