"""Read an untrusted Parquet file: its footer and the headers of its pages are checked before they are decompressed.

The header of a page states its decompressed size, and readers trust it: 13 kB can fill gigabytes. `CheckedFile` wraps
the file, parses the page headers as they are read, and fails at a page that is too large. Page checksums are verified
where the file has them.

The offsets of pages are in the footer, which is parsed here, because pyarrow ends the process if it is given a damaged
one (`RowGroupMetaData.column`). All are Thrift structs in the compact protocol (parquet.thrift; fields by number):

    FileMetaData    4 row_groups
    RowGroup        1 columns   3 num_rows
    ColumnChunk     3 meta_data
    ColumnMetaData  2 encodings   3 path_in_schema   7 total_compressed_size   9 data_page_offset
                    11 dictionary_page_offset
    PageHeader      1 type   2 uncompressed_page_size   3 compressed_page_size
                    5 DataPageHeader: 1 num_values   2 encoding   8 DataPageHeaderV2: 1 num_values   4 encoding
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

_READ_BYTES = 1 << 16
_MAX_GROWN_PAGE_BYTES = 1 << 30
_SHORTEST_TEXT_BYTES = 1 << 16
_MAX_HEADER_BYTES = 1 << 20
_MAX_FOOTER_BYTES = 64 << 20
_MAX_NESTING = 16
_MAX_VALUES_PER_BYTE = 20  # of a file, beyond the first million: a null takes as much time as a text
_FREE_VALUES = 1_000_000
_MAGIC = b"PAR1"
_DELTA_BYTE_ARRAY = 7
_DICTIONARY_PAGE = 2

# Types of the compact protocol.
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)
_INTEGERS = frozenset({_I16, _I32, _I64})


@dataclass(frozen=True)
class PageLimits:
    """Limits of decompressed bytes: of one page, and of all pages in a batch of rows."""

    page_bytes: int = 32 << 20
    delta_page_bytes: int = 4 << 20
    batch_bytes: int = 256 << 20
    growth: int = 0  # bytes that each packed byte may become, beyond `page_bytes`: where one value may be large
    rows: int = 1_024  # of a batch


TEXT = PageLimits()


class ColumnChunk(NamedTuple):
    """The pages of one column in one row group."""

    encodings: list[int]
    start: int  # in the file
    packed_bytes: int


class RowGroup(NamedTuple):
    """Some rows of a file, and the offsets of their columns."""

    rows: int
    chunks: list[ColumnChunk]


class PageHeader(NamedTuple):
    """The required fields of a page's header."""

    bytes: int  # of the header itself
    is_dictionary: bool
    unpacked_bytes: int
    packed_bytes: int
    values: int
    encoding: int | None


