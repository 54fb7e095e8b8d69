"""Read any sample of the shards by its number.

Reads the shards of this project and any WebDataset of `KEY.jpg`, `KEY.txt`, `KEY.json` members.
"""

import json
import os
import tarfile
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from trainer.counting import CountedShard, count_shards
from trainer.shard_cache import ShardCache, digest
from trainer.tar_index import Index

MAX_OPEN_SHARDS = 128
"""Per loader process; far below the usual limit of 1,024 open files."""


@dataclass(frozen=True)
class Sample:
    """The members of one sample as stored; None where the tar has none."""

    image: bytes | None
    text: bytes | None
    json: bytes | None
    annotations: dict[str, Any] = field(default_factory=dict)  # by their key, where captions are read from them


class ShardReader:
    """Random access to the samples of one local tar, which is open as long as its reader is used."""

    def __init__(self, file: BinaryIO, index: Index) -> None:
        self._file = file
        self._index = index

    def __del__(self) -> None:
        self._file.close()

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

    def __init__(self, shards: tuple[CountedShard, ...], cache: ShardCache) -> None:
        self.shards = shards
        self.cache = cache
        self._reader = lru_cache(maxsize=MAX_OPEN_SHARDS)(partial(_open, shards, cache))

    @property
    def counts(self) -> NDArray[np.int64]:
        """Samples per shard."""
        return np.array([shard.samples for shard in self.shards], np.int64)

    @property
    def fingerprint(self) -> str:
        """A hash of the shards' names, counts and contents: of each its SHA-256, or its size where only that is known.

        The order of samples depends on the names and counts, what they teach on the contents.
        """
        listing = [(s.path.rpartition("/")[2], s.samples, s.sha256 or s.size) for s in self.shards]
        return digest(json.dumps(listing))

    def reader(self, shard: int) -> ShardReader:
        """Return the reader of a shard, opened at first use.

        Raises:
            TrainerError: it cannot be read, is damaged, or does not hold the expected number of samples.
        """
        return self._reader(shard)


def _open(shards: tuple[CountedShard, ...], cache: ShardCache, number: int) -> ShardReader:
    shard = shards[number]
    return ShardReader(*cache.open(shard.path, shard.samples, shard.sha256))


def find_shards(globs: tuple[str, ...], cache: ShardCache, key: str = "train.shards") -> ShardSet:
    """List the shards that match, each once, and count their samples. `key` names the globs in an error.

    Raises:
        TrainerError: a glob matches nothing, no shard holds a sample, or a shard to be counted cannot be read.
    """
    return ShardSet(count_shards(globs, cache, key), cache)
