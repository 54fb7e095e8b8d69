"""The workspace: one folder, local or on an object store, in which files are written atomically.

Local files (and HDFS) are written under `.wit/tmp` and renamed; on object stores a finished file is uploaded under its
final key, which is atomic there. Every write reports the size and SHA-256 of what was written.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import DamagedFileError, one_line
from pipeline.private_folder import scratch_folder

_STATE = ".wit"
_TMP = f"{_STATE}/tmp"
_COPY_BYTES = 1 << 20
READ_TIMEOUT_S = 60.0
"""How long a Google Cloud Storage may be silent before a request is sent again, as for S3."""

Fact = TypeVar("Fact")


@dataclass(frozen=True, slots=True)
class FileFacts:
    """The facts of a finished file: its size, and the SHA-256 of its bytes in hex."""

    bytes: int
    sha256: str


class FileVersion(NamedTuple):
    """The size of a file, and a text that another file of the same name does not have; "" where a store has none."""

    bytes: int
    tag: str


class HashingFile:
    """A binary file open for writing that also hashes its bytes; it refuses to seek, so the hash is the file's."""

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
        """Do nothing: the caller that opened the file closes it."""

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


class CheckedFile:
    """A binary file open for reading, from its beginning to its end, that is compared with the SHA-256 it must have."""

    def __init__(self, raw: BinaryIO, name: str, sha256: str) -> None:
        self._raw = raw
        self._name = name
        self._expected = sha256
        self._sha256 = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._raw.read(size)
        self._sha256.update(data)
        return data

    def check(self) -> None:
        """Read the rest. Raises: DamagedFileError: the file is not the one that was written."""
        while self.read(_COPY_BYTES):
            pass
        if self._sha256.hexdigest() != self._expected:
            raise DamagedFileError.of(self._name, "its bytes have changed since they were written")


