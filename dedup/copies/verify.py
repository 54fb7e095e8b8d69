"""Verify on the pixels that two pictures are copies: local features, an affine map, agreement where there is texture.

SIFT points are matched both ways with Lowe's ratio test; RANSAC finds the affine map that most of them follow; then the
gradients are compared in small cells all over the overlap. Two pictures of one motif (stop signs, banknotes, the same
shelf a moment later) have many matching points too, but their cells agree less often and less exactly. A mirrored copy
is found by comparing with the mirrored picture.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from dedup.copies.small import best_window, is_small
from dedup.copies.views import EQUALISED, INVERTED, equalised

LONG_SIDE = 160  # pixels, at which features are taken
MAX_POINTS = 160
RATIO = 0.85
MIN_INLIERS = 8
MIN_INLIER_SHARE = 0.5
"""Of the matched points: in repeating patterns (stripes, checks) many points match, and few of them follow one map."""
MIN_PROBABILITY = 0.85

_INLIER_PIXELS = 3.0
_SCALES = (0.15, 6.0)  # of a plausible map, smallest and largest
_MAX_STRETCH = 2.2
_CELL = 10
_EDGE = 3  # pixels at the rim of both pictures that are not compared: alignments are good to one or two
_MIN_TEXTURE = 6.0  # levels, the standard deviation in a cell
_MIN_CELLS = 4
_AGREEMENT = 0.5  # correlation of gradients from which a cell agrees
_MIRRORED = (
    np.arange(128).reshape(4, 4, 8)[::-1, :, -np.arange(8) % 8].ravel()
)  # a SIFT descriptor: rows, columns, angles
_FLAT_GRADIENT = 50.0  # added to the squared gradients of a cell, so that noise does not correlate

# A logistic regression of edited copies against look-alikes, on photos of classes that no recall is measured on
# (docs/copies.md, "Verification"): the share of textured cells that agree, how exactly, and how many they are.
_SHARE_WEIGHT, _EXACTNESS_WEIGHT, _CELLS_WEIGHT, _BIAS = 11.46, 1.79, 2.58, -23.74


class Features(NamedTuple):
    """The local features of an image, or of its mirror image."""

    grey: np.ndarray  # uint8, at most LONG_SIDE on the longer side
    points: np.ndarray  # (n, 2) float32, x and y in `grey`
    descriptors: np.ndarray  # (n, 128) float32, unit length
    scale: float  # pixels of `grey` per pixel of the image
    mirrored: bool


@dataclass(frozen=True)
class Agreement:
    """How far two aligned pictures agree where either has texture."""

    cells: int  # that agree
    share: float  # of the textured cells in the overlap
    exactness: float  # median correlation of the gradients in the cells that agree

    @property
    def probability(self) -> float:
        """Return the probability that they are copies."""
        if self.cells < _MIN_CELLS:
            return 0.0
        exact = -math.log(1.01 - min(1.0, self.exactness))
        score = _SHARE_WEIGHT * self.share + _EXACTNESS_WEIGHT * exact + _CELLS_WEIGHT * math.log1p(self.cells) + _BIAS
        return round(1 / (1 + math.exp(-score)), 4)


@dataclass(frozen=True)
class Alignment:
    """The alignment of a web image with an evaluation image, and how well they agree."""

    inliers: int | None  # points that follow the map; None for small pictures, which have too few
    agreement: float  # share of the textured cells that agree; of small pictures the correlation, -1 to 1
    probability: float  # that the two are copies and not of one motif, as calibrated
    mirrored: bool
    matrix: tuple[float, ...]  # 6 numbers, row by row: web x, y to evaluation x, y (mirrored first), in their pixels

    @property
    def is_copy(self) -> bool:
        """Return whether this is evidence enough."""
        return self.probability >= MIN_PROBABILITY


def features(image: np.ndarray, *, resolution: int | None = None) -> Features:
    """Compute the features of an RGB image; `resolution`: as it looks when shrunk to this many pixels a side."""
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    scale = LONG_SIDE / max(grey.shape)
    size = _size(grey, scale)
    if resolution is not None and resolution < max(grey.shape):
        grey = cv2.resize(grey, _size(grey, resolution / max(grey.shape)), interpolation=cv2.INTER_AREA)
    grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if max(grey.shape) > LONG_SIDE else cv2.INTER_CUBIC)
    points, descriptors = _sift().detectAndCompute(grey, None)
    if descriptors is None:
        return Features(grey, np.empty((0, 2), np.float32), np.empty((0, 128), np.float32), scale, False)
    # RootSIFT (Arandjelovic and Zisserman, CVPR 2012)
    descriptors = np.sqrt(descriptors / (descriptors.sum(1, keepdims=True) + 1e-6))
    return Features(grey, np.array([point.pt for point in points], np.float32), descriptors, scale, False)


def _size(grey: np.ndarray, scale: float) -> tuple[int, int]:
    """Return width and height of a scaled image, at least 8 pixels."""
    width, height = (max(8, round(side * scale)) for side in (grey.shape[1], grey.shape[0]))
    return width, height


def mirrored(one: Features) -> Features:
    """Return the features of the mirror image: a descriptor's rows and angles change places, no pixel is looked at."""
    points = one.points.copy()
    points[:, 0] = one.grey.shape[1] - 1 - points[:, 0]
    grey = np.ascontiguousarray(one.grey[:, ::-1])
    return Features(grey, points, np.ascontiguousarray(one.descriptors[:, _MIRRORED]), one.scale, not one.mirrored)


