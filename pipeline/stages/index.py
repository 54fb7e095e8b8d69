"""pairs/ + fetched/ -> index/: in which file a pair, a URL or an image is, for `wit why`.

Rows are sorted into files by the first bytes of their key: a lookup reads one small file, however large the set is.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine.run import Build, run_units
from pipeline.engine.shuffle import MAX_BUCKETS, gather_pieces, spill
from pipeline.engine.units import (
    Marker,
    Stateless,
    Unit,
    UnitOutput,
    add_counts,
    digest,
    finish_stage,
    finished_stage,
    read_stage,
)
from pipeline.engine.workspace import Workspace

VERSION = 1
"""Raise it when the files would have another format."""

INDEX = pa.schema([("key", pa.uint64()), ("kind", pa.int8()), ("file", pa.int32())])
_ROWS_PER_FILE = 100_000
_FILES_PER_UNIT = 64
_ROWS_AT_ONCE = 10_000_000  # 13 bytes each, and twice that to sort them


class Kind(IntEnum):
    """What a key is of."""

    UID = 0  # file: the number of a file of pairs/, by name
    URL = 1  # the same
    SHA256 = 2  # file: the number of a fetched part


def run_index(build: Build, pairs: Mapping[str, Marker], fetched: Mapping[str, Marker]) -> None:
    """Fill index/ unless it is up to date."""
    files = {n: f.sha256 for m in [*pairs.values(), *fetched.values()] for n, f in m.outputs.items() if _is_table(n)}
    stage_digest = digest(VERSION, sorted(files.items()))
    if finished_stage(build.workspace, "index", stage_digest) is not None:
        return
    rows = 2 * add_counts(pairs.values())["kept"] + add_counts(fetched.values())["kept"]
    buckets = min(MAX_BUCKETS, max(1, math.ceil(rows / _ROWS_PER_FILE)))
    numbered = [(number, name) for folder in ("pairs", "fetched") for number, name in enumerate(_tables(files, folder))]
    groups = [tuple(numbered[i : i + _FILES_PER_UNIT]) for i in range(0, len(numbered), _FILES_PER_UNIT)]
    units = [Unit(f"{i:05d}", digest(stage_digest, i), (f"{i:05d}", group)) for i, group in enumerate(groups)]
    spilled = run_units(build, "index/spill", units, Stateless(_SpillKeys(buckets)))
    names = [name for marker in spilled.values() for name in marker.outputs]
    units = [Unit(f"{bucket:05d}", digest(stage_digest, bucket), bucket) for bucket in range(buckets)]
    pieces = max(1, math.ceil(rows / (buckets * _ROWS_AT_ONCE)))
    sorted_ = run_units(build, "index/sort", units, Stateless(_SortKeys(names, buckets, pieces)))
    outputs = {name: facts for marker in sorted_.values() for name, facts in marker.outputs.items()}
    finish_stage(build.workspace, "index", stage_digest, outputs, {"inputs": rows, "kept": rows})


def _is_table(name: str) -> bool:
    return name.endswith(".parquet")


def _tables(names: Sequence[str] | Mapping[str, object], folder: str) -> list[str]:
    """Return the tables of a folder in the order of their numbers."""
    return sorted(name for name in names if name.startswith(f"{folder}/") and _is_table(name))


@dataclass(frozen=True)
class _SpillKeys:
    buckets: int

    def run(self, task: tuple[str, tuple[tuple[int, str], ...]], output: UnitOutput) -> Mapping[str, int]:
        name, files = task
        rows = spill(output, f".wit/index/spilled/{name}.rows", INDEX, self.buckets, self._keys(output, files))
        return {"inputs": rows, "kept": rows}

    def _keys(self, output: UnitOutput, files: Sequence[tuple[int, str]]) -> Iterator[tuple[pa.Table, np.ndarray]]:
        for number, name in files:
            columns = {Kind.UID: "uid", Kind.URL: "url"} if name.startswith("pairs/") else {Kind.SHA256: "sha256"}
            for batch in output.workspace.read_batches(name, list(columns.values())):
                for kind, column in columns.items():
                    keys = np.unique(_keys_of(kind, batch[column].drop_null()))
                    table = pa.table(
                        [keys, np.full(len(keys), kind, np.int8), np.full(len(keys), number, np.int32)], INDEX
                    )
                    yield table, _bucket(keys, self.buckets)


def _keys_of(kind: Kind, values: pa.Array) -> np.ndarray:
    """Return the key of each value, (n,) uint64: of uids and SHA-256 their first 16 digits."""
    if kind is Kind.URL:
        return np.array([_url_key(url) for url in values.to_pylist()], np.uint64)
    return np.array([int(value[:16], 16) for value in values.to_pylist()], np.uint64)


def _url_key(url: str) -> int:
    return int.from_bytes(hashlib.blake2b(url.encode(), digest_size=8).digest(), "big")


def _bucket(keys: np.ndarray, buckets: int) -> np.ndarray:
    """Return the file of each key, (n,) int32, by its first 16 bits."""
    return ((keys >> np.uint64(48)).astype(np.int64) * buckets >> 16).astype(np.int32)


@dataclass(frozen=True)
class _SortKeys:
    spilled: list[str]
    buckets: int
    pieces: int  # of a file, that are in memory one after the other

    def run(self, bucket: int, output: UnitOutput) -> Mapping[str, int]:
        order = [("key", "ascending"), ("kind", "ascending"), ("file", "ascending")]
        piece_of = partial(self._piece_of, bucket=bucket)
        pieces = gather_pieces(output.workspace, self.spilled, bucket, INDEX, range(self.pieces), piece_of)
        rows = 0

        def batches() -> Iterator[pa.Table]:
            nonlocal rows
            for piece in pieces:
                rows += piece.num_rows
                yield piece.sort_by(order)

        output.write_batches(f"index/{bucket:05d}.parquet", INDEX, batches())
        return {"inputs": rows, "kept": rows}

    def _piece_of(self, rows: pa.Table, bucket: int) -> np.ndarray:
        """Return the piece of each key of a bucket: smaller keys are in earlier pieces."""
        first, end = ((-(-number * (1 << 16) // self.buckets)) << 16 for number in (bucket, bucket + 1))
        place = (rows["key"].to_numpy() >> np.uint64(32)).astype(np.int64) - first
        return (place * self.pieces // (end - first)).astype(np.int32)


def look_up(workspace: Workspace, kind: Kind, value: str) -> list[str] | None:
    """Return the tables that may hold a uid or URL (of pairs/) or a SHA-256 (of fetched/); None without an index."""
    marker = read_stage(workspace, "index")
    if marker is None:
        return None
    key = _url_key(value) if kind is Kind.URL else int(value[:16], 16)
    bucket = int(_bucket(np.array([key], np.uint64), len(marker.outputs))[0])
    rows = workspace.read_table(f"index/{bucket:05d}.parquet")
    wanted = pc.and_(pc.equal(rows["key"], pa.scalar(key, pa.uint64())), pc.equal(rows["kind"], int(kind)))
    folder = "fetched" if kind is Kind.SHA256 else "pairs"
    tables = _tables(workspace.sizes(folder), folder)
    return [tables[number] for number in rows.filter(wanted)["file"].to_pylist() if number < len(tables)]