class GuardedParquet:
    """An untrusted Parquet file, open for reading."""

    def __init__(self, stream: BinaryIO, limits: PageLimits) -> None:
        """Read the footer.

        Raises:
            pa.ArrowException, OSError, UnicodeDecodeError: it is not a Parquet file, or it is damaged.
        """
        self._stream = stream
        self._limits = limits
        self._file = CheckedFile(stream, limits)
        _footer_place(stream)
        self._table = pq.ParquetFile(
            self._file, pre_buffer=False, buffer_size=_READ_BYTES, page_checksum_verification=True
        )
        self.schema: pa.Schema = self._table.schema_arrow

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the rows of some columns, in batches that fit in memory.

        Raises:
            pa.ArrowException, OSError, UnicodeDecodeError: the file is damaged, or it unpacks to more than a limit.
        """
        groups = list(_read_row_groups(self._stream, columns))
        if len(groups) != self._table.num_row_groups:
            raise pa.ArrowInvalid("row groups are missing")
        self._file.limit_values(groups)
        for number, group in enumerate(groups):
            if not group.rows:
                continue
            rows = self._file.expect(group.chunks)
            for batch in self._table.iter_batches(rows, row_groups=[number], columns=[*columns], use_threads=False):
                yield batch
                self._file.start_batch()


class CheckedFile(io.RawIOBase):
    """A Parquet file for reading; raises `pa.ArrowInvalid` if a page, or the pages of a batch, are too large."""

    def __init__(self, stream: BinaryIO, limits: PageLimits) -> None:
        self._stream = stream
        self._limits = limits
        self._size = stream.seek(0, io.SEEK_END)
        self._values_left = 0
        self._headers: dict[int, bytes] = {}  # where a page header is expected: what was read of it so far
        self._ends: dict[int, int] = {}  # the column chunk's end, by the same place
        self._batch_bytes = 0
        self._may_be_delta = False
        self._max_dictionary_bytes = 0

    def limit_values(self, groups: list[RowGroup]) -> None:
        """Limit the values to be read, empty ones included, by the bytes of the column chunks that hold them.

        Raises:
            pa.ArrowInvalid: the file claims more rows than that.
        """
        chunks = [chunk for group in groups for chunk in group.chunks]
        most = _FREE_VALUES + _MAX_VALUES_PER_BYTE * min(self._size, sum(chunk.packed_bytes for chunk in chunks))
        rows = sum(group.rows for group in groups)
        if rows > most:
            raise pa.ArrowInvalid(f"{rows:,} rows, too many for the bytes of the file")
        self._values_left = most * max((len(group.chunks) for group in groups), default=0)

    def expect(self, chunks: list[ColumnChunk]) -> int:
        """Register the column chunks that are read next; return how many rows fit into memory at once. A dictionary
        entry may be the value of every row, and a DELTA_BYTE_ARRAY value may repeat the previous one, so a small page
        can expand to much text.
        """
        self._headers, self._ends = {}, {}
        self._may_be_delta = any(_DELTA_BYTE_ARRAY in chunk.encodings for chunk in chunks)
        dictionaries = [self._dictionary_bytes(chunk.start) for chunk in chunks]
        self._max_dictionary_bytes = max(dictionaries, default=0)
        repeated = max(1, self._max_dictionary_bytes, self._may_be_delta * self._limits.delta_page_bytes)
        for chunk in chunks:
            self._headers[chunk.start], self._ends[chunk.start] = b"", chunk.start + chunk.packed_bytes
        return max(1, min(self._limits.rows, self._limits.batch_bytes // repeated))

    def _dictionary_bytes(self, start: int) -> int:
        self.seek(start)
        try:
            header = parse_page_header(self._stream.read(_MAX_HEADER_BYTES))
        except IndexError:
            return self._limits.page_bytes
        return header.unpacked_bytes if header.is_dictionary else 0

    def start_batch(self) -> None:
        """Start to count the bytes of a new batch."""
        self._batch_bytes = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def read(self, size: int = -1) -> bytes:
        start = self._stream.tell()
        data = self._stream.read(size)
        for place in [p for p, known in self._headers.items() if start <= p + len(known) < start + len(data)]:
            self._check(place, data, start)
        return data

    def _check(self, place: int, data: bytes, data_start: int) -> None:
        """Parse the headers in `data`, which is at `data_start` in the file, from `place` on."""
        known, end = self._headers.pop(place), self._ends.pop(place)
        while place < end:
            if place >= data_start + len(data):
                break
            offset = max(0, place + len(known) - data_start)
            raw = known + data[offset : offset + _MAX_HEADER_BYTES]
            try:
                header = parse_page_header(raw)
            except IndexError:
                if len(raw) >= _MAX_HEADER_BYTES:
                    raise pa.ArrowInvalid("a page header does not end") from None
                known = raw
                break
            self._judge(header, self._size - place)
            place, known = place + header.bytes + header.packed_bytes, b""
        if place < end:
            self._headers[place], self._ends[place] = known, end

    def _judge(self, header: PageHeader, held_bytes: int) -> None:
        """Judge a page; no more than `held_bytes` of it can be in the file."""
        grown = min(_MAX_GROWN_PAGE_BYTES, self._limits.growth * min(header.packed_bytes, held_bytes))
        limit = max(self._limits.page_bytes, grown)
        if header.is_dictionary:
            limit = min(limit, self._max_dictionary_bytes)
        elif header.encoding == _DELTA_BYTE_ARRAY:
            limit = self._limits.delta_page_bytes if self._may_be_delta else 0
        if min(header.unpacked_bytes, header.packed_bytes) < 0 or header.unpacked_bytes > limit:
            raise pa.ArrowInvalid(f"a page of {header.unpacked_bytes:,} bytes; the limit is {limit:,}")
        self._batch_bytes += max(0, header.unpacked_bytes - grown)
        if self._batch_bytes > self._limits.batch_bytes:
            raise pa.ArrowInvalid(f"more than {self._limits.batch_bytes:,} bytes in a batch of rows")
        self._values_left -= 0 if header.is_dictionary else max(0, header.values)
        if self._values_left < 0:
            raise pa.ArrowInvalid("more values than the bytes of the file can hold")


def _footer_place(stream: BinaryIO) -> tuple[int, int]:
    """Return where the footer begins, and its length.

    Raises:
        pa.ArrowInvalid: there is none, or it is too long.
    """
    size = stream.seek(0, io.SEEK_END)
    stream.seek(max(0, size - _READ_BYTES))  # a small file is read from its beginning: some servers have no ranges
    tail = stream.read(_READ_BYTES)[-8:]
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != _MAGIC or length > min(size - 8, _MAX_FOOTER_BYTES):
        raise pa.ArrowInvalid("the footer is missing or too long")
    return size - 8 - length, length


def _read_row_groups(stream: BinaryIO, columns: Sequence[str]) -> Iterator[RowGroup]:
    """Yield the row groups in the footer of a file, each with the chunks of some columns and what is nested in them.

    Raises:
        pa.ArrowInvalid: the footer cannot be read.
    """
    start, length = _footer_place(stream)
    stream.seek(start)
    try:
        for group in _Thrift(stream.read(length)).elements_of_field(4):
            yield _row_group(group, columns)
    except (IndexError, KeyError, TypeError, AttributeError, UnicodeDecodeError):
        raise pa.ArrowInvalid("the footer cannot be read") from None


def _row_group(group: Any, columns: Sequence[str]) -> RowGroup:
    chunks = []
    for column in group[1]:
        facts = column[3]
        names = [name.decode() for name in facts[3]]
        if names[0] in columns or ".".join(names) in columns:
            first, dictionary = int(facts[9]), int(facts.get(11) or 0)
            start = dictionary if 0 < dictionary < first else first
            chunks.append(ColumnChunk(list(facts[2]), start, int(facts[7])))
    if group[3] < 0 or any(min(chunk.start, chunk.packed_bytes) < 0 for chunk in chunks):
        raise IndexError
    return RowGroup(int(group[3]), chunks)


def parse_page_header(raw: bytes) -> PageHeader:
    """Parse the Thrift struct at the start of `raw`.

    Raises:
        IndexError: `raw` is incomplete. pa.ArrowInvalid: it is not a page header.
    """
    reader = _Thrift(raw)
    values = reader.struct(0)
    data_page, second_version = values.get(5), values.get(8)
    count = encoding = None
    if isinstance(data_page, dict):
        count, encoding = data_page.get(1), data_page.get(2)
    elif isinstance(second_version, dict):
        count, encoding = second_version.get(1), second_version.get(4)
    unpacked, packed = values.get(2), values.get(3)
    if not isinstance(unpacked, int) or not isinstance(packed, int):
        raise pa.ArrowInvalid("a page header without sizes")
    return PageHeader(
        reader.position,
        values.get(1) == _DICTIONARY_PAGE,
        unpacked,
        packed,
        count if isinstance(count, int) else 0,
        encoding if isinstance(encoding, int) else None,
    )


class _Thrift:
    """Reads structs of the compact protocol: each a dict of its fields by number."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self.position = 0

    def struct(self, depth: int) -> dict[int, Any]:
        if depth > _MAX_NESTING:
            raise pa.ArrowInvalid("structs nest too deeply")
        values: dict[int, Any] = {}
        field = 0
        while head := self._byte():
            field = field + (head >> 4) if head >> 4 else self._integer()
            values[field] = self._value(head & 0x0F, depth)
        return values

    def elements_of_field(self, wanted: int) -> Iterator[Any]:
        """Yield the elements of a list in the struct at the position, one at a time; the other fields are skipped."""
        field = 0
        while head := self._byte():
            field = field + (head >> 4) if head >> 4 else self._integer()
            if field == wanted and head & 0x0F == _LIST:
                yield from self._elements(0)
            elif head & 0x0F == _LIST:
                for _ in self._elements(0):
                    pass
            else:
                self._value(head & 0x0F, 0)

    def _value(self, kind: int, depth: int) -> Any:
        if kind in _INTEGERS:
            return self._integer()
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind in (_LIST, _SET):
            return list(self._elements(depth))
        if kind == _BINARY:
            return self._advance(self._varint())
        if kind in (_TRUE, _FALSE):
            return None
        if kind in (_BYTE, _DOUBLE):
            self._advance(1 if kind == _BYTE else 8)
            return None
        raise pa.ArrowInvalid("a map")  # no version of the format has one

    def _elements(self, depth: int) -> Iterator[Any]:
        head = self._byte()
        count, kind = head >> 4, head & 0x0F
        count = self._varint() if count == 15 else count
        for _ in range(count):
            yield self._advance(1) if kind in (_TRUE, _FALSE) else self._value(kind, depth + 1)

    def _byte(self) -> int:
        value = self._raw[self.position]
        self.position += 1
        return value

    def _advance(self, size: int) -> bytes:
        self.position += size
        if self.position > len(self._raw):
            raise IndexError
        return self._raw[self.position - size : self.position]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
            if shift > 63:
                raise pa.ArrowInvalid("a number of more than 64 bits in a page header")

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