def seen_resolution(web: np.ndarray) -> int | None:
    """Return the pixels a side at which an evaluation image is compared with a web image; None: all it has."""
    return max(web.shape[:2]) if is_small(web) else None


def evaluation_features(image: np.ndarray, view: int, resolution: int | None) -> list[Features]:
    """Return the features by which an RGB evaluation image is aligned with a web image that is near one of its views.

    Both mirror images are: the descriptor is nearly invariant to mirroring, so the view does not tell which to try. An
    image near the inverted or the equalised view may have these colours. A web image with few pixels has no fine
    texture, so that of the evaluation image must not count.
    """
    pictures = [255 - image] if view == INVERTED else [image, equalised(image)] if view == EQUALISED else [image]
    upright = [features(picture, resolution=resolution) for picture in pictures]
    return [side for one in upright for side in (one, mirrored(one))]


def align(evaluation: np.ndarray, web: np.ndarray) -> Alignment | None:
    """Return the better alignment of two RGB images, unchanged or mirrored; None if neither aligns."""
    if is_small(evaluation):
        return align_small(evaluation, web)
    found = align_features(evaluation_features(evaluation, 0, seen_resolution(web)), features(web))
    return best_alignment(*found)


def best_alignment(*found: Alignment | None) -> Alignment | None:
    """Return the most probable of several alignments of one pair, the first of equal ones."""
    return max(filter(None, found), key=lambda one: one.probability, default=None)


def align_small(evaluation: np.ndarray, web: np.ndarray) -> Alignment:
    """Return the best alignment of an RGB picture that is too small for local features; see small.py."""
    window = best_window(evaluation, web)
    sizes = [(picture.shape[1], picture.shape[0]) for picture in (evaluation, web)]
    return Alignment(None, window.correlation, window.probability, window.mirrored, window.matrix(*sizes))


def align_features(evaluations: Sequence[Features], web: Features) -> list[Alignment | None]:
    """Return the alignment of the web image with each evaluation image; None where no plausible map fits."""
    if not evaluations:
        return []
    # Many small products would wait for the threads of the linear algebra more than they compute.
    cosines = np.concatenate([one.descriptors for one in evaluations]) @ web.descriptors.T
    ends = np.cumsum([len(one.descriptors) for one in evaluations])
    return [_align(one, web, own) for one, own in zip(evaluations, np.split(cosines, ends[:-1]), strict=True)]


