"""Grouping through files: rows are written to numbered buckets without Beam's shuffle.

Beam's local runner keeps every shuffled byte in memory (about four times the payload), and each cluster shuffles
differently. So rows are spilled: each unit writes one file with its rows sorted into buckets, and the unit of a bucket
reads its range of bytes, and nothing else, from all those files. Memory is one chunk when writing and one bucket when
reading; the result is the same on every runner and can be resumed. There are at most MAX_BUCKETS buckets, which keeps
the number of ranges small; where they would not fit in memory, a unit sorts its bucket into pieces on its own disk, and
where even one piece may not, because rows repeat in it, it makes them fewer while it reads, or cuts the piece again
(`sorted_rows.py`).

A spilled file of n buckets begins with n + 1 offsets (int64, little-endian): bucket b is the bytes from offset b to
offset b + 1: `_CHECKED` and a CRC-32 (4 bytes, little-endian) of what follows, Arrow IPC record batches one after the
other. Earlier versions wrote buckets without the first two.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import numpy as np
import pyarrow as pa

from pipeline.engine import sorted_rows
from pipeline.engine.sorted_rows import Fewer, Sorted, decoded, sort_rows, sorting
from pipeline.engine.units import UnitOutput
from pipeline.engine.workspace import Workspace
from pipeline.errors import DamagedFileError, one_line

MAX_BUCKETS = 1_024
_OFFSET = np.dtype("<i8")
_CHECKED = b"WITC"
_CRC_BYTES = 4
_READ_BYTES = 1 << 20


def spill(
    output: UnitOutput, name: str, schema: pa.Schema, buckets: int, batches: Iterable[tuple[pa.Table, np.ndarray]]
) -> int:
    """Write rows sorted into buckets; return the number of rows. Each batch comes with the bucket of every row."""
    with spilling(output, name, schema, buckets) as held:
        for table, numbers in batches:
            held.add(table, numbers)
    return sum(held.rows)


@contextmanager
def spilling(output: UnitOutput, name: str, schema: pa.Schema, buckets: int) -> Iterator[Sorted]:
    """Give what takes rows, with the bucket of each; they are written when the block ends."""
    with sorting(schema, buckets) as held:
        yield held
        held.flush()
        with output.create(name) as out:
            check_bytes = len(_CHECKED) + _CRC_BYTES
            sizes = [held.size(bucket) + check_bytes * bool(held.pieces[bucket]) for bucket in range(buckets)]
            header = _OFFSET.itemsize * (buckets + 1)
            out.write((header + np.cumsum([0, *sizes])).astype(_OFFSET).tobytes())
            for bucket in range(buckets):
                if held.pieces[bucket]:
                    crc = 0
                    for content in held.read(bucket):
                        crc = zlib.crc32(content, crc)
                    out.write(_CHECKED + crc.to_bytes(_CRC_BYTES, "little"))
                for content in held.read(bucket):
                    out.write(content)


def gather(workspace: Workspace, names: Sequence[str], bucket: int, schema: pa.Schema) -> pa.Table:
    """Read the rows of one bucket from spilled files, in the order of `names`.

    Raises:
        DamagedFileError: a file is not what was written.
    """
    filled = _filled(workspace, names, bucket)
    return pa.Table.from_batches(_read(workspace, filled, schema), schema)


def gather_some(workspace: Workspace, names: Sequence[str], bucket: int, schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the rows of `gather`, in the same order, about CHUNK_BYTES of the files at a time.

    Raises:
        DamagedFileError: a file is not what was written; some of its rows may have been yielded.
    """
    for ranges in _by_bytes(_filled(workspace, names, bucket)):
        name, start, end = ranges[0]
        if end - start >= sorted_rows.CHUNK_BYTES:
            yield from _streamed(workspace, name, start, end, schema)
        else:
            yield pa.Table.from_batches(_read(workspace, ranges, schema), schema)


def gather_pieces(
    workspace: Workspace,
    names: Sequence[str],
    bucket: int,
    schema: pa.Schema,
    pieces: range,
    piece_of: Callable[[pa.Table], np.ndarray],
    fewer: Fewer | None = None,
) -> Iterator[pa.Table]:
    """Yield the rows of one bucket piece by piece, one in memory at a time, each in the order of `gather`.

    `piece_of` returns the piece of each row. The bucket is sorted on this machine's disk: so buckets, of which there
    are at most MAX_BUCKETS, may be of any size.

    Raises:
        DamagedFileError: a file is not what was written.
    """
    for tables in gather_streams(workspace, names, bucket, schema, pieces, piece_of):
        if fewer is not None:
            yield fewer.read(tables, schema)
        else:
            yield pa.concat_tables([schema.empty_table(), *tables])


def gather_streams(
    workspace: Workspace,
    names: Sequence[str],
    bucket: int,
    schema: pa.Schema,
    pieces: range,
    piece_of: Callable[[pa.Table], np.ndarray],
) -> Iterator[Iterator[pa.Table]]:
    """Yield the rows of each piece of `gather_pieces`, about CHUNK_BYTES at a time.

    Raises:
        DamagedFileError: a file is not what was written.
    """
    if len(pieces) == 1:
        yield gather_some(workspace, names, bucket, schema)
        return
    routed = ((rows, piece_of(rows) - pieces.start) for rows in gather_some(workspace, names, bucket, schema))
    with sort_rows(schema, len(pieces), routed) as held:
        for piece in range(len(pieces)):
            yield held.tables(piece)


