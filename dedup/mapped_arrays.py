"""Arrays in files that are mapped into memory while they are filled."""

import os
import sys
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike


def create_array(file: Path, kind: DTypeLike, shape: tuple[int, ...]) -> np.ndarray:
    """Make a .npy file of zeros and map it; what is written to the array is written to the file.

    Its blocks are taken at once: where the disk is full when a page is written, the system ends the process.

    Raises:
        OSError: the disk has too little space.
    """
    array = np.lib.format.open_memmap(file, "w+", kind, shape)
    if sys.platform != "darwin":  # which has no such call
        with file.open("rb+") as opened:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
    return array
