"""The views of an evaluation image that are described.

Crops and rotations change a descriptor most, so the few images of evaluation sets are indexed cropped and rotated as
well. boxes.py has the parts of a web image that are described.
"""

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
    "equalised",
)
INVERTED, EQUALISED = VIEWS.index("inverted"), VIEWS.index("equalised")

_VIEWED_SIDE = 384  # pixels


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
    turned = [_rotated(image, degrees) for degrees in (ROTATION_DEGREES, -ROTATION_DEGREES)]
    return [image, *crops, *turned, 255 - image, equalised(image)]


def equalised(image: np.ndarray) -> np.ndarray:
    """Return an RGB image with the histogram of each channel equalised, as photo editors do to improve the contrast."""
    return cv2.merge([cv2.equalizeHist(channel) for channel in cv2.split(np.ascontiguousarray(image))])


def _rotated(image: np.ndarray, degrees: float) -> np.ndarray:
    height, width = image.shape[:2]
    turned = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
    return cv2.warpAffine(np.ascontiguousarray(image), turned, (width, height), flags=cv2.INTER_LINEAR)
