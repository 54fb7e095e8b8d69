"""List the shards, count the samples of each, and read any sample by its number.

Reads the shards of this project (counts from `manifest.json` or `sizes.json`) and any WebDataset of `KEY.jpg`,
`KEY.txt`, `KEY.json` members (counted by reading the tar headers once). Remote tars are kept in a local folder of
bounded size.
"""

import fcntl
import hashlib
import io
import json
import os
import tarfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import fsspec
import numpy as np
from numpy.typing import NDArray

from pipeline.shards.manifest import Shard, read_manifest
from trainer.errors import TrainerError, one_line
from trainer.remote_shards import Version, expand, fetch, version_of
from trainer.tar_index import Index, index_tar

MAX_OPEN_SHARDS = 128
"""Per loader process; far below the usual limit of 1,024 open files."""
MAX_SAMPLES = 2**40
"""Of a shard; a larger announced count is rejected as invalid."""
_ABSENT = (FileNotFoundError, NotADirectoryError, PermissionError)  # or HTTP 403: some stores send it for missing files


@dataclass(frozen=True)
class Sample:
    """The members of one sample as stored; None where the tar has none."""

    image: bytes | None
    text: bytes | None
    json: bytes | None


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
            return file, self._index(file, path, _digest(f"{path} {stat.st_size} {stat.st_mtime_ns}"))
        except OSError as error:
            raise TrainerError(f"cannot read shard {path}: {error.strerror}") from error

    def _open_copy(self, path: str, announced: int | None, sha256: str | None) -> tuple[BinaryIO, Index]:
        version = version_of(path)
        copy = self._folder / "shards" / f"{_digest(f'{path} {version}')}.tar"
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
            fetch(path, partial, version.size)
            if sha256 is not None and _sha256(partial) != sha256:
                raise TrainerError(
                    f"shard {path} arrived damaged: its SHA-256 is not the one in manifest.json; run again, or check "
                    "the original with `wit verify --shards`"
                )
            with self._writing():
                file = partial.open("rb", buffering=0)  # from here on it may be deleted: an open file stays readable
            index = index_tar(file, path)
            with self._writing():
                self._store(index, copy.stem)
                os.replace(partial, copy)
        finally:
            partial.unlink(missing_ok=True)
        self._drop_oldest(copy)
        return file, index

    def _drop_oldest(self, newest: Path) -> None:
        """Keep the copies below the limit. Unlinking is safe: a process that has one open can still read it."""
        with self._locked(newest.parent / "dropping.lock"):
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


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class ShardReader:
    """Random access to the samples of one local tar."""

    def __init__(self, file: BinaryIO, index: Index) -> None:
        self._file = file
        self._index = index

    def __len__(self) -> int:
        return len(self._index)

    def read(self, number: int, *, with_json: bool) -> Sample:
        """Return a sample by its index in the tar, in one read: its members are adjacent."""
        spans = self._index[number] if with_json else self._index[number, :2]
        present = spans[spans[:, 0] >= 0]
        if not len(present):
            return Sample(None, None, None)
        start, end = int(present[:, 0].min()), int(present.sum(axis=1).max())
        block = os.pread(self._file.fileno(), end - start, start)
        members = [block[o - start : o - start + size] if o >= 0 else None for o, size in spans.tolist()]
        return Sample(members[0], members[1], members[2] if with_json else None)

    def key(self, number: int) -> str:
        """Return the sample's key, from its first member's tar header."""
        first = min(offset for offset, _ in self._index[number].tolist() if offset >= 0)
        header = os.pread(self._file.fileno(), 512, first - 512)
        member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        return member.name.rpartition("/")[2].partition(".")[0]


