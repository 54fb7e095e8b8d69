"""Index the samples of a tar from its headers alone, and check that the tar is complete."""

import os
import tarfile
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from dedup.eval_sets.read import IMAGE_SUFFIXES
from trainer.errors import TrainerError

_MEMBERS = {**dict.fromkeys(IMAGE_SUFFIXES, 0), "txt": 1, "json": 2}

_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, Zstandard

Index = NDArray[np.int64]
"""(samples, 3, 2): offset and size of image, text and json; -1 where missing."""


def index_tar(file: BinaryIO, name: str, size: int | None = None) -> Index:
    """Find each sample's members in a tar: consecutive files with one key, as WebDataset defines it.

    `size`: of the file in bytes; by default that of the open local file.

    Raises:
        TrainerError: the file is not a tar, a header is damaged, or its end-of-archive block is missing.
    """
    rows: list[list[list[int]]] = []
    previous = None
    try:
        if file.read(6).startswith(_COMPRESSED):
            raise TrainerError(f"shard {name} is compressed: unpack it, so that its samples can be read one by one")
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                folder, _, base = member.name.rpartition("/")
                if not member.isfile() or base.startswith("."):  # macOS writes ._0.jpg beside 0.jpg
                    continue
                key, _, suffix = base.partition(".")
                column = _MEMBERS.get(suffix.lower())
                if (folder, key) != previous:
                    rows.append([[-1, 0], [-1, 0], [-1, 0]])
                    previous = (folder, key)
                if column is not None:
                    rows[-1][column] = [member.offset_data, member.size]
            end = tar.offset
        if end > (os.fstat(file.fileno()).st_size if size is None else size):
            raise TrainerError(f"shard {name} ends in the middle of a sample: write it again, or leave it out")
        _check_end(file, end, name)
    except (OSError, tarfile.TarError) as error:
        raise TrainerError(f"shard {name} is damaged: {error}; write it again, or leave it out") from error
    return np.array(rows, np.int64).reshape(-1, 3, 2)


def _check_end(file: BinaryIO, end: int, name: str) -> None:
    """Raise unless a block of zeros marks the end and only zeros follow.

    tarfile silently treats any bad header as the end of the archive. Every writer that finishes writes that block, and
    a tar that was truncated between two members differs in nothing else.
    """
    file.seek(end)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE and not block.strip(b"\0"):
        raise TrainerError(
            f"shard {name} was truncated: it has no end-of-archive block; write it again, or leave it out"
        )
    while block:
        if block.strip(b"\0"):
            raise TrainerError(
                f"shard {name} is damaged: byte {end} is neither a member's header nor the end of the archive; "
                "write it again, or leave it out"
            )
        block = file.read(1 << 20)
