"""The allowlist: the queries, their origins, and their score in each origin.

An allowlist is one Parquet file with the columns

    query    string          a query's id is its row number
    origins  list<string>    where it came from: a source of `wit queries build`, or the name of an imported file
    score    list<double>    its score in each of these origins (count, PMI, page views, ...); null if it has none

and a manifest beside it (for queries.parquet: queries.manifest.json), written last. No two queries of a list have the
same normal form, so no two of them match the same string.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from queries.errors import InputError
from queries.files import store_errors_in_one_line
from queries.list_files import SCHEMA, parse_parquet, read_bytes, read_list
from queries.normal_form import normalize_batch
from queries.redact import redact


@dataclass(frozen=True)
class Allowlist:
    """An allowlist in memory. `table` has the columns above; `sha256` is the Parquet file's, in hex."""

    table: pa.Table
    sha256: str

    @classmethod
    def load(cls, path: str | Path) -> "Allowlist":
        """Read a list from a local path or any fsspec URL.

        Raises:
            InputError: the file is missing, not Parquet, without the columns of an allowlist, or empty.
        """
        path = str(path)
        content = read_bytes(path)
        if content[:4] != b"PAR1":
            raise InputError(f"{path} is not a Parquet file; convert it with `wit queries import`")
        table = parse_parquet(path, content, SCHEMA.names)
        _check(path, table)
        return cls(table.select(SCHEMA.names), hashlib.sha256(content).hexdigest())

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @cached_property
    def queries(self) -> list[str]:
        """The queries; the id of each is its position."""
        return list(self.table["query"].to_pylist())


def _check(path: str, table: pa.Table) -> None:
    for field in SCHEMA:
        if field.name not in table.schema.names or table.schema.field(field.name).type != field.type:
            raise InputError(
                f"{path} is not an allowlist: it needs a column {field.name!r} of type {field.type}; "
                "convert it with `wit queries import`"
            )
    if table.num_rows == 0:
        raise InputError(f"{path} has no queries")
    if table["query"].null_count:
        raise InputError(f"{path} has {table['query'].null_count} null queries")


def import_allowlist(
    sources: str | Path | Sequence[str | Path], out_path: str | Path, *, column: str = "query"
) -> dict[str, Any]:
    """Merge lists of queries into an allowlist, in their order; write it and its manifest, and return the manifest.

    File formats: see `queries.list_files`. Queries with the same normal form become one, in its first spelling, with
    all its origins. The same files give the same bytes.

    Raises:
        InputError: a file is missing, damaged or of an unknown format, or no query is left.
    """
    paths = [str(path) for path in ([sources] if isinstance(sources, str | Path) else sources)]
    out_path = str(out_path)
    keep_inputs(out_path, [path for path in paths if _location(path) != _location(out_path) or not _is_allowlist(path)])
    read = [read_list(path, column) for path in paths]
    table, dropped = merge_candidates(pa.concat_tables(read))
    if table.num_rows == 0:
        raise InputError(f"{', '.join(paths)}: no usable query in {sum(t.num_rows for t in read)} lines")
    files = [{"path": redact(path), "queries": rows.num_rows} for path, rows in zip(paths, read, strict=True)]
    return write_allowlist(table, out_path, {"source": files, "dropped": dropped})


def keep_inputs(out_path: str, inputs: Sequence[str]) -> None:
    """Check that neither the list nor its manifest would overwrite one of its inputs.

    Raises:
        InputError: one would.
    """
    written = {_location(out_path), _location(manifest_path(out_path))}
    for path in inputs:
        if _location(path) in written:
            raise InputError(f"{path}: --out {out_path} would overwrite this input; choose another name")


def _location(path: str) -> str:
    try:
        filesystem, name = fsspec.core.url_to_fs(path)
    except (ValueError, ImportError):  # reading or writing it reports the error
        return path
    return os.path.realpath(name) if "file" in filesystem.protocol else path


def _is_allowlist(path: str) -> bool:
    try:
        Allowlist.load(path)
    except InputError:
        return False
    return True


def merge_candidates(candidates: pa.Table) -> tuple[pa.Table, dict[str, int]]:
    """Merge CANDIDATES into one row per normal form; return the list's table and the number of rows dropped by reason.

    Each keeps the order and spelling of its first row, and the first score of each origin.
    """
    candidates = candidates.combine_chunks()
    normal = pa.chunked_array([normalize_batch(chunk) for chunk in candidates["query"].chunks], pa.string())
    has_tokens = pc.greater(pc.binary_length(normal), 0)
    spelled = pc.greater(pc.binary_length(pc.utf8_trim_whitespace(candidates["query"])), 0)
    blank = candidates.num_rows - (pc.sum(spelled).as_py() or 0)
    kept = candidates.filter(has_tokens)

    group = _codes(normal.filter(has_tokens))
    origin = _codes(kept["origin"])
    first_per_origin = np.unique(group * (int(origin.max(initial=0)) + 1) + origin, return_index=True)[1]
    first_per_origin.sort()
    by_group = first_per_origin[np.argsort(group[first_per_origin], kind="stable")]
    first = np.unique(group, return_index=True)[1]
    offsets = pa.array(np.searchsorted(group[by_group], np.arange(len(first) + 1)), pa.int32())
    members = kept.take(pa.array(by_group)).combine_chunks()
    columns = [
        pc.utf8_trim_whitespace(kept["query"].take(pa.array(first))),
        *(pa.ListArray.from_arrays(offsets, _combine(members[name])) for name in ("origin", "score")),
    ]
    dropped = {
        "blank": blank,
        "no_tokens": candidates.num_rows - kept.num_rows - blank,
        "duplicate": kept.num_rows - len(first),
    }
    return pa.table(columns, schema=SCHEMA), dropped


def _codes(values: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Number the distinct values by their first occurrence."""
    return np.asarray(_combine(_combine(values).dictionary_encode().indices), dtype=np.int64)


def _combine(values: pa.ChunkedArray | pa.Array) -> pa.Array:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


def write_allowlist(table: pa.Table, out_path: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write a list, then its manifest: `facts` with the count and the SHA-256 of the file.

    Each file is written atomically. If a list's manifest is missing or has another sha256, the write was interrupted.
    """
    buffer = pa.BufferOutputStream()
    pq.write_table(table.cast(SCHEMA), buffer, compression="zstd", row_group_size=65_536)
    content = buffer.getvalue().to_pybytes()
    manifest = {"count": table.num_rows, "sha256": hashlib.sha256(content).hexdigest(), **facts}
    _write_file(out_path, content)
    _write_file(manifest_path(out_path), json.dumps(manifest, indent=2, ensure_ascii=False).encode() + b"\n")
    return manifest


def manifest_path(allowlist_path: str) -> str:
    """Return the path of a list's manifest."""
    return allowlist_path.removesuffix(".parquet") + ".manifest.json"


def _write_file(path: str, content: bytes) -> None:
    """Write a file atomically: by renaming on a local disk; object stores show an upload only when it is complete."""
    with store_errors_in_one_line(path, "written"):
        filesystem, name = fsspec.core.url_to_fs(path)
        if "file" not in filesystem.protocol:
            filesystem.pipe_file(name, content)
            return
    temporary = f"{name}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(content)
        os.replace(temporary, name)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