def _align(evaluation: Features, web: Features, cosines: np.ndarray) -> Alignment | None:
    pairs = _matches(cosines)
    if len(pairs) < MIN_INLIERS:
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
    if inliers < max(MIN_INLIERS, MIN_INLIER_SHARE * len(pairs)):
        return None
    in_pixels = matrix.copy()
    in_pixels[:, :2] *= web.scale / evaluation.scale
    in_pixels[:, 2] /= evaluation.scale
    agreement = _agreement(evaluation.grey, web.grey, matrix)
    numbers = tuple(round(float(value), 3) for value in in_pixels.flat)
    return Alignment(inliers, agreement.share, agreement.probability, evaluation.mirrored, numbers)


def _sift() -> cv2.Feature2D:
    return cv2.SIFT.create(nfeatures=MAX_POINTS, contrastThreshold=0.02, edgeThreshold=14)


def _matches(cosines: np.ndarray) -> np.ndarray:
    """Return `(n, 2)` rows and columns that are mutual nearest neighbours and pass the ratio test."""
    if min(cosines.shape) < 3:
        return np.empty((0, 2), int)
    nearest = cosines.argmax(1)
    rows = np.arange(len(cosines))
    best = cosines[rows, nearest]
    mutual = cosines.argmax(0)[nearest] == rows
    cosines[rows, nearest] = -1
    second = cosines.max(1)
    clear = (1 - best) < RATIO**2 * (1 - second)  # of unit vectors: the squared distance is 2 - 2 cosines
    chosen = np.flatnonzero(clear & mutual)
    return np.stack([chosen, nearest[chosen]], 1)


def _agreement(target: np.ndarray, source: np.ndarray, matrix: np.ndarray) -> Agreement:
    """Compare the gradients, cell by cell, after the source is laid on the target."""
    size = (target.shape[1], target.shape[0])
    laid = cv2.warpAffine(source, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    a, b = (cv2.GaussianBlur(grey, (0, 0), 1.2) for grey in (target, laid))
    used = _cells(_covered(source, matrix, size)).min(1) > 250
    textured = used & (np.maximum(_cells(a).std(1), _cells(b).std(1)) > _MIN_TEXTURE)
    if not textured.any():
        return Agreement(0, 0.0, 0.0)
    gradients_a, gradients_b = (_gradients(grey)[textured] for grey in (a, b))
    lengths = np.sqrt(np.square(gradients_a).sum(1) * np.square(gradients_b).sum(1))
    values = (gradients_a * gradients_b).sum(1) / (lengths + _FLAT_GRADIENT)
    agree = values > _AGREEMENT
    exactness = float(np.median(values[agree])) if agree.any() else 0.0
    return Agreement(int(agree.sum()), round(float(agree.mean()), 3), round(exactness, 3))


def _covered(source: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return 255 where the source, less its rim, covers the target."""
    rim = math.ceil(_EDGE / abs(np.linalg.det(matrix[:, :2])) ** 0.5)
    inner = np.zeros_like(source)
    inner[rim:-rim, rim:-rim] = 255
    return cv2.warpAffine(inner, matrix, size, flags=cv2.INTER_LINEAR)


def _gradients(grey: np.ndarray) -> np.ndarray:
    """Return the gradients of each cell, `(n, 2 * _CELL ** 2)`."""
    floats = grey.astype(np.float32)
    planes = [cv2.Sobel(floats, cv2.CV_32F, 1, 0) / 4, cv2.Sobel(floats, cv2.CV_32F, 0, 1) / 4]
    return np.concatenate([_cells(plane) for plane in planes], axis=1)


def _cells(plane: np.ndarray) -> np.ndarray:
    """Cut what lies inside the rim into whole cells, `(n, _CELL ** 2)` float32."""
    inner = plane[_EDGE:-_EDGE, _EDGE:-_EDGE]
    rows, columns = inner.shape[0] // _CELL, inner.shape[1] // _CELL
    cells = inner[: rows * _CELL, : columns * _CELL].reshape(rows, _CELL, columns, _CELL).swapaxes(1, 2)
    return cells.reshape(rows * columns, _CELL * _CELL).astype(np.float32)
