"""Local copies of remote tars, and the indexes of all tars, in one folder that all processes of a machine share."""

import fcntl
import hashlib
import io
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from trainer.errors import TrainerError, one_line
from trainer.remote_shards import Version, fetch, version_of
from trainer.tar_index import Index, index_tar

_ABANDONED_S = 86_400.0
"""A copy that has not grown for so long is nobody's."""


class ShardCache:
    """Local copies and indexes of tars in one folder, shared by all processes of a machine."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    def open(self, path: str, announced: int | None = None, sha256: str | None = None) -> tuple[BinaryIO, Index]:
        """Open a local file with the content of `path` and index its samples; a remote file is copied if needed.

        A new copy is compared with `sha256`.

        Raises:
            TrainerError: it cannot be read, is damaged, or does not hold the `announced` number of samples.
        """
        file, index = self._open_copy(path, announced, sha256) if "://" in path else self._open_local(path)
        if announced not in (None, len(index)):
            file.close()
            raise TrainerError(
                f"shard {path} holds {len(index)} samples, but {announced} are announced: "
                "it was truncated or replaced; write the set again"
            )
        return file, index

    def _open_local(self, path: str) -> tuple[BinaryIO, Index]:
        try:
            file = Path(path).open("rb", buffering=0)  # noqa: SIM115  # its reader keeps it open
            stat = os.fstat(file.fileno())
            name = digest(f"{path} {stat.st_size} {stat.st_mtime_ns}")
            try:
                with _one_at_a_time(file):  # a machine's processes index a tar once
                    return file, self._index(file, path, name)
            except BaseException:
                file.close()
                raise
        except OSError as error:
            raise TrainerError(f"cannot read shard {path}: {error.strerror}") from error

    def keep(self, path: str, announced: int | None = None, sha256: str | None = None) -> tuple[Path, int]:
        """Have a copy of a remote tar, as `open` does; return its path and size.

        Raises:
            TrainerError: as `open` does.
        """
        file, _ = self.open(path, announced, sha256)
        with file:
            return self._copy_path(path, version_of(path)), os.fstat(file.fileno()).st_size

    def _copy_path(self, path: str, version: Version) -> Path:
        return self._folder / "shards" / f"{digest(f'{path} {version}')}.tar"

    def _open_copy(self, path: str, announced: int | None, sha256: str | None) -> tuple[BinaryIO, Index]:
        version = version_of(path)
        copy = self._copy_path(path, version)
        with self._writing():
            copy.parent.mkdir(parents=True, exist_ok=True)
        with self._locked(copy.with_suffix(".lock")):
            file, index = self._kept(path, copy, version, announced) or self._fetch(path, copy, version, sha256)
        with self._writing():
            os.utime(file.fileno())  # the least recently opened copies are dropped first
        return file, index

    def _kept(self, path: str, copy: Path, version: Version, announced: int | None) -> tuple[BinaryIO, Index] | None:
        """Open an existing copy; None if there is none or it is invalid, so that the caller must copy it again."""
        try:
            file = copy.open("rb", buffering=0)
        except OSError:  # another process may delete a copy at any time before it is open
            return None
        if version.size in (None, os.fstat(file.fileno()).st_size):
            with suppress(TrainerError):
                index = self._index(file, path, copy.stem)
                if announced in (None, len(index)):
                    return file, index
        file.close()
        return None

    def _fetch(self, path: str, copy: Path, version: Version, sha256: str | None) -> tuple[BinaryIO, Index]:
        partial = copy.with_suffix(".part")
        try:
            fetch(path, partial, version)
            if sha256 is not None and _sha256(partial) != sha256:
                raise TrainerError(
                    f"shard {path} arrived damaged: its SHA-256 is not the one in manifest.json; run again, or check "
                    "the original with `wit verify --shards`"
                )
            with self._writing():
                file = partial.open("rb", buffering=0)  # from here on it may be deleted: an open file stays readable
            try:
                index = index_tar(file, path)
                with self._writing():
                    self._store(index, copy.stem)
                    os.replace(partial, copy)
            except BaseException:
                file.close()
                raise
        finally:
            partial.unlink(missing_ok=True)
        self._drop_oldest(copy)
        return file, index

    def _drop_oldest(self, newest: Path) -> None:
        """Keep the copies below the limit. Unlinking is safe: a process that has one open can still read it."""
        with self._locked(newest.parent / "dropping.lock"):
            for partial in newest.parent.glob("*.part"):  # of a process that was killed
                with suppress(FileNotFoundError):
                    if time.time() - partial.stat().st_mtime > _ABANDONED_S:
                        partial.unlink()
            copies = sorted((c.stat().st_mtime, c.stat().st_size, c) for c in newest.parent.glob("*.tar"))
            excess = sum(size for _, size, _ in copies) - self._max_bytes
            for _, size, copy in copies:
                if excess > 0 and copy != newest:
                    copy.unlink()
                    excess -= size

    def _index(self, file: BinaryIO, path: str, name: str) -> Index:
        """Return the stored index of this name, or create and store it."""
        try:
            stored: Index = np.load(self._index_path(name))
            return stored
        except (OSError, ValueError):  # missing or incomplete
            index = index_tar(file, path)
        with self._writing():
            self._store(index, name)
        return index

    def _store(self, index: Index, name: str) -> None:
        target = self._index_path(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{uuid.uuid4().hex}.part")
        encoded = io.BytesIO()
        np.save(encoded, index)  # into a file, it would not report a full disk
        try:
            partial.write_bytes(encoded.getbuffer())
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)

    def _index_path(self, name: str) -> Path:
        return self._folder / "index" / f"{name}.npy"

    @contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        with self._writing():
            file = path.open("w")
            fcntl.flock(file, fcntl.LOCK_EX)
        with file:
            yield

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrainerError(
                f"cannot write to the cache of shards {self._folder}: {one_line(error)}; "
                "free space, or set train.cache to another folder"
            ) from error


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest(text: str) -> str:
    """Return a short hash for file names."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@contextmanager
def _one_at_a_time(file: BinaryIO) -> Iterator[None]:
    """Lock an open file against other processes; file systems without such locks go without."""
    with suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)
