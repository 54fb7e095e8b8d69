"""Verify pictures too small for local features (CIFAR has 32 pixels): the best correlation over scale and place.

Either picture, a little cropped, is laid on the other as a window: at eight scales, five aspects, both mirror images
and every place. Low frequencies are taken out first: sky above and ground below is no evidence. Nor is one horizon,
which correlates with any other: in copies the gradients agree across it and along it.
"""

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import cv2
import numpy as np

SMALL_SIDE = 64
"""Pictures whose longer side is below this have too few local features."""

_SIDE = 32  # pixels, at which pictures are compared
_CROP = 2  # pixels of the rim of the picture that is laid on the other
_SCALES = (0.55, 0.62, 0.7, 0.78, 0.86, 0.92, 0.96, 1.0)
_ASPECTS = (0.8, 0.9, 1.0, 1.11, 1.25)
_MIN_WINDOW = 14  # pixels
_MIN_TEXTURE = 2.0  # levels, the standard deviation without low frequencies
_ENOUGH = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 1e-4)
_EVERYWHERE = np.full((_SIDE, _SIDE), 255, np.uint8)
_FARTHEST = 4  # pixels that a corner moves when a window is refined: its scales are 8 % apart
_SLOPE, _MIDDLE = 50.0, 0.82  # of the probability over correlation times gradients, see docs/copies.md


@dataclass(frozen=True)
class Window:
    """Where one picture lies on the other, as fractions of its sides."""

    correlation: float
    mirrored: bool
    web_on_evaluation: bool  # else the evaluation picture lies on the web picture
    left: float
    top: float
    width: float
    height: float
    gradients: float = 0.0  # the lesser correlation of the two directions

    @property
    def probability(self) -> float:
        """Return the probability that the two are copies."""
        agreement = max(0.0, self.correlation) * max(0.0, self.gradients)
        return round(1 / (1 + math.exp(-_SLOPE * (agreement - _MIDDLE))), 4)

    def matrix(self, evaluation: tuple[int, int], web: tuple[int, int]) -> tuple[float, ...]:
        """Return the map from web to evaluation pixels (mirrored first), of pictures of these (width, height)."""
        if self.web_on_evaluation:
            wide, tall, left, top = self.width, self.height, self.left, self.top
        else:
            wide, tall = 1 / self.width, 1 / self.height
            left, top = -self.left * wide, -self.top * tall
        numbers = (wide * evaluation[0] / web[0], 0.0, left * evaluation[0])
        below = (0.0, tall * evaluation[1] / web[1], top * evaluation[1])
        return tuple(round(number, 3) for number in (*numbers, *below))


def is_small(picture: np.ndarray) -> bool:
    """Return whether a picture is too small for local features."""
    return max(picture.shape[:2]) < SMALL_SIDE


def best_window(evaluation: np.ndarray, web: np.ndarray) -> Window:
    """Lay two RGB pictures on each other in the best way."""
    upright, laid = _high_passed(evaluation), _high_passed(web)
    best = max(_windows(upright, laid), key=lambda window: window.correlation)
    return _refined(upright, laid, best) if best.correlation > 0 else best


def _windows(upright: np.ndarray, laid: np.ndarray) -> Iterator[Window]:
    if min(upright.std(), laid.std()) < _MIN_TEXTURE:  # flat pictures correlate with anything
        yield Window(0.0, False, True, 0.0, 0.0, 1.0, 1.0)
        return
    for mirrored in (False, True):
        target = np.ascontiguousarray(upright[:, ::-1]) if mirrored else upright
        for web_on_evaluation in (True, False):
            above, below = (laid, target) if web_on_evaluation else (target, laid)
            for correlation, (left, top, width, height) in _placed(above, below):
                yield Window(correlation, mirrored, web_on_evaluation, left, top, width, height)


def _refined(upright: np.ndarray, laid: np.ndarray, window: Window) -> Window:
    """Move the window by fractions of a pixel, turn it a little, and return it with the correlations there."""
    target = np.ascontiguousarray(upright[:, ::-1]) if window.mirrored else upright
    above, below = (laid, target) if window.web_on_evaluation else (target, laid)
    wide, tall = 1 / window.width, 1 / window.height
    left, top = 0.5 - _SIDE * window.left, 0.5 - _SIDE * window.top
    placed = np.array([[wide, 0, left * wide - 0.5], [0, tall, top * tall - 0.5]], np.float32)  # below to above
    with suppress(cv2.error):  # it does not converge
        _, moved = cv2.findTransformECC(below, above, placed.copy(), cv2.MOTION_AFFINE, _ENOUGH, _EVERYWHERE, 1)
        corners = np.array([(0, 0, 1), (0, _SIDE, 1), (_SIDE, 0, 1), (_SIDE, _SIDE, 1)]).T
        if np.abs((moved - placed) @ corners).max() < _FARTHEST * max(wide, tall):
            placed = np.asarray(moved, np.float32)
    inner = np.pad(np.ones((_SIDE - 2 * _CROP,) * 2, np.float32), _CROP)
    both = np.zeros((_SIDE, _SIDE), bool)
    both[1:-1, 1:-1] = _warped(inner, placed)[1:-1, 1:-1] > 0.99
    above = _warped(above, placed)
    pairs = [[cv2.Sobel(one, cv2.CV_32F, *way)[both] for one in (below, above)] for way in ((1, 0), (0, 1))]
    levels = [one[both] - one[both].mean() for one in (below, above)] if both.any() else [np.zeros(1)] * 2
    return replace(window, correlation=_correlation(*levels), gradients=min(_correlation(*pair) for pair in pairs))


def _warped(picture: np.ndarray, below_to_above: np.ndarray) -> np.ndarray:
    way = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(picture, below_to_above, (_SIDE, _SIDE), flags=way)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return round(float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum() + 1e-6)), 3)


def _high_passed(picture: np.ndarray) -> np.ndarray:
    smaller = picture.shape[0] * picture.shape[1] > _SIDE * _SIDE
    way = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
    square = cv2.resize(np.ascontiguousarray(picture), (_SIDE, _SIDE), interpolation=way)
    grey = cv2.GaussianBlur(cv2.cvtColor(square, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), 0.8)
    return np.asarray(grey - cv2.GaussianBlur(grey, (0, 0), 4), np.float32)


def _placed(above: np.ndarray, below: np.ndarray) -> Iterator[tuple[float, tuple[float, float, float, float]]]:
    """Yield the best place at every size: its correlation, and left, top, width and height of the whole of `above`."""
    core = above[_CROP:-_CROP, _CROP:-_CROP]
    grown = _SIDE / (_SIDE - 2 * _CROP)
    for scale in _SCALES:
        for aspect in _ASPECTS:
            width, height = round(_SIDE * scale * aspect**0.5 / grown), round(_SIDE * scale / aspect**0.5 / grown)
            if max(width, height) > _SIDE or min(width, height) < _MIN_WINDOW:
                continue
            window = cv2.resize(core, (width, height), interpolation=cv2.INTER_AREA)
            values = cv2.matchTemplate(below, window, cv2.TM_CCOEFF_NORMED)
            _, best, _, (left, top) = cv2.minMaxLoc(values)
            whole = (width * grown, height * grown)
            corner = (left - (whole[0] - width) / 2, top - (whole[1] - height) / 2)
            yield round(best, 3), tuple(number / _SIDE for number in (*corner, *whole))
