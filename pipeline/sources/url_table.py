"""Tables of image URLs and texts: parquet, csv, tsv and jsonl; the text kinds also compressed (.gz .bz2 .zst).

csv knows quotes, also around line ends (RFC 4180); tsv does not (IANA text/tab-separated-values), so a caption may hold
any quotation mark. Text is UTF-8.
"""

import bz2
import csv
import gzip
import itertools
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import PairsConfig, SourceConfig
from pipeline.errors import UserError
from pipeline.records import Reason
from pipeline.sources.batch import BatchBuilder, SourceBatch

Row = tuple[str | None, str | None, str | None]  # URL, text, page URL

_READ_BYTES = 1 << 16
_PARQUET_ROWS = 8_192
_MAX_LINE_BYTES = 16 << 20
_HEAD_ROWS = 1_000  # jsonl: where a column must appear
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_table(stream: BinaryIO, path: str, source: SourceConfig, limits: PairsConfig) -> Iterator[SourceBatch]:
    """Yield the candidates of a table, in file order; every row counts one.

    A line or row that does not parse is `damaged_record`; where a file breaks off or its compression is damaged, the
    lines before are kept and `damaged_file` counts once.

    Raises:
        UserError: the file's name does not say what it is, or it lacks a column.
    """
    builder = BatchBuilder(limits)
    for row in _rows(stream, path, source):
        if isinstance(row, Reason):
            builder.dropped[row] += 1
        else:
            builder.add_row(*row)
        if builder.is_full:
            yield builder.take()
    yield from builder.finish()


def _rows(stream: BinaryIO, path: str, source: SourceConfig) -> Iterator[Row | Reason]:
    name = PurePosixPath(urlsplit(path).path if "://" in path else path).name.lower()
    stem, _, suffix = name.rpartition(".")
    decompress = _COMPRESSIONS.get(suffix)
    if decompress is not None:
        suffix = stem.rpartition(".")[2]
    read_rows = _TEXT_KINDS.get(suffix)
    is_parquet = suffix == "parquet" and decompress is None
    if not is_parquet and read_rows is None:
        raise UserError(
            f"{path}: not a known kind of table; name it .parquet, .{', .'.join(_TEXT_KINDS)}"
            f" (or one of the last three with .{', .'.join(_COMPRESSIONS)})"
        )
    if not source.header and suffix not in ("csv", "tsv"):
        raise UserError(f"{path}: sources.header = false is for csv and tsv; {suffix} names its columns")
    if read_rows is None:
        return _parquet_rows(stream, path, source)
    return _text_rows(_Lines(decompress(stream) if decompress else stream.read), read_rows, path, source)


def _parquet_rows(stream: BinaryIO, path: str, source: SourceConfig) -> Iterator[Row | Reason]:
    try:
        table = pq.ParquetFile(stream, pre_buffer=False, buffer_size=_READ_BYTES)
        columns = _find_columns(source, table.schema_arrow.names, path)
        for name in columns:
            _check_text(table.schema_arrow.field(name), path)
        for batch in table.iter_batches(_PARQUET_ROWS, columns=[*dict.fromkeys(columns)], use_threads=False):
            values = [_texts(batch.column(name)) for name in columns]
            pages = values[2] if len(values) > 2 else [None] * batch.num_rows
            for row in zip(values[0], values[1], pages, strict=True):
                yield Reason.DAMAGED_RECORD if b"" in row else cast(Row, row)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        _raise_if_unreadable(error)
        yield Reason.DAMAGED_FILE


def _check_text(field: pa.Field, path: str) -> None:
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    tests = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_null,
    )
    if not any(test(kind) for test in tests):
        raise UserError(f"{path}: column {field.name!r} is {field.type}, not text")


def _texts(column: pa.Array) -> list[str | bytes | None]:
    """Return the values; b"" in place of one that is not UTF-8."""
    try:
        column = column.cast(pa.string())
        column.validate(full=True)
        return cast(list[str | bytes | None], column.to_pylist())
    except pa.ArrowInvalid:
        return [None if value is None else _decode(value) for value in column.cast(pa.binary()).to_pylist()]


