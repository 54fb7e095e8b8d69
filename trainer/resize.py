"""Resize crops on the device: Pillow's antialiased bicubic filter as two matrix products per image.

The loader sends each crop as it was decoded, in a corner of a square of bytes, with the box to take from it. The
result equals `PIL.Image.resize(..., BICUBIC, box=...)` but for the rounding of its fixed-point weights: at most one
of 255 levels. Both round to whole levels between the horizontal and the vertical pass.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from trainer.errors import TrainerError, one_line

MAX_ENLARGEMENT = 2
"""A crop of more than this times the size, such as of a large PNG, is resized by the loader."""
SUPPORT = 2.0  # of the bicubic filter, in pixels of the coarser of both grids
_AT_A_TIME = 256  # images; 256 of 3 x 288 x 288 take 255 MB as float32


class Crop(NamedTuple):
    """A part of an image and the square box to take from it, in its pixels."""

    pixels: NDArray[np.uint8]  # (height, width, 3)
    left: float
    top: float
    side: float


def cut(image: NDArray[np.uint8], left: float, top: float, side: float, size: int) -> Crop:
    """Return the part of an image that the filter needs to resize a box to `size`; resized, if it is too large."""
    margin = SUPPORT * max(1.0, side / size) + 1
    rows, columns = (
        slice(max(0, int(start - margin)), min(length, int(np.ceil(start + side + margin))))
        for start, length in ((top, image.shape[0]), (left, image.shape[1]))
    )
    part = image[rows, columns]
    if max(part.shape[:2]) > MAX_ENLARGEMENT * size:
        return Crop(resized(Image.fromarray(image), left, top, side, size), 0.0, 0.0, float(size))
    return Crop(part, left - columns.start, top - rows.start, side)


def resized(image: Image.Image, left: float, top: float, side: float, size: int) -> NDArray[np.uint8]:
    """Resize a box of an image with Pillow, (size, size, 3)."""
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))


class Packing:
    """Crops in one tensor, each copied there as soon as it is cut: its image's memory then serves the next one.

    `edge`: of the squares, as far as is known before; `step`: it is a multiple of that, so that most chunks have one
    shape. `shared`: the tensor lies in memory that another process gets without a copy.

    Raises:
        TrainerError: too little shared memory; so do `add` and `tensors`.
    """

    def __init__(self, count: int, edge: int = 0, *, step: int = 1, shared: bool = False) -> None:
        self._step, self._shared = step, shared
        self._images = self._empty(count, edge)
        self._boxes = np.empty((count, 5), np.float32)
        self._used = self._largest = 0

    def add(self, crop: Crop) -> None:
        """Append a crop; one larger than all before may enlarge the tensor."""
        height, width = crop.pixels.shape[:2]
        self._largest = max(self._largest, height, width)
        if self._largest > self._images.shape[1]:
            self._resize_edge()
        self._images.numpy()[self._used, :height, :width] = crop.pixels
        self._boxes[self._used] = crop.left, crop.top, crop.side, width, height
        self._used += 1

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Return (n, P, P, 3) uint8, and (n, 5) float32: left, top, side, width and height of each.

        P follows from the crops, whatever `edge` was. Bytes outside a crop are arbitrary.
        """
        if self._images.shape[1] != self._wanted:
            self._resize_edge()
        return self._images, torch.from_numpy(self._boxes)

    @property
    def _wanted(self) -> int:
        return -(-self._largest // self._step) * self._step

    def _resize_edge(self) -> None:
        kept = min(self._images.shape[1], self._wanted)
        before, self._images = self._images, self._empty(len(self._images), self._wanted)
        self._images[: self._used, :kept, :kept] = before[: self._used, :kept, :kept]

    def _empty(self, count: int, edge: int) -> Tensor:
        shape = (count, edge, edge, 3)
        if not self._shared:
            return torch.empty(shape, dtype=torch.uint8)
        try:
            storage = torch.UntypedStorage._new_shared(math.prod(shape))  # as torch collates
        except RuntimeError as error:  # no room in /dev/shm, or too many open files
            raise TrainerError(
                f"a loader process has no shared memory for {count} images ({one_line(error).rpartition(': ')[2]}): "
                "enlarge /dev/shm, or lower train.workers or train.prefetch, and run again to resume"
            ) from error
        return torch.empty(0, dtype=torch.uint8).set_(storage, 0, shape)  # type: ignore[call-overload]


def packed(crops: list[Crop]) -> tuple[Tensor, Tensor]:
    """Return crops as `Packing` does."""
    packing = Packing(len(crops))
    for crop in crops:
        packing.add(crop)
    return packing.tensors()


def resize(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Resize what `packed` returned, on its device: (n, size, size, 3) uint8."""
    parts = zip(images.split(_AT_A_TIME), boxes.split(_AT_A_TIME), strict=True)
    done = [_resize(part, box, size) for part, box in parts]
    return torch.cat(done).permute(0, 2, 3, 1)


def _resize(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    left, top, side, width, height = boxes.unbind(1)
    edge = images.shape[1]
    pixels = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    across = _weights(left, side, width, size, edge).unsqueeze(1)  # (n, 1, size, P)
    down = _weights(top, side, height, size, edge).unsqueeze(1)
    narrow = (pixels @ across.transpose(2, 3)).round_().clamp_(0, 255)  # (n, 3, P, size)
    return (down @ narrow).round_().clamp_(0, 255).to(torch.uint8)


def _weights(start: Tensor, side: Tensor, length: Tensor, size: int, edge: int) -> Tensor:
    """Return by how much each of `edge` input pixels counts in each of `size` output pixels, (n, size, edge).

    As `precompute_coeffs` of Pillow's Resample.c: pixels beyond the image do not count, and the others sum to 1.
    """
    device = start.device
    scale = (side / size).view(-1, 1, 1)
    centre = start.view(-1, 1, 1) + (torch.arange(size, device=device).view(1, -1, 1) + 0.5) * scale
    pixel = torch.arange(edge, device=device).view(1, 1, -1)
    distance = (pixel + 0.5 - centre).abs() / scale.clamp(min=1.0)
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = torch.where(distance < 1, near, torch.where(distance < SUPPORT, far, 0.0))
    weights = weights.masked_fill(pixel >= length.view(-1, 1, 1), 0.0)
    return weights / weights.sum(dim=2, keepdim=True)
