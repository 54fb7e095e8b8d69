"""Where the samples of a tar are, found from its headers alone, and whether the tar is whole."""

import os
import tarfile
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from dedup.eval_sets.read import IMAGE_SUFFIXES
from trainer.errors import TrainerError

_MEMBERS = {**dict.fromkeys(IMAGE_SUFFIXES, 0), "txt": 1, "json": 2}

Index = NDArray[np.int64]
"""(samples, 3, 2): offset and size of image, text and json; -1 where missing."""


def index_tar(file: BinaryIO, name: str) -> Index:
    """Find each sample's members in a tar: consecutive files with one key, as WebDataset defines it.

    Raises:
        TrainerError: the file is not a tar, a header is damaged, or it was cut before the mark of its end.
    """
    rows: list[list[list[int]]] = []
    previous = None
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                folder, _, base = member.name.rpartition("/")
                if not member.isfile() or base.startswith("."):  # macOS writes ._0.jpg beside 0.jpg
                    continue
                key, _, suffix = base.partition(".")
                place = _MEMBERS.get(suffix.lower())
                if (folder, key) != previous:
                    rows.append([[-1, 0], [-1, 0], [-1, 0]])
                    previous = (folder, key)
                if place is not None:
                    rows[-1][place] = [member.offset_data, member.size]
            end = tar.offset
        if end > os.fstat(file.fileno()).st_size:
            raise TrainerError(f"shard {name} ends in the middle of a sample: write it again, or leave it out")
        _check_end(file, end, name)
    except (OSError, tarfile.TarError) as error:
        raise TrainerError(f"shard {name} is damaged: {error}; write it again, or leave it out") from error
    return np.array(rows, np.int64).reshape(-1, 3, 2)


def _check_end(file: BinaryIO, end: int, name: str) -> None:
    """Raise unless a block of zeros marks the end and only zeros follow: tarfile takes any bad header for the end.

    Every writer that finishes sets the mark, and a tar that was cut between two members differs in nothing else.
    """
    file.seek(end)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE and not block.strip(b"\0"):
        raise TrainerError(f"shard {name} was cut: the mark of its end is missing; write it again, or leave it out")
    while block:
        if block.strip(b"\0"):
            raise TrainerError(
                f"shard {name} is damaged: no member begins at byte {end}, nor is that the end of the file; "
                "write it again, or leave it out"
            )
        block = file.read(1 << 20)
