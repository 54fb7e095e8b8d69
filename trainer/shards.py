"""Which shards there are, how many samples each holds, and any sample of one by its number.

Reads the shards of this project (counts from `manifest.json` or `sizes.json`) and any WebDataset of `KEY.jpg`,
`KEY.txt`, `KEY.json` members (counted by reading the tar headers once). Remote tars are kept in a local folder of
bounded size.
"""

import fcntl
import hashlib
import json
import os
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import fsspec
import numpy as np
from numpy.typing import NDArray

from pipeline.shards.manifest import Shard, read_manifest
from trainer.errors import TrainerError

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
_MEMBERS = {**dict.fromkeys(IMAGE_SUFFIXES, 0), "txt": 1, "json": 2}
MAX_OPEN_SHARDS = 128
"""Per loader process; far below the usual limit of 1,024 open files."""


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

    def open(self, path: str) -> BinaryIO:
        """Open a local file with the content of `path`; fetch it first if it is remote and not here.

        Raises:
            TrainerError: it cannot be read.
        """
        try:
            if "://" not in path:
                return Path(path).open("rb", buffering=0)
            copy = self._folder / "shards" / f"{_digest(path)}.tar"
            copy.parent.mkdir(parents=True, exist_ok=True)
            with _locked(copy.with_suffix(".lock")):
                if not copy.exists():
                    self._fetch(path, copy)
                file = copy.open("rb", buffering=0)  # from here on it may be dropped: an open file stays
            os.utime(file.fileno())  # the least recently opened copies are dropped first
            return file
        except OSError as error:
            raise TrainerError(f"cannot read shard {path}: {error.strerror or error}") from error

    def _fetch(self, path: str, copy: Path) -> None:
        partial = copy.with_suffix(".part")
        filesystem, remote = fsspec.core.url_to_fs(path)
        filesystem.get_file(remote, str(partial))
        os.replace(partial, copy)
        self._drop_oldest(copy)

    def _drop_oldest(self, newest: Path) -> None:
        """Keep the copies below the limit. A process that has one open goes on reading it: unlinking is safe."""
        copies = sorted((c.stat().st_mtime, c.stat().st_size, c) for c in newest.parent.glob("*.tar") if c != newest)
        excess = newest.stat().st_size + sum(size for _, size, _ in copies) - self._max_bytes
        for _, size, copy in copies:
            if excess <= 0:
                return
            copy.unlink(missing_ok=True)
            excess -= size

    def index(self, path: str, file: BinaryIO) -> NDArray[np.int64]:
        """Return the shard's index, (samples, 3, 2): offset and size of image, text and json; -1 where missing."""
        stat = os.fstat(file.fileno())
        stored = self._folder / "index" / f"{_digest(f'{path} {stat.st_size} {stat.st_mtime_ns}')}.npy"
        if stored.exists():
            found: NDArray[np.int64] = np.load(stored)
            return found
        made = index_tar(file, path)
        stored.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=stored.parent, suffix=".part", delete=False) as partial:
            np.save(partial, made)
        os.replace(partial.name, stored)
        return made


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def index_tar(file: BinaryIO, name: str) -> NDArray[np.int64]:
    """Find each sample's members in a tar: consecutive files with one key, as WebDataset defines it.

    Raises:
        TrainerError: the file is not a tar, or it ends inside a member.
    """
    rows: list[list[list[int]]] = []
    previous = None
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, base = member.name.rpartition("/")
                key, _, suffix = base.partition(".")
                place = _MEMBERS.get(suffix.lower())
                if (folder, key) != previous:
                    rows.append([[-1, 0], [-1, 0], [-1, 0]])
                    previous = (folder, key)
                if place is not None:
                    rows[-1][place] = [member.offset_data, member.size]
            end = tar.offset
    except (OSError, tarfile.TarError) as error:
        raise TrainerError(f"shard {name} is damaged: {error}; write it again, or leave it out") from error
    if end > os.fstat(file.fileno()).st_size:
        raise TrainerError(f"shard {name} ends in the middle of a sample: write it again, or leave it out")
    return np.array(rows, np.int64).reshape(-1, 3, 2)


class ShardReader:
    """Random access to the samples of one local tar."""

    def __init__(self, file: BinaryIO, index: NDArray[np.int64]) -> None:
        self._file = file
        self._index = index

    def __len__(self) -> int:
        return len(self._index)

    def read(self, number: int, *, with_json: bool) -> Sample:
        """Return a sample by its place in the tar, in one read: its members lie side by side."""
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
        """A hash of the shards' names and counts: another set means another order."""
        listing = json.dumps([(shard.path.rpartition("/")[2], shard.samples) for shard in self.shards])
        return _digest(listing)

    def reader(self, shard: int) -> ShardReader:
        """Return the reader of a shard, opened at first use.

        Raises:
            TrainerError: it cannot be read, is damaged, or does not hold what the set says.
        """
        return self._reader(shard)

    def _open(self, number: int) -> ShardReader:
        shard = self.shards[number]
        file = self.cache.open(shard.path)
        index = self.cache.index(shard.path, file)
        if len(index) != shard.samples:
            raise TrainerError(
                f"shard {shard.path} holds {len(index)} samples where {shard.samples} are announced: "
                "it was cut or replaced; write the set again"
            )
        return ShardReader(file, index)


def find_shards(globs: tuple[str, ...], cache: ShardCache) -> ShardSet:
    """List the shards that match and count their samples.

    Counts come from the folder's `manifest.json` or `sizes.json`; a shard that neither names is opened and counted.

    Raises:
        TrainerError: nothing matches, no shard holds a sample, or a shard to be counted cannot be read.
    """
    paths = [path for pattern in globs for path in _expand(pattern)]
    if not paths:
        raise TrainerError(f"no shards match {', '.join(globs)}: build them first, or set train.shards")
    announced: dict[str, int] = {}
    for folder in sorted({path.rpartition("/")[0] for path in paths}):
        announced |= _announced_counts(folder)
    counted = ShardSet(tuple(Shard(path, _count(path, announced, cache)) for path in paths), cache)
    if not counted.counts.sum():
        raise TrainerError(f"the {len(paths)} shards that match {', '.join(globs)} hold no samples")
    return counted


def _expand(pattern: str) -> list[str]:
    filesystem, path = fsspec.core.url_to_fs(pattern)
    found = sorted(filesystem.glob(path)) if any(c in pattern for c in "*?[") else [path] * filesystem.exists(path)
    return [filesystem.unstrip_protocol(p) if "://" in pattern else str(p) for p in found]


def _announced_counts(folder: str) -> dict[str, int]:
    """Read how many samples each shard of a folder holds, as far as the folder says."""
    try:
        return {shard.path: shard.samples for shard in read_manifest(folder).shards}
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except (ValueError, KeyError, TypeError) as error:
        raise TrainerError(f"{folder}/manifest.json cannot be used: {error}") from error
    try:
        with fsspec.open(f"{folder}/sizes.json", "rb") as file:
            return {f"{folder}/{name}": int(count) for name, count in json.load(file).items()}
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return {}
    except (ValueError, AttributeError, TypeError) as error:
        raise TrainerError(f"{folder}/sizes.json cannot be used: {error}") from error


def _count(path: str, announced: dict[str, int], cache: ShardCache) -> int:
    if path in announced:
        return announced[path]
    with cache.open(path) as file:
        return len(cache.index(path, file))
