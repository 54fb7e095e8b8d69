"""Compute the fingerprint of an image: a 256-bit PDQ hash and a quality score.

PDQ (Facebook, 2019, "The TMK+PDQF Video-Hashing Algorithm and the PDQ Image-Hashing Algorithm") keeps the signs of the
16x16 lowest frequencies of a 64x64 grey image. The reference gets to 64x64 by a box filter of whole pixels whose centre
moves with the image size, so one photo at 256 px and at 600 px is about 20 bits apart. We resample to 64x64 directly,
on the sampling grid that the reference has at 512 px (the size it shrinks larger images to): copies at any size then
agree within a few bits, and the hash stays within a few bits of the reference's. docs/dedup.md has the measurements.

Pillow defines the resampled values. For images as they are stored, matrix products compute the same ones in half the
time: all its numbers are integers below 2^53, so double precision is exact in any order of summation.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import pdqhash
from PIL import Image

PDQ_BYTES = 32
PDQ_BITS = 256

# The grid that PDQ hashes, and where the reference's 4-pixel-wide filter puts its samples at 512 px: 1.5 px off centre.
_GRID = 64
_MEDIAN = PDQ_BITS // 2 - 1  # the place of PDQ's median among the sorted frequencies
_GRID_SHIFT = 1.5 / 512

_MAX_PRODUCT_PIXELS = 1 << 17  # of larger images a BLAS library may spread the products over threads
_MAX_PRODUCT_RATIO = 32  # of the sides; Pillow takes other steps, which round otherwise, from a height of 100 widths
_GROUP = 8  # samples of the grid whose weights are in one matrix
_ONE = 1 << 22  # Pillow's weights are integers in this unit

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
    height, width, _ = rgb.shape
    wide = cv2.cvtColor(rgb, cv2.COLOR_RGB2RGBA)  # as Pillow has it in memory, which it uses without a copy
    return Image.frombuffer("RGBX", (width, height), wide, "raw", "RGBX", 0, 1).convert("L")


def _turn(grey: Image.Image, transpose: Image.Transpose | None) -> Image.Image:
    return grey if transpose is None else grey.transpose(transpose)


def _hash_grey(grey: Image.Image) -> Fingerprint:
    short, long = sorted(grey.size)
    by_products = short * long <= _MAX_PRODUCT_PIXELS and long <= _MAX_PRODUCT_RATIO * short
    small = _sampled_by_products(grey) if by_products else _sampled(grey)
    # `pdqhash.compute` takes the same frequencies, but compares them one by one in Python.
    frequencies, quality = pdqhash.compute_float(np.broadcast_to(small[:, :, None], (_GRID, _GRID, 3)))
    median = np.partition(frequencies, _MEDIAN)[_MEDIAN]
    return Fingerprint(np.packbits(frequencies > median).tobytes(), int(quality))


def _sampled(grey: Image.Image) -> np.ndarray:
    """Return an image on the grid, (64, 64) uint8."""
    padded = _padded(grey, np.uint8)
    right, down = grey.width * _GRID_SHIFT, grey.height * _GRID_SHIFT
    box = (right, down, grey.width + right, grey.height + down)
    return np.asarray(Image.fromarray(padded).resize((_GRID, _GRID), Image.Resampling.BICUBIC, box=box))


def _sampled_by_products(grey: Image.Image) -> np.ndarray:
    """Return exactly what `_sampled` returns, up to `_MAX_PRODUCT_RATIO`; takes 8 bytes a pixel."""
    pixels = _padded(grey, np.float64)
    rows = np.empty((len(pixels), _GRID))
    for taken, samples, weights in _weights(grey.width):
        np.matmul(pixels[:, taken], weights, out=rows[:, samples])
    rows = np.floor(_clipped(rows))
    grid = np.empty((_GRID, _GRID))
    for taken, samples, weights in _weights(grey.height):
        np.matmul(weights.T, rows[taken], out=grid[samples])
    return _clipped(grid).astype(np.uint8)


def _clipped(sums: np.ndarray) -> np.ndarray:
    """Add a half, to round, and clip, in place."""
    sums += 0.5
    return np.clip(sums, 0, 255, out=sums)


def _padded(grey: Image.Image, kind: type[np.generic]) -> np.ndarray:
    """Return the pixels; the shifted grid reaches past the right and lower edge, so the last ones repeat there."""
    width, height = grey.size
    padded = np.empty((height + math.ceil(height * _GRID_SHIFT), width + math.ceil(width * _GRID_SHIFT)), kind)
    padded[:height, :width] = np.asarray(grey)
    padded[height:, :width] = padded[height - 1, :width]
    padded[:, width:] = padded[:, width - 1 : width]
    return padded


@lru_cache(256)
def _weights(side: int) -> tuple[tuple[slice, slice, np.ndarray], ...]:
    """Return Pillow's bicubic weights of `side` pixels, from `_padded`, in the samples of the grid.

    For each group of samples: the pixels it takes, the samples, and the weights (pixels, samples), multiples of 2^-22.
    Step by step as in Pillow's libImaging/Resample.c, so that all roundings are the same.
    """
    first, end = np.float32(side * _GRID_SHIFT), np.float32(side + side * _GRID_SHIFT)
    scale = float(end - first) / _GRID
    stretch = max(scale, 1.0)
    support = 2.0 * stretch
    centres = float(first) + (np.arange(_GRID) + 0.5) * scale
    starts = np.maximum((centres - support + 0.5).astype(int), 0)
    ends = np.minimum((centres + support + 0.5).astype(int), side + math.ceil(side * _GRID_SHIFT))
    places = starts[:, None] + np.arange(int((ends - starts).max()))  # (samples, pixels of each)
    values = _bicubic((places - centres[:, None] + 0.5) * (1.0 / stretch)) * (places < ends[:, None])
    values /= np.add.accumulate(values, axis=1)[:, -1:]  # `sum` has another order
    whole = np.trunc(values * _ONE + np.where(values < 0, -0.5, 0.5)) / _ONE
    groups = []
    for at in range(0, _GRID, _GROUP):
        samples = slice(at, at + _GROUP)
        taken = slice(int(starts[samples].min()), int(ends[samples].max()))
        weights = np.zeros((taken.stop - taken.start, _GROUP))
        for column, sample in enumerate(range(at, at + _GROUP)):
            size = int(ends[sample] - starts[sample])
            begin = int(starts[sample]) - taken.start
            weights[begin : begin + size, column] = whole[sample, :size]
        groups.append((taken, samples, weights))
    return tuple(groups)


def _bicubic(distance: np.ndarray) -> np.ndarray:
    """Return Keys' cubic kernel with a = -0.5."""
    x = np.abs(distance)
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
