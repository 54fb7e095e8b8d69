"""The pictures inside a web image, which are described besides the whole of it.

A picture with a plain surround (border, letterbox, screenshot) has a content box. Without one, straight edges that are
sharper than what lies around them are looked for: collages and pictures on pictures are made of rectangles.
"""

from itertools import combinations
from typing import NamedTuple

import cv2
import numpy as np

_WORKING_SIDE = 256
_SAME_COLOUR = 14  # levels: the noise of JPEG around a plain colour
_OTHER_COLOUR = 16
_PLAIN_SHARE = 0.8  # of the outermost pixels have the surround's colour
_ROW_SHARE = 0.45  # of a row inside the box differs from the surround
_COLUMN_SHARE = 0.3
_GAP = 2  # rows or columns like the surround may interrupt the content
_MIN_SIDE_SHARE = 0.2
_AREA_SHARES = (0.12, 0.975)

_MOST_BOXES = 4
_MOST_EDGES = 4  # straight edges of one direction that are looked at
_SHARP_LEVELS = 14  # the least difference across an edge
_SHARP_RATIO = 2.0  # between the difference across an edge and the mean of those around it
_AROUND = 9  # rows or columns
_EDGE_SHARE = 0.3  # of the image's side that an edge is sharp along
_SIDE_SHARE = 0.6  # of each side of a rectangle that is sharp
_MIN_RECTANGLE_SIDE_SHARE = 0.3
_APART = 4  # rows or columns between two edges, and between an edge and the image's side
_MIN_WORKING_SIDE = 32


class Box(NamedTuple):
    """Pixels of an image, right and bottom exclusive."""

    left: int
    top: int
    right: int
    bottom: int


def inner_boxes(image: np.ndarray) -> list[Box]:
    """Return the parts of an RGB image that may be pictures of their own: its content box, or else rectangles."""
    box = content_box(image)
    return [box] if box else rectangles(image)


def content_box(image: np.ndarray) -> Box | None:
    """Return the part of an RGB image inside a plain surround, or None without a plain surround.

    The surround may be on all sides, or on two opposite ones. It may contain text and buttons.
    """
    working = _shrunk(image)
    ends = np.concatenate([working[:2].reshape(-1, 3), working[-2:].reshape(-1, 3)])
    flanks = np.concatenate([working[:, :2].reshape(-1, 3), working[:, -2:].reshape(-1, 3)])
    for surround in (np.concatenate([ends, flanks]), ends, flanks):
        box = _framed(working, surround)
        if box is not None:
            return _in_pixels(box, image, working)
    return None


def rectangles(image: np.ndarray) -> list[Box]:
    """Return the rectangles in an RGB image whose sides are sharp straight edges or the image's own, sharpest first.

    A collage of two pictures has two of them, a picture on another one. A horizon may look like an edge too: the
    parts are described for nothing.
    """
    working = _shrunk(image)
    if min(working.shape[:2]) < _MIN_WORKING_SIDE:
        return []
    rows, columns = _sharp(working), _sharp(np.ascontiguousarray(working.swapaxes(0, 1)))
    found = []
    for top, bottom in combinations([0, *_edges(rows), len(rows)], 2):
        for left, right in combinations([0, *_edges(columns), len(columns)], 2):
            box = Box(left, top, right, bottom)
            sharpness = _sharpness(box, rows, columns)
            if sharpness >= _SIDE_SHARE:
                found.append((-sharpness, box))
    return [_in_pixels(box, image, working) for _, box in sorted(found)[:_MOST_BOXES]]


def _sharp(image: np.ndarray) -> np.ndarray:
    """Return, `(height, width)` bool, which pixels differ from those above more than those around do."""
    channels = cv2.split(cv2.absdiff(image[1:], image[:-1]))
    across = cv2.max(cv2.max(channels[0], channels[1]), channels[2])
    others = (_AROUND * cv2.blur(across, (1, _AROUND)).astype(np.int16) - across) // (_AROUND - 1)
    sharp = (across > _SHARP_LEVELS) & (across > _SHARP_RATIO * others)
    return np.concatenate([np.zeros((1, image.shape[1]), bool), sharp])


def _edges(sharp: np.ndarray) -> list[int]:
    """Return the rows that are sharp along much of them, the sharpest ones, in rising order."""
    shares = sharp.mean(1)
    shares[:_APART] = shares[-_APART:] = 0
    kept: list[int] = []
    for row in np.argsort(-shares, kind="stable")[: _APART * _MOST_EDGES].tolist():
        if shares[row] >= _EDGE_SHARE and len(kept) < _MOST_EDGES and all(abs(row - one) > _APART for one in kept):
            kept.append(row)
    return sorted(kept)


def _sharpness(box: Box, rows: np.ndarray, columns: np.ndarray) -> float:
    """Return the sharp share of a rectangle's least sharp side, but for sides of the image; 0 if it is too small."""
    height, width = len(rows), len(columns)
    sides = (box.right - box.left) / width, (box.bottom - box.top) / height
    if min(sides) < _MIN_RECTANGLE_SIDE_SHARE or sides == (1, 1):
        return 0.0
    across = [rows[row, box.left : box.right].mean() for row in (box.top, box.bottom) if 0 < row < height]
    along = [columns[column, box.top : box.bottom].mean() for column in (box.left, box.right) if 0 < column < width]
    return float(min(across + along))


def _shrunk(image: np.ndarray) -> np.ndarray:
    scale = _WORKING_SIDE / max(image.shape[:2])
    working = np.ascontiguousarray(image)
    if scale < 1:
        size = tuple(max(1, round(side * scale)) for side in (image.shape[1], image.shape[0]))
        working = cv2.resize(working, size, interpolation=cv2.INTER_NEAREST)
    return working


def _in_pixels(box: Box, image: np.ndarray, working: np.ndarray) -> Box:
    """Return a box of the working image in pixels of the image."""
    height, width = (side / small for side, small in zip(image.shape[:2], working.shape[:2], strict=True))
    return Box(*(round(value * (height if at % 2 else width)) for at, value in enumerate(box)))


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