class ShardSet:
    """The shards of a run. Cheap to pickle: files are opened where samples are read."""

    def __init__(self, shards: tuple[Shard, ...], cache: ShardCache) -> None:
        self.shards = shards
        self.cache = cache
        self._reader = lru_cache(maxsize=MAX_OPEN_SHARDS)(self._open)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Samples per shard."""
        return np.array([shard.samples for shard in self.shards], np.int64)

    @property
    def fingerprint(self) -> str:
        """A hash of the shards' names and counts: the order of samples depends on both."""
        listing = json.dumps([(shard.path.rpartition("/")[2], shard.samples) for shard in self.shards])
        return _digest(listing)

    def reader(self, shard: int) -> ShardReader:
        """Return the reader of a shard, opened at first use.

        Raises:
            TrainerError: it cannot be read, is damaged, or does not hold the expected number of samples.
        """
        return self._reader(shard)

    def _open(self, number: int) -> ShardReader:
        shard = self.shards[number]
        return ShardReader(*self.cache.open(shard.path, shard.samples, shard.sha256))


def find_shards(globs: tuple[str, ...], cache: ShardCache) -> ShardSet:
    """List the shards that match, each once, and count their samples.

    Counts come from the folder's `manifest.json` or `sizes.json`; a shard that neither lists is opened and counted.

    Raises:
        TrainerError: nothing matches, no shard holds a sample, or a shard to be counted cannot be read.
    """
    matches_by_glob = {pattern: expand(pattern) for pattern in globs}
    paths = list(dict.fromkeys(path for matches in matches_by_glob.values() for path in matches))
    if not paths:
        raise TrainerError(f"no shards match {', '.join(globs)}: build them first, or set train.shards")
    announced: dict[str, Shard] = {}
    for folder in sorted({path.rpartition("/")[0] for path in paths}):
        source, shards = _announced_shards(folder)
        if source == "manifest.json":
            _check_none_missing(folder, shards, matches_by_glob)
        announced |= shards
    counted = ShardSet(tuple(announced.get(path) or _count(path, cache) for path in paths), cache)
    if not counted.counts.sum():
        raise TrainerError(f"the {len(paths)} shards that match {', '.join(globs)} hold no samples")
    return counted


def _check_none_missing(folder: str, shards: dict[str, Shard], matches_by_glob: dict[str, list[str]]) -> None:
    """Raise if a glob on this folder would match a tar that the manifest lists but that does not exist."""
    for pattern, matches in matches_by_glob.items():
        if any(path.rpartition("/")[0] == folder for path in matches):
            for path in sorted(shards.keys() - set(matches)):
                if fnmatchcase(path.rpartition("/")[2], pattern.rpartition("/")[2]):
                    raise TrainerError(
                        f"{folder}/manifest.json lists {path}, which does not exist: copy it, or list the tars to "
                        "train on in train.shards"
                    )


def _announced_shards(folder: str) -> tuple[str, dict[str, Shard]]:
    """Return the name of the file that lists a folder's shards, and the shards by path; ("", {}) if there is none.

    Raises:
        TrainerError: it cannot be read, or a count is invalid.
    """
    for name, read in (("manifest.json", _read_manifest), ("sizes.json", _read_sizes)):
        try:
            shards = read(folder)
        except Exception as error:  # JSON of any shape, and any file system's errors
            if isinstance(error, _ABSENT) or getattr(error, "status", None) == 403:
                continue
            raise TrainerError(f"{folder}/{name} cannot be used: {one_line(error)}") from error
        for shard in shards:
            if type(shard.samples) is not int or not 0 <= shard.samples <= MAX_SAMPLES:
                raise TrainerError(
                    f"{folder}/{name} cannot be used: {shard.samples!r} is not a number of samples ({shard.path})"
                )
        return name, {shard.path: shard for shard in shards}
    return "", {}


def _read_manifest(folder: str) -> list[Shard]:
    return list(read_manifest(folder).shards)


def _read_sizes(folder: str) -> list[Shard]:
    with fsspec.open(f"{folder}/sizes.json", "rb") as file:
        return [Shard(f"{folder}/{name}", count) for name, count in json.load(file).items()]


def _count(path: str, cache: ShardCache) -> Shard:
    file, index = cache.open(path)
    file.close()
    return Shard(path, len(index))
