"""Decide in rounds, piece by piece, which near duplicates go, and which pair represents them.

dedup/duplicates.py has the rule: an image goes if a better-ranked neighbour of it stays. Each image belongs to the
piece of its uid, which holds the edges to its better neighbours. In a round, a piece decides what it can: an image
all of whose better neighbours have gone stays; an image with one that stays goes. It tells the pieces of the
neighbours, which decide more in the next round. No process ever holds more than one piece's edges; with one piece,
one round decides everything. With random ranks some log(n) rounds suffice. Pieces grow in number with the set; a unit
has a bucket of them and decides them one after the other.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dedup.duplicates import MAX_BETTER, Status, decide
from pipeline.engine.shuffle import Pieces, bucket_of_part, gather, gather_pieces, gather_streams, spill
from pipeline.engine.sorted_rows import Fewer
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
"""Near fingerprints, in the piece of the worse-ranked image."""

EDGE_BYTES = 640
"""Memory of an edge while its piece is decided, with the copies that sorting makes."""

LISTENERS = pa.schema([("uid", PACKED_UID), ("piece", pa.int32())])
"""Pieces that wait for the decision about an image, in the piece of the image."""

_WAITING = EDGES.append(pa.field("better_stays", pa.bool_()))
_MESSAGES = pa.schema([("uid", PACKED_UID), ("stays", pa.bool_()), ("piece", pa.int32())])
"""Decisions about images, for the pieces that listen to them."""

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


def piece_of_uid(uids: pa.Array | pa.ChunkedArray, pieces: int) -> np.ndarray:
    """Return the piece of each uid, (n,) int32."""
    return (uid_numbers(uids)[1] % np.uint64(pieces)).astype(np.int32)


def piece_of_loser(losers: pa.Table, pieces: int) -> np.ndarray:
    """Return the piece of each survivor in PACKED_DUPLICATES, or of the pair that has none, (n,) int32."""
    return piece_of_uid(pc.coalesce(losers["survivor"], losers["uid"]), pieces)


class Round(NamedTuple):
    """The files that a round leaves for the next: of each piece, and the messages of each bucket of pieces."""

    number: int

    def waiting(self, piece: int) -> str:
        return f".wit/dedup/settled/{self.number:03d}/waiting/{piece:05d}.parquet"

    def listeners(self, piece: int) -> str:
        return f".wit/dedup/settled/{self.number:03d}/listeners/{piece:05d}.parquet"

    def near(self, piece: int) -> str:
        return f".wit/dedup/settled/{self.number:03d}/near/{piece:05d}.parquet"

    def messages(self, bucket: int) -> str:
        return f".wit/dedup/settled/{self.number:03d}/messages/{bucket:05d}.rows"


@dataclass(frozen=True)
class SettleFirst:
    """The first round: from the spilled edges and listeners, without messages. `at_once` edges fit in memory."""

    edges: list[str]
    listeners: list[str]
    pieces: Pieces
    at_once: int

    def run(self, bucket: int, output: UnitOutput) -> Mapping[str, int]:
        counts = Counter(inputs=0, kept=0, waiting=0)

        def best(edges: pa.Table) -> pa.Table:
            kept = keep_best_edges(edges)
            counts["inputs"] += edges.num_rows - kept.num_rows
            return kept

        def states() -> Iterator[tuple[int, _State, pa.Table]]:
            places, count, workspace = self.pieces.of_bucket(bucket), self.pieces.count, output.workspace
            edges = gather_pieces(
                workspace, self.edges, bucket, EDGES, places, _piece_of("worse", count), Fewer(self.at_once, best)
            )
            fewer = Fewer(self.at_once, distinct_listeners)
            listeners = gather_pieces(
                workspace, self.listeners, bucket, LISTENERS, places, _piece_of("uid", count), fewer
            )
            for piece, of_piece, listening in zip(places, edges, listeners, strict=True):
                waiting = best(of_piece)
                counts.update(inputs=waiting.num_rows, kept=waiting.num_rows)
                unknown = pa.nulls(waiting.num_rows, pa.bool_())
                state = _State(waiting.append_column("better_stays", unknown), distinct_listeners(listening))
                yield piece, state, _MESSAGES.empty_table()

        counts["waiting"] = _settle_all(states(), self.pieces, bucket, Round(1), output)
        return counts


@dataclass(frozen=True)
class SettleNext:
    """A later round: from what the round before it left."""

    number: int
    pieces: Pieces

    def run(self, bucket: int, output: UnitOutput) -> Mapping[str, int]:
        before, workspace = Round(self.number - 1), output.workspace
        names = [before.messages(other) for other in range(self.pieces.buckets)]
        rows = 0

        def states() -> Iterator[tuple[int, _State, pa.Table]]:
            nonlocal rows
            places = self.pieces.of_bucket(bucket)
            told = gather_pieces(workspace, names, bucket, _MESSAGES, places, lambda rows: rows["piece"].to_numpy())
            for piece, messages in zip(places, told, strict=True):
                waiting = workspace.read_table(before.waiting(piece)).cast(_WAITING)
                rows += waiting.num_rows
                yield piece, _State(waiting, workspace.read_table(before.listeners(piece)).cast(LISTENERS)), messages

        left = _settle_all(states(), self.pieces, bucket, Round(self.number), output)
        return {"inputs": rows, "kept": rows, "waiting": left}


class _State(NamedTuple):
    waiting: pa.Table  # _WAITING, sorted by worse image, then by the rank of the better one
    listeners: pa.Table


def _piece_of(column: str, pieces: int) -> Callable[[pa.Table], np.ndarray]:
    return lambda rows: piece_of_uid(rows[column], pieces)


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
    return listeners.group_by(["uid", "piece"]).aggregate([]).select(LISTENERS.names).cast(LISTENERS)


def _settle_all(
    states: Iterable[tuple[int, _State, pa.Table]], pieces: Pieces, bucket: int, step: Round, output: UnitOutput
) -> int:
    """Decide the pieces of a bucket, (piece, its state, messages to it); return the number of edges that wait."""
    left = 0

    def told() -> Iterator[tuple[pa.Table, np.ndarray]]:
        nonlocal left
        for piece, state, messages in states:
            waiting, sent = _settle(state, messages, piece, pieces.count, step, output)
            left += waiting
            yield sent, pieces.bucket_of(sent["piece"].to_numpy())

    spill(output, step.messages(bucket), _MESSAGES, pieces.buckets, told())
    return left


def _settle(
    state: _State, messages: pa.Table, piece: int, pieces: int, step: Round, output: UnitOutput
) -> tuple[int, pa.Table]:
    """Decide what can be decided in a piece and write it down; return the number of edges that wait, and _MESSAGES."""
    waiting, listeners = state
    columns = [waiting["worse"], waiting["better"], listeners["uid"], messages["uid"]]
    every = pa.chunked_array([chunk for column in columns for chunk in column.chunks], PACKED_UID)
    first, node = _numbered(every)
    worse, better, listening, told = np.split(node, np.cumsum([len(column) for column in columns[:-1]]))

    status = np.full(len(first), Status.UNKNOWN)
    status[told] = np.where(messages["stays"].to_numpy(), Status.STAYS, Status.GOES)
    status[better[waiting["better_stays"].fill_null(False).to_numpy()]] = Status.STAYS
    is_own = piece_of_uid(every, pieces)[first] == piece
    status = decide(better, worse, status, is_own)

    is_open = (status[worse] != Status.STAYS) & (status[better] != Status.GOES)
    at = np.flatnonzero(is_open)
    is_best = np.diff(worse[at], prepend=-1) != 0
    settled = at[is_best & (status[worse[at]] == Status.GOES) & (status[better[at]] == Status.STAYS)]
    output.write_table(step.near(piece), _near_rows(waiting.take(pa.array(settled))))
    left = at[~np.isin(worse[at], worse[settled])]
    stays = pa.array(np.full(len(left), True), mask=status[better[left]] != Status.STAYS)
    column = waiting.column_names.index("better_stays")
    output.write_table(step.waiting(piece), waiting.take(pa.array(left)).set_column(column, "better_stays", stays))

    is_decided = status[listening] != Status.UNKNOWN
    output.write_table(step.listeners(piece), listeners.filter(pa.array(~is_decided)))
    is_sent = is_decided & (listeners["piece"].to_numpy() != piece)
    sent = listeners.filter(pa.array(is_sent))
    stays = pa.array(status[listening[is_sent]] == Status.STAYS)
    return len(left), pa.table([sent["uid"], stays, sent["piece"]], schema=_MESSAGES)


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
    pieces: Pieces
    parts: int
    ranges: int

    def run(self, bucket: int, output: UnitOutput) -> Mapping[str, int]:
        routed = (
            (t, bucket_of_part(t["part"].to_numpy(), self.parts, self.ranges)) for t in self._tables(output, bucket)
        )
        rows = spill(output, f".wit/dedup/followed/{bucket:05d}.rows", PACKED_DUPLICATES, self.ranges, routed)
        return {"inputs": rows, "kept": rows}

    def _tables(self, output: UnitOutput, bucket: int) -> Iterator[pa.Table]:
        places, count = self.pieces.of_bucket(bucket), self.pieces.count
        gone = gather_streams(
            output.workspace, self.losers, bucket, PACKED_DUPLICATES, places, lambda rows: piece_of_loser(rows, count)
        )
        for piece, losers in zip(places, gone, strict=True):
            files = [Round(number).near(piece) for number in range(1, self.rounds + 1)]
            read = [output.workspace.read_table(name).cast(PACKED_DUPLICATES) for name in files]
            near = pa.concat_tables([PACKED_DUPLICATES.empty_table(), *read])
            yield near
            for some in losers:  # a picture may have any number of copies
                yield follow_survivors(some, near)


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
