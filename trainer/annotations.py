"""Columns that `wit annotate` joined to the samples of a set, as captions: a row for each sample, in the tar's order.

For the shard `<workspace>/shards/00000.tar`, the key `annotations/NAME.column` is that column of
`<workspace>/annotations/NAME/00000.parquet`.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.errors import TrainerConfigError, TrainerError, one_line

PREFIX = "annotations/"
READ_AT_ONCE = 32
_KEY = re.compile(rf"{PREFIX}([a-z0-9][a-z0-9_-]*)\.(.+)")


def parse_key(key: str) -> tuple[str, str]:
    """Return the name and the column of a key that begins with PREFIX.

    Raises:
        TrainerConfigError: it has another form.
    """
    parts = _KEY.fullmatch(key)
    if parts is None:
        raise TrainerConfigError(f"caption_keys: {key!r} must be annotations/NAME.COLUMN, NAME as in `wit annotate`")
    return parts[1], parts[2]


def annotations_of(shard: str, number: int, samples: int, keys: tuple[str, ...]) -> dict[str, Any]:
    """Return the values of these keys for sample `number` of a shard of `samples`; None where a table has none.

    Raises:
        TrainerError: a column cannot be read, or belongs to another state of the shard.
    """
    values = {}
    for key in keys:
        column = _column(shard, key)
        if len(column) != samples:
            raise TrainerError(
                f"{key} has {len(column)} rows for the {samples} samples of {shard}: run `wit annotate` again"
            )
        values[key] = column[number].as_py()
    return values


def annotations_fingerprint(shards: Iterable[str], keys: tuple[str, ...]) -> str:
    """Return a hash of what these shards' annotations are: of each column its type and its Parquet statistics.

    They have the number of values, their sizes, the smallest and the largest; only the end of each file is read.

    Raises:
        TrainerError: a table cannot be read, or has no such column.
    """
    names = sorted(set(map(parse_key, keys)))
    wanted = [(shard, name, column) for shard in shards for name, column in names]
    with ThreadPoolExecutor(READ_AT_ONCE) as threads:
        found = list(threads.map(lambda one: _facts(*one), wanted))
    return hashlib.sha256(repr(found).encode()).hexdigest()


def _facts(shard: str, name: str, column: str) -> tuple[Any, ...]:
    with _table(shard, name, column) as table:
        footer = table.metadata
        at = table.schema_arrow.names.index(column)
        groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
        chunks = [
            (chunk.path_in_schema, chunk.num_values, chunk.total_compressed_size, chunk.total_uncompressed_size,
             chunk.statistics and chunk.statistics.to_dict())
            for group in groups for chunk in map(group.column, range(group.num_columns))
            if chunk.path_in_schema.partition(".")[0] == column
        ]  # fmt: skip
        return shard.rpartition("/")[2], name, str(table.schema_arrow.field(at).type), footer.num_rows, chunks


@lru_cache(maxsize=256)  # a few MB each at most; as many as a loader process has open shards, of two keys
def _column(shard: str, key: str) -> pa.ChunkedArray:
    name, column = parse_key(key)
    with _table(shard, name, column) as table:
        return table.read([column]).column(0)


@contextmanager
def _table(shard: str, name: str, column: str) -> Iterator[pq.ParquetFile]:
    """Open the annotations `name` of a shard.

    Raises:
        TrainerError: they cannot be read, or have no such column.
    """
    folder, _, tar = shard.rpartition("/")
    path = f"{folder.rpartition('/')[0]}/{PREFIX}{name}/{tar.removesuffix('.tar')}.parquet"
    try:
        with fsspec.open(path, "rb") as file, pq.ParquetFile(file) as table:
            if column not in table.schema_arrow.names:
                raise TrainerError(f"{path} has no column {column!r}; it has {', '.join(table.schema_arrow.names)}")
            yield table
    except FileNotFoundError:
        raise TrainerError(f"no annotations {name!r} for {shard}: run `wit annotate {name}`") from None
    except (OSError, pa.ArrowException) as error:
        raise TrainerError(f"cannot read {path}: {one_line(error)}") from error
