"""Read lists of queries from text, JSON, Parquet, CSV or TSV files, also compressed (.gz .bz2 .xz).

.txt      one query per line
.json     ["dog", ...] or {"dog": 120, ...}; the numbers become scores
.parquet  a column `query` and an optional numeric column `score`; or the columns of an allowlist
.csv .tsv a header with `query` and, optionally, `score`
"""

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from queries.errors import InputError
from queries.files import reading
from queries.parquet_pages import TEXT, GuardedParquet

SCHEMA = pa.schema([("query", pa.string()), ("origins", pa.list_(pa.string())), ("score", pa.list_(pa.float64()))])
"""Columns of an allowlist; see `queries.allowlist`."""

CANDIDATES = pa.schema([("query", pa.string()), ("origin", pa.string()), ("score", pa.float64())])
"""Queries of a source before duplicates are merged."""

MAX_LIST_BYTES = 1 << 29
"""Of a list, unpacked; captions in Parquet are read in batches and may be more."""
_MAX_COLUMNS = 1_000

_COMPRESSED = (".gz", ".bz2", ".xz")


def read_list(path: str, column: str = "query") -> pa.Table:
    """Return the queries of a file, in its order, as CANDIDATES; the origin is the file's name without suffixes.

    `column` names the column of queries in Parquet, CSV and TSV. Blank lines and nulls become "".

    Raises:
        InputError: the file is missing, damaged, not UTF-8, of an unknown format, or lacks the column.
    """
    name = PurePosixPath(path)
    suffixes = [suffix.lower() for suffix in name.suffixes]
    while suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    reader = _READERS.get(suffixes[-1] if suffixes else "")
    if reader is None:
        raise InputError(f"{path}: unknown file format; supported are {', '.join(_READERS)} (also compressed)")
    return reader(path, name.name.split(".")[0], read_bytes(path), column)


def read_captions(path: str, column: str = "caption") -> Iterator[pa.Array]:
    """Read the captions of a Parquet file of any size in batches, or those of any other list in one batch.

    Raises:
        InputError: as `read_list`.
    """
    if not path.endswith(".parquet"):
        yield read_list(path, column)["query"].combine_chunks()
        return
    with reading(path) as file, _reading_parquet(path):
        table = GuardedParquet(file, TEXT)
        _check_column(path, table.schema.names, column)
        _check_text(path, column, table.schema.field(column).type)
        for batch in table.batches([column]):
            captions = batch.column(0).cast(pa.string())
            captions.validate(full=True)
            yield captions


