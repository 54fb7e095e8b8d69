"""The workspace: one folder, local or on an object store, in which files appear whole or not at all.

Local files (and HDFS) are written under `.wit/tmp` and renamed; on object stores a finished file is uploaded under its
final key, which is atomic there. Every write reports the size and SHA-256 of what was written.
"""

import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

_STATE = ".wit"
_TMP = f"{_STATE}/tmp"
_COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class FileFacts:
    """What a finished file is: its size and the SHA-256 of its bytes, in hex."""

    bytes: int
    sha256: str


class HashingFile:
    """A binary file open for writing that also hashes what passes; seeking is refused, so the hash is the file's."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._sha256 = hashlib.sha256()
        self._bytes = 0

    def write(self, data: Any) -> int:
        self._sha256.update(data)
        size = memoryview(data).nbytes
        self._bytes += size
        self._raw.write(data)
        return size

    def tell(self) -> int:
        return self._bytes

    def flush(self) -> None:
        self._raw.flush()

    def close(self) -> None:
        """Do nothing: who opened the file closes it."""

    @property
    def closed(self) -> bool:
        return self._raw.closed

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    @property
    def facts(self) -> FileFacts:
        return FileFacts(self._bytes, self._sha256.hexdigest())


class Workspace:
    """A folder with atomic writes. `root` is a path or any fsspec URL; file names are relative to it."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self.fs, self._base = fsspec.core.url_to_fs(self.root)
        protocols = self.fs.protocol if isinstance(self.fs.protocol, tuple | list) else (self.fs.protocol,)
        self.is_local = "file" in protocols
        self._renames = self.is_local or "hdfs" in protocols

    def path(self, name: str) -> str:
        """Return the file system's own path of `name`."""
        return f"{self._base}/{name}"

    def exists(self, name: str) -> bool:
        self.fs.invalidate_cache()  # the workers of a cluster write here too
        return bool(self.fs.exists(self.path(name)))

    def sizes(self, folder: str) -> dict[str, int]:
        """Return name -> size of every file under `folder`, recursively; empty when there is no such folder."""
        if not self.exists(folder):
            return {}
        found = self.fs.find(self.path(folder), detail=True)
        return {path[len(self._base) + 1 :]: int(info["size"]) for path, info in found.items()}

    def open(self, name: str) -> BinaryIO:
        return cast(BinaryIO, self.fs.open(self.path(name), "rb"))

    def read_bytes(self, name: str) -> bytes:
        return cast(bytes, self.fs.cat_file(self.path(name)))

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Return the bytes of each (name, start, end), read together where the store can."""
        paths = [self.path(name) for name, _, _ in ranges]
        starts, ends = [start for _, start, _ in ranges], [end for _, _, end in ranges]
        return cast(list[bytes], self.fs.cat_ranges(paths, starts, ends, on_error="raise"))

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_bytes(name))

    def read_jsons(self, folder: str) -> dict[str, Any]:
        """Return name -> content of every .json file under `folder`, read together where the store can."""
        names = sorted(name for name in self.sizes(folder) if name.endswith(".json"))
        if not names:
            return {}
        contents = self.fs.cat([self.path(name) for name in names])
        return {name: json.loads(contents[self.path(name)]) for name in names}

    @contextmanager
    def create(self, name: str) -> Iterator[HashingFile]:
        """Open `name` for writing; it appears, whole, when the block ends without an error."""
        if self._renames:
            with self._create_by_rename(name) as out:
                yield out
        else:
            with self._create_by_upload(name) as out:
                yield out

    @contextmanager
    def _create_by_rename(self, name: str) -> Iterator[HashingFile]:
        target, temporary = self.path(name), self.path(f"{_TMP}/{uuid.uuid4().hex}")
        self.fs.makedirs(self.path(_TMP), exist_ok=True)
        self.fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
        try:
            with self.fs.open(temporary, "wb") as raw:
                out = HashingFile(raw)
                yield out
                raw.flush()
                if self.is_local:
                    os.fsync(raw.fileno())
            if self.is_local:
                os.replace(temporary, target)
            else:
                self.remove([name])
                self.fs.mv(temporary, target)
        finally:
            if self.fs.exists(temporary):
                self.fs.rm(temporary)

    @contextmanager
    def _create_by_upload(self, name: str) -> Iterator[HashingFile]:
        with tempfile.NamedTemporaryFile(prefix="wit-upload-") as spool:
            out = HashingFile(cast(BinaryIO, spool))
            yield out
            spool.flush()
            self.fs.put_file(spool.name, self.path(name))

    def write_json(self, name: str, value: Any) -> FileFacts:
        """Write `value` as JSON with sorted keys: the same value gives the same bytes."""
        with self.create(name) as out:
            out.write(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n")
        return out.facts

    def upload(self, local: Path, name: str) -> FileFacts:
        """Copy a finished local file to `name`."""
        with local.open("rb") as source, self.create(name) as out:
            shutil.copyfileobj(source, cast(Any, out), _COPY_BYTES)
        return out.facts

    def parquet(self, name: str) -> pq.ParquetFile:
        return pq.ParquetFile(self.open(name), pre_buffer=False)

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        with self.open(name) as source:
            return pq.read_table(source, columns=columns, use_threads=False)

    def move(self, names: Mapping[str, str]) -> None:
        """Give each file, named by a key, the name in its value; together where the store can."""
        if not self._renames:
            self.fs.copy([self.path(name) for name in names], [self.path(to) for to in names.values()])
            self.remove(names)
            return
        for name, to in names.items():
            self.fs.makedirs(self.path(to).rsplit("/", 1)[0], exist_ok=True)
            self.remove([to])
            self.fs.mv(self.path(name), self.path(to))

    def remove(self, names: Iterable[str]) -> None:
        """Remove files, those that are there, in any order; together where the store can."""
        names = list(names)
        if self._renames or len(names) == 1:
            for name in names:
                if self.exists(name):
                    self.fs.rm_file(self.path(name))
        elif names:
            try:
                self.fs.rm([self.path(name) for name in names])
            except FileNotFoundError:  # stores differ in when they say so, and in whether they go on
                for name in names:
                    self.remove([name])

    def remove_folder(self, name: str) -> None:
        """Remove a folder and what is in it, if it is there. It must lie inside the workspace."""
        if not name or name.startswith("/") or ".." in name.split("/"):
            raise ValueError(f"not a folder of the workspace: {name!r}")
        if self.exists(name):
            self.fs.rm(self.path(name), recursive=True)

    def remove_temporary_files(self) -> None:
        """Remove what a killed run left half-written; only while no build is running."""
        self.remove_folder(_TMP)