def _decode(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return b""


class _Lines:
    """The lines of a file that may be damaged; what cannot be read is noted, and told by `take_reasons`."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read_some = read
        self._reasons: list[Reason] = []
        self.is_cut = False

    def __iter__(self) -> Iterator[bytes]:
        """Yield whole lines with their ends; a line that damage cuts is left out."""
        rest, is_too_long = b"", False
        while chunk := self._read():
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if not is_too_long:
                    yield line + b"\n"
                is_too_long = False
            if len(rest) > _MAX_LINE_BYTES:
                self._reasons += [] if is_too_long else [Reason.DAMAGED_RECORD]
                rest, is_too_long = b"", True
        if rest and not is_too_long and not self.is_cut:
            yield rest

    def take_reasons(self) -> list[Reason]:
        """Return the damage met since the last call."""
        reasons, self._reasons = self._reasons, []
        return reasons

    def _read(self) -> bytes:
        try:
            return self._read_some(_READ_BYTES)
        except (EOFError, zlib.error, pa.ArrowInvalid, OSError) as error:
            _raise_if_unreadable(error)
            self._reasons.append(Reason.DAMAGED_FILE)
            self.is_cut = True
            return b""


def _raise_if_unreadable(error: Exception) -> None:
    """Raise what the system reports (disk, network); the complaints of decoders about content carry no error number."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error


def _text_rows(lines: _Lines, read_rows: "_ReadRows", path: str, source: SourceConfig) -> Iterator[Row | Reason]:
    try:
        for row in read_rows(lines, path, source):
            yield row
            yield from lines.take_reasons()
    except EOFError:
        pass
    yield from lines.take_reasons()


def _jsonl_rows(lines: _Lines, path: str, source: SourceConfig) -> Iterator[Row | Reason]:
    objects = (_parse_object(line) for line in lines if not line.isspace())
    head = list(itertools.islice(objects, _HEAD_ROWS))
    keys = dict.fromkeys(key for item in head if isinstance(item, dict) for key in item)
    columns = _find_columns(source, list(keys), path) if keys else _columns(source)
    for item in itertools.chain(head, objects):
        if isinstance(item, Reason):
            yield item
        else:
            values = [item.get(name) for name in columns]
            is_text = all(value is None or isinstance(value, str) for value in values)
            yield _row(values) if is_text else Reason.DAMAGED_RECORD


def _parse_object(line: bytes) -> dict[str, Any] | Reason:
    try:
        value = orjson.loads(line)
    except ValueError:
        try:
            value = json.loads(line)  # accepts half a surrogate pair, which scripts that cut texts write
        except (ValueError, RecursionError):
            return Reason.DAMAGED_RECORD
    return value if isinstance(value, dict) else Reason.DAMAGED_RECORD


def _csv_rows(lines: _Lines, path: str, source: SourceConfig) -> Iterator[Row | Reason]:
    return _separated_rows(csv.reader(_decoded(lines)), path, source)


def _tsv_rows(lines: _Lines, path: str, source: SourceConfig) -> Iterator[Row | Reason]:
    reader = csv.reader(_decoded(lines), delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None)
    return _separated_rows(reader, path, source)


def _decoded(lines: _Lines) -> Iterator[str]:
    for number, line in enumerate(lines):
        text = line.removeprefix(_BYTE_ORDER_MARK) if number == 0 else line
        yield text.decode("utf-8", "surrogateescape")
    if lines.is_cut:
        raise EOFError  # or the parser would take the first lines of a quoted field for all of it


def _separated_rows(reader: Iterator[list[str]], path: str, source: SourceConfig) -> Iterator[Row | Reason]:
    width, columns = 0, []
    while True:
        try:
            fields = next(reader, None)
        except csv.Error:  # a field of more than 128 KiB, mostly a quotation mark without its partner
            yield Reason.DAMAGED_RECORD
            continue
        if fields is None:
            return
        if not fields:
            continue
        if not width:
            width, columns = len(fields), _find_positions(source, fields, path)
            if source.header:
                continue
        values = [fields[position] for position in columns] if len(fields) == width else []
        yield _row(values) if values and all(map(_is_utf8, values)) else Reason.DAMAGED_RECORD


def _is_utf8(text: str) -> bool:
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _find_positions(source: SourceConfig, first_row: Sequence[str], path: str) -> list[int]:
    """Return which columns to read; without a header they are given by number, from 1."""
    names = list(first_row) if source.header else [str(number + 1) for number in range(len(first_row))]
    return [names.index(name) for name in _find_columns(source, names, path)]


def _columns(source: SourceConfig) -> list[str]:
    return [source.url, source.caption] + ([source.page_url] if source.page_url is not None else [])


def _find_columns(source: SourceConfig, names: Sequence[str], path: str) -> list[str]:
    columns = _columns(source)
    for name in columns:
        if names.count(name) != 1:
            what = f"{names.count(name)} columns are called {name!r}" if name in names else f"no column {name!r}"
            raise UserError(f"{path}: {what}; there are {', '.join(map(repr, names))}")
    return columns


def _row(values: Sequence[str | None]) -> Row:
    return values[0], values[1], values[2] if len(values) > 2 else None


_ReadRows = Callable[[_Lines, str, SourceConfig], Iterator[Row | Reason]]
_TEXT_KINDS: dict[str, _ReadRows] = {"csv": _csv_rows, "tsv": _tsv_rows, "jsonl": _jsonl_rows}
# Each decoder's `read1`: unlike `read` it hands out what it has before it fails.
_COMPRESSIONS: dict[str, Callable[[BinaryIO], Callable[[int], bytes]]] = {
    "gz": lambda stream: gzip.GzipFile(fileobj=stream).read1,
    "bz2": lambda stream: bz2.BZ2File(stream).read1,
    "zst": lambda stream: pa.CompressedInputStream(pa.PythonFile(stream, "r"), "zstd").read1,
}