class Workspace:
    """A folder with atomic writes. `root` is a path or any fsspec URL; file names are relative to it."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self.fs, self._base = fsspec.core.url_to_fs(self.root, **_store_options(self.root))
        protocols = self.fs.protocol if isinstance(self.fs.protocol, tuple | list) else (self.fs.protocol,)
        self.is_local = "file" in protocols
        self._renames = self.is_local or "hdfs" in protocols
        # fsspec's wrapper of pyarrow's HDFS client opens a stream that cannot seek for a range that starts at 0
        self._range_options = {"seekable": True} if "hdfs" in protocols else {}

    def path(self, name: str) -> str:
        """Return the file system's own path of `name`.

        Raises:
            ValueError: it lies outside the workspace.
        """
        if name.startswith("/") or ".." in name.split("/"):
            raise ValueError(f"not inside the workspace: {name!r}")
        return f"{self._base}/{name}"

    def exists(self, name: str) -> bool:
        self.fs.invalidate_cache()  # the workers of a cluster write here too
        return bool(self.fs.exists(self.path(name)))

    def sizes(self, folder: str) -> dict[str, int]:
        """Return name -> size of every file under `folder`, recursively; empty if the folder does not exist."""
        if self.is_local:
            return self._local_files(folder, attrgetter("st_size"))
        return {name: version.bytes for name, version in self.versions(folder).items()}

    def versions(self, folder: str) -> dict[str, FileVersion]:
        """Return name -> version of every file under `folder`, recursively; empty if the folder does not exist."""
        if self.is_local:
            return self._local_files(folder, _version)
        self.fs.invalidate_cache()  # the workers of a cluster write here too
        try:
            found = self.fs.find(self.path(folder), detail=True)
        except FileNotFoundError:  # stores return nothing
            return {}
        return {path[len(self._base) + 1 :]: FileVersion(int(info["size"]), _tag(info)) for path, info in found.items()}

    def _local_files(self, folder: str, fact: Callable[[os.stat_result], Fact]) -> dict[str, Fact]:
        found, start = dict(_local_files(self.path(folder), fact)), len(self._base) + 1
        return {path[start:]: found[path] for path in sorted(found)}

    def open(self, name: str) -> BinaryIO:
        return cast(BinaryIO, self.fs.open(self.path(name), "rb"))

    def read_bytes(self, name: str) -> bytes:
        return cast(bytes, self.fs.cat_file(self.path(name)))

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Return the bytes of each (name, start, end), read together if the store supports it."""
        paths = [self.path(name) for name, _, _ in ranges]
        starts, ends = [start for _, start, _ in ranges], [end for _, _, end in ranges]
        found = self.fs.cat_ranges(paths, starts, ends, on_error="raise", **self._range_options)
        return cast(list[bytes], found)

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_bytes(name))

    def read_jsons(self, folder: str) -> dict[str, bytes]:
        """Return name -> content of every .json file under `folder`, read together if the store supports it."""
        names = sorted(name for name in self.sizes(folder) if name.endswith(".json"))
        return dict(zip(names, self.read_files(names), strict=True))

    def read_files(self, names: Sequence[str]) -> list[bytes]:
        """Return the contents of files, read together if the store supports it."""
        if self.is_local:
            return [Path(self.path(name)).read_bytes() for name in names]
        found = self.fs.cat_ranges([self.path(name) for name in names], None, None, on_error="raise") if names else []
        return cast(list[bytes], found)

    @contextmanager
    def open_checked(self, name: str, sha256: str) -> Iterator[CheckedFile]:
        """Open a file to read all of it; call `check` at the end. Damage may also cause a failure to read it.

        Raises:
            DamagedFileError: the file is not the one that was written.
        """
        with self.open(name) as raw:
            file = CheckedFile(raw, name, sha256)
            try:
                yield file
            except DamagedFileError:
                raise
            except Exception:
                file.check()
                raise

    @contextmanager
    def create(self, name: str) -> Iterator[HashingFile]:
        """Open `name` for writing; the file appears, complete, when the block ends without an error."""
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
        with scratch_folder("upload") as scratch:
            spooled = scratch / "file"
            with spooled.open("wb") as raw:
                out = HashingFile(raw)
                yield out
            self.fs.put_file(str(spooled), self.path(name))

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

    def read_table(
        self,
        name: str,
        columns: list[str] | None = None,
        *,
        filters: list[tuple[str, str, Any]] | None = None,
        sha256: str | None = None,
    ) -> pa.Table:
        """Read a Parquet file that this project wrote; if its SHA-256 is given, the whole file is checked. Raises:
        DamagedFileError: it is not what was written.
        """
        with self._source(name, sha256) as source, _reading_parquet(name):
            return pq.read_table(
                source, columns=columns, filters=filters, use_threads=False, page_checksum_verification=True
            )

    @contextmanager
    def _source(self, name: str, sha256: str | None) -> Iterator[Any]:
        if sha256 is None:
            with self.open(name) as source:
                yield source
            return
        with self.open_checked(name, sha256) as checked:
            content = checked.read()
            checked.check()
        yield pa.BufferReader(content)

    def read_batches(self, name: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Read columns of a Parquet file that this project wrote, some rows at a time.

        Raises:
            DamagedFileError: it is not what was written.
        """
        with (
            self.open(name) as source,
            _reading_parquet(name),
            pq.ParquetFile(source, page_checksum_verification=True) as file,
        ):
            missing = set(columns) - set(file.schema_arrow.names)  # a footer has no checksum
            if missing:
                raise DamagedFileError.of(name, f"it has no column {min(missing)!r}")
            yield from file.iter_batches(columns=columns, use_threads=False)

    def move(self, names: Mapping[str, str]) -> None:
        """Rename files, from each key to its value; together if the store supports it."""
        if not self._renames:
            self.fs.copy([self.path(name) for name in names], [self.path(to) for to in names.values()])
            self.remove(names)
            return
        for name, to in names.items():
            self.fs.makedirs(self.path(to).rsplit("/", 1)[0], exist_ok=True)
            self.remove([to])
            self.fs.mv(self.path(name), self.path(to))

    def copy(self, names: Mapping[str, str]) -> None:
        """Copy files, from each key to its value; together if the store supports it. A killed copy may be partial."""
        for to in names.values() if self._renames else ():
            self.fs.makedirs(self.path(to).rsplit("/", 1)[0], exist_ok=True)
        if names:
            self.fs.copy([self.path(name) for name in names], [self.path(to) for to in names.values()])

    def remove(self, names: Iterable[str]) -> None:
        """Remove the files that exist, in any order; together if the store supports it."""
        names = list(names)
        if self._renames or len(names) == 1:
            for name in names:
                if self.exists(name):
                    with suppress(FileNotFoundError):  # of a removal that was sent twice, as its response was lost
                        self.fs.rm_file(self.path(name))
        elif names:
            try:
                self.fs.rm([self.path(name) for name in names])
            except FileNotFoundError:  # stores differ in when they report missing files, and in whether they continue
                for name in names:
                    self.remove([name])

    def make_folder(self, name: str) -> None:
        """Make a folder, if it is not there."""
        self.fs.makedirs(self.path(name), exist_ok=True)

    def remove_folder(self, name: str) -> None:
        """Remove a folder and its content, if it exists. It must be inside the workspace."""
        if not name or name.startswith("/") or ".." in name.split("/"):
            raise ValueError(f"not a folder of the workspace: {name!r}")
        if self.is_local:
            with suppress(FileNotFoundError):
                shutil.rmtree(self.path(name))
        elif self.exists(name):
            self.fs.rm(self.path(name), recursive=True)

    def remove_temporary_files(self) -> None:
        """Remove the unfinished files of a killed run; only while no build is running."""
        self.remove_folder(_TMP)


def _store_options(root: str) -> dict[str, Any]:
    """gcsfs sets no timeout, and sends again what ended by that of a socket, not by one of the whole request."""
    if not root.startswith(("gs://", "gcs://")):
        return {}
    from aiohttp import ClientTimeout  # slow to import

    return {"requests_timeout": ClientTimeout(total=None, sock_connect=READ_TIMEOUT_S, sock_read=READ_TIMEOUT_S)}


def _local_files(path: str, fact: Callable[[os.stat_result], Fact]) -> Iterator[tuple[str, Fact]]:
    """Yield the files under a path, in any order, with a fact about each.

    Of a million, several times faster than through fsspec; the facts that `stat` returns take 1 kB each.
    """
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir():
                    yield from _local_files(entry.path, fact)
                    continue
                try:
                    found = fact(entry.stat())
                except FileNotFoundError:  # removed since
                    continue
                yield entry.path, found
    except FileNotFoundError:
        return
    except NotADirectoryError:  # the path, or what its folder should be, is a file
        with suppress(NotADirectoryError):
            yield path, fact(os.stat(path))


def _version(facts: os.stat_result) -> FileVersion:
    return FileVersion(facts.st_size, f"{facts.st_ino}-{facts.st_mtime_ns}")


def _tag(info: Mapping[str, Any]) -> str:
    return str(next((info[key] for key in ("ETag", "etag", "mtime", "updated", "created") if info.get(key)), ""))


@contextmanager
def _reading_parquet(name: str) -> Iterator[None]:
    """Distinguish damage, which page checksums detect, from failures of the system, which have an error number."""
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DamagedFileError.of(name, one_line(error)) from error
