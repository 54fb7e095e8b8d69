"""Verify on the pixels that two images are copies: local features, an affine map, correlation where there is texture.

SIFT points are matched both ways with Lowe's ratio test; RANSAC finds the affine map that most of them follow; then the
greys are compared in cells of 16 pixels. The median cell decides, so that text or a sticker on one of the two does not
matter. A mirrored copy is found by comparing with the mirrored image.
"""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

LONG_SIDE = 160  # pixels, at which features are taken
MAX_POINTS = 160
RATIO = 0.85
MIN_INLIERS = 5
MIN_CORRELATION = 0.5
FEW_INLIERS = 4  # are enough with
HIGH_CORRELATION = 0.65

_INLIER_PIXELS = 3.0
_SCALES = (0.15, 6.0)  # of a plausible map, smallest and largest
_MAX_STRETCH = 2.2
_CELL = 16
_MIN_TEXTURE = 6.0  # levels, the standard deviation in a cell
_MIN_CELLS = 3


class Features(NamedTuple):
    """The local features of an image."""

    grey: np.ndarray  # uint8, at most LONG_SIDE on the longer side
    points: np.ndarray  # (n, 2) float32, x and y in `grey`
    descriptors: np.ndarray  # (n, 128) float32, unit length
    scale: float  # pixels of `grey` per pixel of the image


@dataclass(frozen=True)
class Alignment:
    """The alignment of a web image with an evaluation image, and how well they agree."""

    inliers: int
    correlation: float  # median over textured cells, -1 to 1
    mirrored: bool
    matrix: tuple[float, ...]  # 6 numbers, row by row: web x, y to evaluation x, y (mirrored first), in their pixels

    @property
    def is_copy(self) -> bool:
        """Return whether the evidence is sufficient."""
        if self.inliers >= MIN_INLIERS and self.correlation > MIN_CORRELATION:
            return True
        return self.inliers >= FEW_INLIERS and self.correlation > HIGH_CORRELATION


def features(image: np.ndarray) -> Features:
    """Compute the features of an RGB image."""
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    scale = LONG_SIDE / max(grey.shape)
    size = tuple(max(8, round(side * scale)) for side in (grey.shape[1], grey.shape[0]))
    grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    points, descriptors = _sift().detectAndCompute(grey, None)
    if descriptors is None:
        return Features(grey, np.empty((0, 2), np.float32), np.empty((0, 128), np.float32), scale)
    # RootSIFT (Arandjelovic and Zisserman, CVPR 2012)
    descriptors = np.sqrt(descriptors / (descriptors.sum(1, keepdims=True) + 1e-6))
    return Features(grey, np.array([point.pt for point in points], np.float32), descriptors, scale)


def mirrored(image: np.ndarray) -> np.ndarray:
    """Return the mirrored image."""
    return np.ascontiguousarray(image[:, ::-1])


def align(evaluation: np.ndarray, web: np.ndarray) -> Alignment | None:
    """Return the better alignment of two RGB images, unchanged or mirrored; None if neither aligns.

    The descriptor is nearly invariant to mirroring, so its best view does not tell which of the two to try.
    """
    web_features = features(web)
    found = [
        align_features(features(mirrored(evaluation) if flip else evaluation), web_features, mirrored=flip)
        for flip in (False, True)
    ]
    return max(filter(None, found), key=lambda one: (one.is_copy, one.inliers, one.correlation), default=None)


def align_features(evaluation: Features, web: Features, *, mirrored: bool) -> Alignment | None:
    """Return the alignment of the web image with the evaluation image; None if no plausible map fits."""
    pairs = _matches(evaluation.descriptors, web.descriptors)
    if len(pairs) < FEW_INLIERS:
        return None
    targets, sources = evaluation.points[pairs[:, 0]], web.points[pairs[:, 1]]
    matrix, inside = cv2.estimateAffine2D(
        sources, targets, method=cv2.RANSAC, ransacReprojThreshold=_INLIER_PIXELS, maxIters=300, confidence=0.99
    )
    if matrix is None:
        return None
    large, small = np.linalg.svd(matrix[:, :2], compute_uv=False)
    if small < _SCALES[0] or large > _SCALES[1] or large / small > _MAX_STRETCH or np.linalg.det(matrix[:, :2]) < 0:
        return None
    inliers = int(inside.sum())
    if inliers < FEW_INLIERS:
        return None
    in_pixels = matrix.copy()
    in_pixels[:, :2] *= web.scale / evaluation.scale
    in_pixels[:, 2] /= evaluation.scale
    correlation = _correlation(evaluation.grey, web.grey, matrix)
    return Alignment(
        inliers, round(correlation, 3), mirrored, tuple(round(float(value), 3) for value in in_pixels.flat)
    )


def _sift() -> cv2.Feature2D:
    return cv2.SIFT.create(nfeatures=MAX_POINTS, contrastThreshold=0.02, edgeThreshold=14)


def _matches(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return `(n, 2)` rows of a and b that are mutual nearest neighbours and pass the ratio test."""
    if min(len(a), len(b)) < 3:
        return np.empty((0, 2), int)
    cosines = a @ b.T  # of unit vectors: the squared distance is 2 - 2 cosines
    nearest = cosines.argmax(1)
    rows = np.arange(len(a))
    best = cosines[rows, nearest]
    second = np.partition(cosines, -2, axis=1)[:, -2]
    clear = (1 - best) < RATIO**2 * (1 - second)
    mutual = cosines.argmax(0)[nearest] == rows
    chosen = np.flatnonzero(clear & mutual)
    return np.stack([chosen, nearest[chosen]], 1)


def _correlation(target: np.ndarray, source: np.ndarray, matrix: np.ndarray) -> float:
    """Return the median correlation of the textured cells, after mapping the source onto the target."""
    size = (target.shape[1], target.shape[0])
    laid = cv2.warpAffine(source, matrix, size, flags=cv2.INTER_LINEAR)
    covered = cv2.warpAffine(np.full_like(source, 255), matrix, size, flags=cv2.INTER_LINEAR)
    a, b = (_cells(cv2.GaussianBlur(grey, (0, 0), 1.2)) for grey in (target, laid))
    used = _cells(covered).min(1) > 250
    a, b = a[used], b[used]
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    deviations_a, deviations_b = a.std(1), b.std(1)
    textured = np.maximum(deviations_a, deviations_b) > _MIN_TEXTURE
    if textured.sum() < _MIN_CELLS:
        return 0.0
    values = (a * b).mean(1) / (deviations_a * deviations_b + 4)
    return float(np.median(values[textured]))


def _cells(grey: np.ndarray) -> np.ndarray:
    """Cut into whole cells, `(n, _CELL ** 2)` float32."""
    rows, columns = grey.shape[0] // _CELL, grey.shape[1] // _CELL
    cells = grey[: rows * _CELL, : columns * _CELL].reshape(rows, _CELL, columns, _CELL).swapaxes(1, 2)
    return cells.reshape(rows * columns, _CELL * _CELL).astype(np.float32)
