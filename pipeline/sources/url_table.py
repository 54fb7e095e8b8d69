"""Tables of image URLs and texts: parquet, csv, tsv and jsonl; the text kinds also compressed (.gz .bz2 .zst).

csv has quotes, also around line ends (RFC 4180); tsv does not (IANA text/tab-separated-values), so a caption may
contain any quotation mark. Text is UTF-8, or UTF-16 with a byte order mark.
"""

import csv
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

import orjson
import pyarrow as pa

from pipeline.config import PairsConfig
from pipeline.config.sources import SourceConfig
from pipeline.errors import UserError
from pipeline.records import Reason
from pipeline.sources.annotations import read_annotations
from pipeline.sources.batch import BatchBuilder, SourceBatch
from pipeline.sources.presets import Layout
from pipeline.sources.table_lines import COMPRESSIONS, MAX_LINE_BYTES, Lines, raise_if_unreadable
from queries.parquet_pages import TEXT, GuardedParquet

Row = Sequence[Any]  # the values of `Layout.columns`

_HEAD_ROWS = 1_000  # jsonl: where a column must appear
_HEAD_BYTES = 16 << 20
_MAX_COLUMNS = 10_000


def read_table(stream: BinaryIO, path: str, source: SourceConfig, limits: PairsConfig) -> Iterator[SourceBatch]:
    """Yield the candidates of a table, in file order; every row counts as one.

    A line or row that does not parse is `damaged_record`; if a file is truncated, its compression is damaged, or its
    decompressed size exceeds a limit (docs/sources.md), the rows before are kept and `damaged_file` counts once.

    Raises:
        UserError: the file's suffix is unknown, its header cannot be read, or it lacks a column.
    """
    builder, layout = BatchBuilder(limits), Layout(source)
    for row in _rows(stream, path, layout):
        if isinstance(row, Reason):
            builder.dropped[row] += 1
        else:
            layout.add(builder, row)
        if builder.is_full:
            yield builder.take()
    yield from builder.finish()


def _rows(stream: BinaryIO, path: str, layout: Layout) -> Iterator[Row | Reason]:
    name = PurePosixPath(urlsplit(path).path if "://" in path else path).name.lower()
    stem, _, suffix = name.rpartition(".")
    compression = suffix if suffix in COMPRESSIONS else None
    if compression:
        suffix = stem.rpartition(".")[2]
    if suffix == "json" and compression in (None, "gz"):
        return read_annotations(stream, path, layout)
    read_rows = _TEXT_KINDS.get(suffix)
    is_parquet = suffix == "parquet" and compression is None
    if not is_parquet and read_rows is None:
        raise UserError(
            f"{path}: unknown table format; the file name must end in .parquet, .{', .'.join(_TEXT_KINDS)}"
            f" (the last three also with .{', .'.join(COMPRESSIONS)})"
        )
    if not layout.source.header and suffix not in ("csv", "tsv"):
        raise UserError(f"{path}: sources.header = false is only for csv and tsv; {suffix} files have column names")
    if read_rows is None:
        return _parquet_rows(stream, path, layout)
    return _text_rows(Lines(stream, compression, any_end=suffix == "csv"), read_rows, path, layout)


def _parquet_rows(stream: BinaryIO, path: str, layout: Layout) -> Iterator[Row | Reason]:
    try:
        table = GuardedParquet(stream, TEXT)
        columns = layout.find(table.schema.names, path)
        for name in columns:
            _check_column(table.schema.field(name), path, is_text=name in layout.text_columns)
        for batch in table.batches(columns):
            values = [
                _texts(batch.column(name)) if name in layout.text_columns else batch.column(name).to_pylist()
                for name in columns
            ]
            for row in zip(*values, strict=True):
                yield Reason.DAMAGED_RECORD if b"" in row else row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise_if_unreadable(error)
        yield Reason.DAMAGED_FILE


def _check_column(field: pa.Field, path: str, *, is_text: bool) -> None:
    if not is_text:
        if pa.types.is_nested(field.type):
            raise UserError(
                f"{path}: sources.keep: column {field.name!r} is {field.type}; only plain columns can be kept"
            )
        return
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
    """Return the values; b"" for values that are not UTF-8."""
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


