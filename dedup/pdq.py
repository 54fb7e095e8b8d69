"""Compute the fingerprint of an image: a 256-bit PDQ hash and a quality score.

PDQ (Facebook, 2019, "The TMK+PDQF Video-Hashing Algorithm and the PDQ Image-Hashing Algorithm") keeps the signs of the
16x16 lowest frequencies of a 64x64 grey image. The reference gets to 64x64 by a box filter of whole pixels whose centre
moves with the image size, so one photo at 256 px and at 600 px is about 20 bits apart. We resample to 64x64 directly,
on the sampling grid that the reference has at 512 px (the size it shrinks larger images to): copies at any size then
agree within a few bits, and the hash stays within a few bits of the reference's. docs/dedup.md has the measurements.
"""

from dataclasses import dataclass

import numpy as np
import pdqhash
from PIL import Image

PDQ_BYTES = 32
PDQ_BITS = 256

# The grid that PDQ hashes, and where the reference's 4-pixel-wide filter puts its samples at 512 px: 1.5 px off centre.
_GRID = 64
_MEDIAN = PDQ_BITS // 2 - 1  # the place of PDQ's median among the sorted frequencies
_GRID_SHIFT = 1.5 / 512

VIEWS: tuple[tuple[str, Image.Transpose | None], ...] = (
    ("upright", None),
    ("rotate90", Image.Transpose.ROTATE_90),
    ("rotate180", Image.Transpose.ROTATE_180),
    ("rotate270", Image.Transpose.ROTATE_270),
    ("mirror", Image.Transpose.FLIP_LEFT_RIGHT),
    ("flip", Image.Transpose.FLIP_TOP_BOTTOM),
    ("transpose", Image.Transpose.TRANSPOSE),
    ("transverse", Image.Transpose.TRANSVERSE),
)
"""The eight symmetries of an image; rotations are counter-clockwise, `mirror` swaps left and right."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The fingerprint of an image: `pdq` has 32 bytes, most significant bit first; `quality` is 0 (flat) to 100."""

    pdq: bytes
    quality: int


def fingerprint(rgb: np.ndarray) -> Fingerprint:
    """Return the fingerprint of an image, `(height, width, 3)` uint8, any size from 1x1.

    Shrinking the image first (to 64 px or more, any usual filter) moves the hash by 0 to 4 bits only.
    """
    return _hash_grey(_grey(rgb))


def fingerprint_views(rgb: np.ndarray) -> list[tuple[str, bytes]]:
    """Return `(view name, PDQ)` of the eight views of an image, upright first.

    The hash of a view is the fingerprint that a copy turned or mirrored that way has.
    """
    grey = _grey(rgb)
    return [(name, _hash_grey(_turn(grey, transpose)).pdq) for name, transpose in VIEWS]


def _grey(rgb: np.ndarray) -> Image.Image:
    """Return the luma of an RGB array by ITU-R BT.601, the weights PDQ uses."""
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
        raise ValueError(f"need a (height, width, 3) uint8 image, not {rgb.shape} {rgb.dtype}")
    return Image.fromarray(rgb).convert("L")


def _turn(grey: Image.Image, transpose: Image.Transpose | None) -> Image.Image:
    return grey if transpose is None else grey.transpose(transpose)


def _hash_grey(grey: Image.Image) -> Fingerprint:
    width, height = grey.size
    right, down = width * _GRID_SHIFT, height * _GRID_SHIFT
    # The shifted grid reaches past the right and lower edge: repeat the last pixels there.
    padded = np.empty((height + int(np.ceil(down)), width + int(np.ceil(right))), np.uint8)
    padded[:height, :width] = np.asarray(grey)
    padded[height:, :width] = padded[height - 1, :width]
    padded[:, width:] = padded[:, width - 1 : width]
    box = (right, down, width + right, height + down)
    small = np.asarray(Image.fromarray(padded).resize((_GRID, _GRID), Image.Resampling.BICUBIC, box=box))
    # `pdqhash.compute` takes the same frequencies, but compares them one by one in Python.
    frequencies, quality = pdqhash.compute_float(np.broadcast_to(small[:, :, None], (_GRID, _GRID, 3)))
    median = np.partition(frequencies, _MEDIAN)[_MEDIAN]
    return Fingerprint(np.packbits(frequencies > median).tobytes(), int(quality))
