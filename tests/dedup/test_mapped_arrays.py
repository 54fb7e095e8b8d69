"""A disk that is full is an error while an index is built: a page that has no block would end the process."""

import errno
import os

import numpy as np
import pytest

from dedup.copies.search import VectorIndex
from dedup.hamming import SCANNED_ROWS, HammingIndex
from dedup.mapped_arrays import create_array

HASHES = np.zeros((SCANNED_ROWS + 1, 32), np.uint8)
VECTORS = np.zeros((10, 64), np.int8)


def test_an_array_has_its_blocks_before_it_is_filled(tmp_path):
    array = create_array(tmp_path / "a.npy", np.int32, (1_000, 300))
    facts = (tmp_path / "a.npy").stat()
    assert facts.st_blocks * 512 >= facts.st_size >= array.nbytes
    array[:] = np.arange(300)
    array.flush()
    assert np.array_equal(np.load(tmp_path / "a.npy"), np.broadcast_to(np.arange(300), (1_000, 300)))


@pytest.mark.parametrize(
    "build",
    [lambda folder: HammingIndex.build(HASHES, folder), lambda folder: VectorIndex.build(VECTORS, 1, folder=folder)],
)
def test_a_full_disk_is_an_error_of_the_system(build, tmp_path, monkeypatch):
    def full(descriptor: int, start: int, size: int) -> None:
        assert size > min(HASHES.nbytes, VECTORS.nbytes)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        build(tmp_path)
