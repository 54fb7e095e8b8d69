"""Rows on this machine's disk, sorted into buckets, and ways to hold fewer of them in memory: `Fewer` and `Cut`."""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import IO

import numpy as np
import pyarrow as pa

from pipeline.errors import DamagedFileError, one_line

CHUNK_BYTES = 32 << 20
_COMPRESSED = pa.ipc.IpcWriteOptions(compression="zstd")


class Sorted:
    """Rows sorted into buckets, chunk by chunk; what is more than a chunk goes to this machine's disk.

    Small batches are gathered into chunks of at least CHUNK_BYTES, so that a bucket is not a thousand tiny ones.
    `pieces` has, of each bucket, the (start, end) of the scratch file that hold its rows, in order; `rows` has their
    number.
    """

    def __init__(self, schema: pa.Schema, buckets: int, scratch: IO[bytes], writer: pa.ipc.RecordBatchStreamWriter):
        self.pieces: list[list[tuple[int, int]]] = [[] for _ in range(buckets)]
        self.rows = [0] * buckets
        self._schema, self._scratch, self._writer = schema, scratch, writer
        self._held: list[tuple[pa.Table, np.ndarray]] = []
        self._held_bytes = 0

    def add(self, table: pa.Table, numbers: np.ndarray) -> None:
        """Take rows, with the bucket of each."""
        if not len(numbers):
            return
        self._held.append((table, numbers))
        self._held_bytes += table.nbytes
        if self._held_bytes >= CHUNK_BYTES:
            self.flush()

    def flush(self) -> None:
        if not self._held:
            return
        table = pa.concat_tables([table for table, _ in self._held])
        numbers = np.concatenate([numbers for _, numbers in self._held])
        self._held, self._held_bytes = [], 0
        order = np.argsort(numbers, kind="stable")
        (ordered,) = table.cast(self._schema).combine_chunks().take(pa.array(order)).combine_chunks().to_batches()
        edges = [0, *(np.flatnonzero(np.diff(numbers[order])) + 1), len(order)]
        for start, end in pairwise(map(int, edges)):
            at, bucket = self._scratch.tell(), numbers[order[start]]
            self._writer.write_batch(ordered.slice(start, end - start))
            self.pieces[bucket].append((at, self._scratch.tell()))
            self.rows[bucket] += end - start

    def size(self, bucket: int) -> int:
        return sum(end - start for start, end in self.pieces[bucket])

    def read(self, bucket: int) -> Iterator[bytes]:
        for start, end in self.pieces[bucket]:
            self._scratch.seek(start)
            yield self._scratch.read(end - start)

    def tables(self, bucket: int) -> Iterator[pa.Table]:
        for content in self.read(bucket):
            yield pa.Table.from_batches(decoded("scratch", content, self._schema), self._schema)


@contextmanager
def sorting(schema: pa.Schema, buckets: int) -> Iterator[Sorted]:
    with (
        tempfile.SpooledTemporaryFile(max_size=CHUNK_BYTES, prefix="wit-spill-") as scratch,
        pa.ipc.new_stream(scratch, schema, options=_COMPRESSED) as writer,
    ):
        writer.write_batch(pa.RecordBatch.from_pylist([], schema))  # a writer's first batch comes after the schema
        yield Sorted(schema, buckets, scratch, writer)


@contextmanager
def sort_rows(schema: pa.Schema, buckets: int, batches: Iterable[tuple[pa.Table, np.ndarray]]) -> Iterator[Sorted]:
    with sorting(schema, buckets) as held:
        for table, numbers in batches:
            held.add(table, numbers)
        held.flush()
        yield held


@dataclass(frozen=True)
class Fewer:
    """Whenever more than `rows` rows are held, `combine` makes them fewer: drops repeated ones, or adds them up.

    If it cannot, twice as many as it left are read before it tries again.
    """

    rows: int
    combine: Callable[[pa.Table], pa.Table]

    def read(self, tables: Iterable[pa.Table], schema: pa.Schema) -> pa.Table:
        """Return the rows of tables, combined where they were too many."""
        held, rows, most = [schema.empty_table()], 0, self.rows
        for table in tables:
            held.append(table)
            rows += table.num_rows
            if rows > most:
                held = [self.combine(pa.concat_tables(held))]
                rows = held[0].num_rows
                most = max(self.rows, 2 * rows)
        return pa.concat_tables(held)


@dataclass(frozen=True)
class Cut:
    """Cuts a piece that has more than `rows` rows into some of about that number, by a number that `key_of` returns of
    each row: those of one number stay together.
    """

    rows: int
    key_of: Callable[[pa.Table], np.ndarray]

    @contextmanager
    def read(self, tables: Iterable[pa.Table], schema: pa.Schema) -> Iterator[Iterable[pa.Table]]:
        """Give the cuts of a piece, which can be read again and again, one in memory at a time."""
        held, rows = [schema.empty_table()], 0
        unread = iter(tables)
        for table in unread:
            held.append(table)
            rows += table.num_rows
            if rows > self.rows:
                break
        else:
            yield [pa.concat_tables(held)]
            return
        with sort_rows(schema, 1, ((t, np.zeros(t.num_rows, np.int32)) for t in chain(held, unread))) as whole:
            del held
            count = -(-whole.rows[0] // self.rows)
            routed = ((t, (self.key_of(t) % count).astype(np.int32)) for t in whole.tables(0))
            with sort_rows(schema, count, routed) as cuts:
                yield _Cuts(cuts, count, schema)


@dataclass(frozen=True)
class _Cuts:
    held: Sorted
    count: int
    schema: pa.Schema

    def __iter__(self) -> Iterator[pa.Table]:
        for cut in range(self.count):
            yield pa.concat_tables([self.schema.empty_table(), *self.held.tables(cut)])


def decoded(name: str, encoded: bytes | memoryview, schema: pa.Schema) -> list[pa.RecordBatch]:
    found = []
    try:
        with pa.BufferReader(encoded) as reader:
            while reader.tell() < len(encoded):
                found.append(pa.ipc.read_record_batch(pa.ipc.read_message(reader), schema))
    except (pa.ArrowInvalid, OSError, EOFError) as error:
        raise DamagedFileError.of(name, one_line(error)) from error
    return found