_Range = tuple[str, int, int]


def _filled(workspace: Workspace, names: Sequence[str], bucket: int) -> list[_Range]:
    """Return the ranges of bytes of a bucket, of the files that have rows of it."""
    at = _OFFSET.itemsize * bucket
    edges = workspace.read_ranges([(name, at, at + 2 * _OFFSET.itemsize) for name in names])
    folders = {name.rpartition("/")[0] for name in names}
    sizes = {name: size for folder in folders for name, size in workspace.sizes(folder).items()}
    ranges = [(name, *_span(name, edge, sizes[name])) for name, edge in zip(names, edges, strict=True)]
    return [(name, start, end) for name, start, end in ranges if start < end]


def _by_bytes(ranges: Iterable[_Range]) -> Iterator[list[_Range]]:
    """Group ranges that are read together, of about CHUNK_BYTES; one that is larger is alone."""
    group: list[_Range] = []
    held_bytes = 0
    for name, start, end in ranges:
        if group and held_bytes + end - start > sorted_rows.CHUNK_BYTES:
            yield group
            group, held_bytes = [], 0
        group.append((name, start, end))
        held_bytes += end - start
    if group:
        yield group


def _read(workspace: Workspace, ranges: Sequence[_Range], schema: pa.Schema) -> list[pa.RecordBatch]:
    found = zip(ranges, workspace.read_ranges(ranges), strict=True)
    return [batch for (name, start, end), content in found for batch in _batches(name, content, end - start, schema)]


def _streamed(workspace: Workspace, name: str, start: int, end: int, schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the record batches of a range one at a time; the checksum is compared at its end."""
    with workspace.open(name) as file:
        file.seek(start)
        head = file.read(len(_CHECKED) + _CRC_BYTES)
        is_checked = head.startswith(_CHECKED)
        if not is_checked:
            file.seek(start)
        crc = int.from_bytes(head[len(_CHECKED) :], "little") if is_checked else None
        raw = _Summed(file, end - start - len(head) * is_checked)
        with pa.PythonFile(raw, mode="r") as source:
            while raw.left:
                try:
                    batch = pa.ipc.read_record_batch(pa.ipc.read_message(source), schema)
                except (pa.ArrowException, OSError, EOFError) as error:
                    if isinstance(error, OSError) and error.errno is not None:  # of the system
                        raise
                    raw.check(name, crc)  # damage can look like anything, a lack of memory too
                    if isinstance(error, MemoryError):
                        raise
                    raise DamagedFileError.of(name, one_line(error)) from error
                yield pa.Table.from_batches([batch], schema)
        raw.check(name, crc)


class _Summed:
    """The next `left` bytes of a file, open for reading, and the CRC-32 of those that were read."""

    closed = False

    def __init__(self, raw: IO[bytes], left: int) -> None:
        self._raw = raw
        self.left = left
        self.crc = 0

    def read(self, size: int = -1) -> bytes:
        data = self._raw.read(self.left if size < 0 else min(size, self.left))
        self.left -= len(data)
        self.crc = zlib.crc32(data, self.crc)
        return data

    def check(self, name: str, crc: int | None) -> None:
        """Read the rest. Raises: DamagedFileError: the CRC-32 is another one."""
        while self.read(_READ_BYTES):
            pass
        if crc is not None and (self.left or self.crc != crc):
            raise DamagedFileError.of(name, "its checksum does not match")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        """Do nothing: the caller closes the file."""


def _span(name: str, edge: bytes, size: int) -> tuple[int, int]:
    start, end = np.frombuffer(edge, _OFFSET).tolist() if len(edge) == 2 * _OFFSET.itemsize else (-1, -1)
    if not 0 <= start <= end <= size:
        raise DamagedFileError.of(name, "its table of contents has changed since it was written")
    return start, end


def _batches(name: str, content: bytes, size: int, schema: pa.Schema) -> list[pa.RecordBatch]:
    encoded = memoryview(content)
    if content.startswith(_CHECKED):
        head = len(_CHECKED) + _CRC_BYTES
        crc = int.from_bytes(content[len(_CHECKED) : head], "little")
        encoded = encoded[head:]
        if len(content) != size or zlib.crc32(encoded) != crc:
            raise DamagedFileError.of(name, "its checksum does not match")
    return decoded(name, encoded, schema)


@dataclass(frozen=True)
class Pieces:
    """`count` pieces of a set, each small enough for memory, in order in at most MAX_BUCKETS buckets."""

    count: int

    @property
    def buckets(self) -> int:
        return min(self.count, MAX_BUCKETS)

    def bucket_of(self, piece: np.ndarray) -> np.ndarray:
        """Return the bucket of each piece, (n,) int32."""
        return bucket_of_part(piece, self.count, self.buckets)

    def of_bucket(self, bucket: int) -> range:
        first, end = (-(-number * self.count // self.buckets) for number in (bucket, bucket + 1))
        return range(first, end)


def bucket_of_part(part: np.ndarray, parts: int, buckets: int) -> np.ndarray:
    """Return the bucket that holds a part: consecutive parts share one."""
    return (part.astype(np.int64) * buckets // parts).astype(np.int32)


def group_count(parts: int) -> int:
    """Return the number of groups for this number of parts."""
    return min(parts, MAX_BUCKETS)


def group_of_part(part: np.ndarray, parts: int) -> np.ndarray:
    """Return the number of the group of each part, (n,) int32."""
    return bucket_of_part(part, parts, group_count(parts))
