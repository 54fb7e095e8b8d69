"""Which parts of an image are described: several views of an evaluation image, the content box of a web image.

Crops and rotations change a descriptor most, so the few images of evaluation sets are indexed cropped and rotated as
well. A surround that makes the photo a part of a larger image (border, letterbox, screenshot) is cut off on the
web side, if it is plain.
"""

from typing import NamedTuple

import cv2
import numpy as np

CROP = 0.72  # of each side: every 60 % crop is near one of five such crops
ROTATION_DEGREES = 8.0
VIEWS = (
    "whole",
    "top left",
    "top right",
    "bottom left",
    "bottom right",
    "centre",
    "rotated +8",
    "rotated -8",
    "inverted",
)

_VIEWED_SIDE = 384  # pixels
_WORKING_SIDE = 256
_SAME_COLOUR = 14  # levels: the noise of JPEG around a plain colour
_OTHER_COLOUR = 16
_PLAIN_SHARE = 0.8  # of the outermost pixels have the surround's colour
_ROW_SHARE = 0.45  # of a row inside the box differs from the surround
_COLUMN_SHARE = 0.3
_GAP = 2  # rows or columns like the surround may interrupt the content
_MIN_SIDE_SHARE = 0.2
_AREA_SHARES = (0.12, 0.975)


class Box(NamedTuple):
    """Pixels of an image, right and bottom exclusive."""

    left: int
    top: int
    right: int
    bottom: int


def shrink(image: np.ndarray) -> np.ndarray:
    """Return an image of at most `_VIEWED_SIDE` pixels a side: rotating 12 megapixels would take the most time."""
    scale = _VIEWED_SIDE / max(image.shape[:2])
    if scale >= 1:
        return image
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA)


def evaluation_views(image: np.ndarray) -> list[np.ndarray]:
    """Return the `VIEWS` of an RGB image, in that order."""
    height, width = image.shape[:2]
    tall, wide = max(1, round(height * CROP)), max(1, round(width * CROP))
    below, right = height - tall, width - wide
    corners = ((0, 0), (0, right), (below, 0), (below, right), (below // 2, right // 2))
    crops = [image[top : top + tall, left : left + wide] for top, left in corners]
    return [image, *crops, _rotated(image, ROTATION_DEGREES), _rotated(image, -ROTATION_DEGREES), 255 - image]


def _rotated(image: np.ndarray, degrees: float) -> np.ndarray:
    height, width = image.shape[:2]
    turned = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
    return cv2.warpAffine(np.ascontiguousarray(image), turned, (width, height), flags=cv2.INTER_LINEAR)


def content_box(image: np.ndarray) -> Box | None:
    """Return the part of an RGB image inside a plain surround, or None if there is no such surround.

    The surround may be on all sides, or on two opposite ones. It may contain text and buttons.
    """
    scale = _WORKING_SIDE / max(image.shape[:2])
    working = np.ascontiguousarray(image)
    if scale < 1:
        size = tuple(max(1, round(side * scale)) for side in (image.shape[1], image.shape[0]))
        working = cv2.resize(working, size, interpolation=cv2.INTER_NEAREST)
    ends = np.concatenate([working[:2].reshape(-1, 3), working[-2:].reshape(-1, 3)])
    flanks = np.concatenate([working[:, :2].reshape(-1, 3), working[:, -2:].reshape(-1, 3)])
    for surround in (np.concatenate([ends, flanks]), ends, flanks):
        box = _framed(working, surround)
        if box is not None:
            height, width = (
                side / working_side for side, working_side in zip(image.shape[:2], working.shape[:2], strict=True)
            )
            return Box(*(round(value * (height if at % 2 else width)) for at, value in enumerate(box)))
    return None


def _framed(image: np.ndarray, surround: np.ndarray) -> Box | None:
    colour = np.median(surround, axis=0).astype(np.int16)
    if (np.abs(surround - colour).max(1) <= _SAME_COLOUR).mean() < _PLAIN_SHARE:
        return None
    height, width = image.shape[:2]
    differs = cv2.absdiff(image, np.broadcast_to(colour.astype(np.uint8), image.shape)).max(2) > _OTHER_COLOUR
    top, bottom = _longest_run(differs.mean(1) > _ROW_SHARE)
    if bottom - top < _MIN_SIDE_SHARE * height:
        return None
    left, right = _longest_run(differs[top:bottom].mean(0) > _COLUMN_SHARE)
    area = (right - left) * (bottom - top) / (height * width)
    if right - left < _MIN_SIDE_SHARE * width or not _AREA_SHARES[0] < area < _AREA_SHARES[1]:
        return None
    return Box(left, top, right, bottom)


def _longest_run(on: np.ndarray) -> tuple[int, int]:
    """Return start and end of the longest run of True in which gaps of `_GAP` are allowed; (0, 0) if there is none."""
    places = np.flatnonzero(on)
    if not len(places):
        return 0, 0
    breaks = np.flatnonzero(np.diff(places) > _GAP + 1)
    starts = places[np.concatenate([[0], breaks + 1])]
    ends = places[np.concatenate([breaks, [len(places) - 1]])] + 1
    longest = int(np.argmax(ends - starts))
    return int(starts[longest]), int(ends[longest])