@contextmanager
def _reading_parquet(path: str) -> Iterator[None]:
    """Turn Arrow's errors into one line that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError, OverflowError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a Parquet file, or damaged ({_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


def parse_parquet(path: str, content: bytes, columns: Sequence[str]) -> pa.Table:
    """Return some columns of a Parquet file's content, those that are there; checked to be valid UTF-8.

    Raises:
        InputError: it is not a Parquet file, it is damaged, or it unpacks to more than MAX_LIST_BYTES.
    """
    with _reading_parquet(path):
        file = GuardedParquet(io.BytesIO(content), TEXT)
        schema = pa.schema([_plain(field) for field in file.schema if field.name in columns])
        if not schema.names:
            return schema.empty_table()
        batches, size = [], 0
        for batch in file.batches(schema.names):
            batches.append(batch.cast(schema))
            batches[-1].validate(full=True)
            size += batches[-1].nbytes
            if size > MAX_LIST_BYTES:
                raise InputError(f"{path}: larger than {MAX_LIST_BYTES:,} bytes when unpacked; split it")
        return pa.Table.from_batches(batches, schema)


def _plain(field: pa.Field) -> pa.Field:
    """Return the field without a dictionary, which each batch would have a copy of."""
    return field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field


def _check_column(path: str, names: list[str], column: str) -> None:
    if names.count(column) != 1:
        raise InputError(
            f"{path}: needs exactly one column {column!r}; its columns are {', '.join(names)}; choose one with --column"
        )


def _check_text(path: str, column: str, kind: pa.DataType) -> None:
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(inner) or pa.types.is_large_string(inner) or pa.types.is_null(inner)):
        raise InputError(f"{path}: column {column!r} holds {kind}, not text; choose another with --column")


def read_bytes(path: str) -> bytes:
    """Return the content of a local file or fsspec URL, decompressed according to its suffix.

    Raises:
        InputError: the file does not exist, or cannot be read to its end.
    """
    with reading(path) as file:
        content = file.read(MAX_LIST_BYTES + 1)
    if len(content) > MAX_LIST_BYTES:
        raise InputError(f"{path}: larger than {MAX_LIST_BYTES:,} bytes when unpacked; split it")
    return content


def _decode(path: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}: line {line} is not UTF-8 (byte {content[error.start]:#04x}); convert the file"
        ) from None


def _read_text(path: str, origin: str, content: bytes, _: str) -> pa.Table:
    lines = _decode(path, content).split("\n")
    if lines[-1] == "":
        lines.pop()
    return _candidates(path, [line.removesuffix("\r") for line in lines], origin, None)


def _read_json(path: str, origin: str, content: bytes, _: str) -> pa.Table:
    try:
        value = json.loads(_decode(path, content))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not JSON (line {error.lineno}: {error.msg})") from None
    except RecursionError:
        value = None
    except ValueError:  # Python's limit on the digits of an integer
        raise InputError(f"{path}: a number has thousands of digits") from None
    if isinstance(value, list) and all(isinstance(query, str) for query in value):
        return _candidates(path, value, origin, None)
    if isinstance(value, dict) and all(_is_number(score) for score in value.values()):
        return _candidates(path, list(value), origin, [_score(path, *entry) for entry in value.items()])
    raise InputError(f"{path}: the JSON must be a list of strings, or an object with a number for each query")


def _is_number(value: Any) -> bool:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return is_whole or (isinstance(value, float) and math.isfinite(value))


def _score(path: str, query: str, number: float) -> float:
    try:
        return float(number)
    except OverflowError:
        raise InputError(f"{path}: the score of {query[:40]!r} is above 1.8e308, the largest float64") from None


def _read_parquet(path: str, origin: str, content: bytes, column: str) -> pa.Table:
    with _reading_parquet(path):
        _check_column(path, GuardedParquet(io.BytesIO(content), TEXT).schema.names, column)
    return _from_table(path, origin, parse_parquet(path, content, [column, *SCHEMA.names]), column)


def _read_delimited(delimiter: str) -> Callable[[str, str, bytes, str], pa.Table]:
    def read(path: str, origin: str, content: bytes, column: str) -> pa.Table:
        text = _decode(path, content)
        if not text.strip():
            raise InputError(f"{path}: the file is empty")
        columns = text.split("\n", 1)[0].count(delimiter) + 1
        if columns > _MAX_COLUMNS:
            raise InputError(f"{path}: {columns:,} columns; the limit is {_MAX_COLUMNS:,}")
        _check_quotes(path, text, delimiter)
        parse = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
        # Without a fixed type, Arrow would not read a column of words such as "null" and "true" as text.
        convert = pa.csv.ConvertOptions(column_types={column: pa.string()}, strings_can_be_null=False)
        try:
            content = text.encode()
            read = pa.csv.ReadOptions(block_size=min(max(len(content), 1), 2**31 - 1))  # rows end in it
            table = pa.csv.read_csv(io.BytesIO(content), read, parse, convert)
        except pa.ArrowInvalid as error:
            raise InputError(f"{path}: {_first_line(error)}") from None
        return _from_table(path, origin, table, column)

    return read


def _check_quotes(path: str, text: str, delimiter: str) -> None:
    """Reject quotes that Arrow would read as the start of a field that spans the rows below."""
    if '"' not in text:
        return
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    first = 1
    usual_limit = csv.field_size_limit(len(text))  # raise csv's default limit: long fields are valid
    try:
        for _ in rows:
            first = rows.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{path}: line {first}: a quoted field does not end correctly ({error}); double the quotes inside a field"
        ) from None
    finally:
        csv.field_size_limit(usual_limit)


def _from_table(path: str, origin: str, table: pa.Table, column: str) -> pa.Table:
    names = table.schema.names
    _check_column(path, names, column)
    queries = table[column]
    _check_text(path, column, queries.type)
    if all(field in table.schema for field in SCHEMA):
        return _from_allowlist(path, table)
    queries = pc.fill_null(queries.cast(pa.string()), "")
    scores = table["score"] if names.count("score") == 1 else pa.nulls(len(queries), pa.float64())
    if not (pa.types.is_integer(scores.type) or pa.types.is_floating(scores.type)):
        raise InputError(f"{path}: column 'score' holds {scores.type}, not numbers")
    return pa.table(
        [queries, pa.repeat(origin, len(queries)), scores.cast(pa.float64(), safe=False)], schema=CANDIDATES
    )


def _from_allowlist(path: str, table: pa.Table) -> pa.Table:
    origins, scores = (table[name].combine_chunks() for name in ("origins", "score"))
    sizes = pc.list_value_length(origins)
    if sizes.null_count or not sizes.equals(pc.list_value_length(scores)) or pc.min(sizes).as_py() == 0:
        raise InputError(f"{path}: each query needs as many scores as origins, and at least one")
    if pc.list_flatten(origins).null_count:
        raise InputError(f"{path}: an origin is null; each origin needs a name")
    queries = table["query"].combine_chunks().take(pc.list_parent_indices(origins))
    return pa.table([queries, pc.list_flatten(origins), pc.list_flatten(scores)], schema=CANDIDATES)


def _candidates(path: str, queries: list[str], origin: str, scores: list[float] | None) -> pa.Table:
    try:
        column = pa.array(queries, pa.string())
    except UnicodeEncodeError:
        raise InputError(f"{path}: a query contains an unpaired surrogate, which is not valid text") from None
    score = pa.nulls(len(column), pa.float64()) if scores is None else pa.array(scores, pa.float64())
    return pa.table([column, pa.repeat(origin, len(column)), score], schema=CANDIDATES)


_READERS: dict[str, Callable[[str, str, bytes, str], pa.Table]] = {
    ".txt": _read_text,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".csv": _read_delimited(","),
    ".tsv": _read_delimited("\t"),
}