def _text_rows(lines: Lines, read_rows: "_ReadRows", path: str, layout: Layout) -> Iterator[Row | Reason]:
    try:
        for row in read_rows(lines, path, layout):
            yield row
            yield from lines.take_reasons()
    except EOFError:
        pass
    yield from lines.take_reasons()


def _jsonl_rows(lines: Lines, path: str, layout: Layout) -> Iterator[Row | Reason]:
    filled = (line for line in lines if not line.isspace())
    head, head_bytes = [], 0
    for line in itertools.islice(filled, _HEAD_ROWS):
        head.append(line)
        head_bytes += len(line)
        if head_bytes > _HEAD_BYTES:
            break
    keys = dict.fromkeys(key for item in map(_parse_object, head) if isinstance(item, dict) for key in item)
    columns = layout.find(list(dict.fromkeys([*keys, *layout.source.keep])), path) if keys else layout.columns
    for line in itertools.chain(head, filled):
        item = _parse_object(line)
        if isinstance(item, Reason):
            yield item
        else:
            values = [item.get(name) for name in columns]
            texts = (item.get(name) for name in layout.text_columns)
            is_sound = all(text is None or isinstance(text, str) for text in texts)
            yield values if is_sound else Reason.DAMAGED_RECORD


def _parse_object(line: bytes) -> dict[str, Any] | Reason:
    try:
        value = orjson.loads(line)
    except ValueError:
        try:
            value = json.loads(line)  # accepts unpaired surrogates, which scripts write that truncate texts
        except (ValueError, RecursionError):
            return Reason.DAMAGED_RECORD
    return value if isinstance(value, dict) else Reason.DAMAGED_RECORD


def _csv_rows(lines: Lines, path: str, layout: Layout) -> Iterator[Row | Reason]:
    text = _Text(lines)
    return _separated_rows(csv.reader(text), text, path, layout)


def _tsv_rows(lines: Lines, path: str, layout: Layout) -> Iterator[Row | Reason]:
    text = _Text(lines)
    unended = (line.rstrip("\r\n") for line in text)
    reader = csv.reader(unended, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None)
    return _separated_rows(reader, text, path, layout)


class _Text:
    """The decoded lines, for a parser that may combine several to one row: limits the size of a row."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._iterator = iter(lines)
        self._row_bytes = 0

    def start_row(self) -> None:
        self._row_bytes = 0

    def __iter__(self) -> "_Text":
        return self

    def __next__(self) -> str:
        line = next(self._iterator, None)
        if line is None:
            if self._lines.is_cut:
                raise EOFError  # or the parser would treat the first lines of a quoted field as the complete field
            raise StopIteration
        self._row_bytes += len(line)
        if self._row_bytes > MAX_LINE_BYTES:
            self._row_bytes = 0
            raise csv.Error("a row is too long")
        return line.decode("utf-8", "surrogateescape")


def _separated_rows(reader: Iterator[list[str]], text: _Text, path: str, layout: Layout) -> Iterator[Row | Reason]:
    width, columns = 0, []
    while True:
        text.start_row()
        try:
            fields = next(reader, None)
        except csv.Error as error:  # a field of more than 128 KiB, usually because of an unclosed quotation mark
            if not width:
                raise UserError(f"{path}: the first line cannot be read: {error}") from None
            yield Reason.DAMAGED_RECORD
            continue
        if fields is None:
            return
        if not fields:
            continue
        if not width:
            width, columns = len(fields), _find_positions(layout, fields, path)
            if layout.header:
                continue
        values = [fields[position] for position in columns] if len(fields) == width else []
        yield values if values and all(map(_is_utf8, values)) else Reason.DAMAGED_RECORD


def _is_utf8(text: str) -> bool:
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _find_positions(layout: Layout, first_row: Sequence[str], path: str) -> list[int]:
    """Return which columns to read; without a header they are given by number, from 1."""
    if len(first_row) > _MAX_COLUMNS:
        raise UserError(f"{path}: {len(first_row):,} columns in the first line; the limit is {_MAX_COLUMNS:,}")
    names = list(first_row) if layout.header else [str(number + 1) for number in range(len(first_row))]
    return [names.index(name) for name in layout.find(names, path)]


_ReadRows = Callable[[Lines, str, Layout], Iterator[Row | Reason]]
_TEXT_KINDS: dict[str, _ReadRows] = {"csv": _csv_rows, "tsv": _tsv_rows, "jsonl": _jsonl_rows}
