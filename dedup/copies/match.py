"""Find the web images that are edited copies of evaluation images: candidates by descriptor, verification on pixels.

A candidate with a cosine of at least `Card.sure` is a copy; one of at least `Card.propose` is a copy if its pixels
align. The pixels of both are compared, so that the report can name the edit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np

from dedup.copies.detector import Detector
from dedup.copies.search import VectorIndex
from dedup.copies.small import is_small
from dedup.copies.transform import Transform
from dedup.copies.verify import MIN_PROBABILITY, Alignment, Features, align_features, align_small, features, mirrored
from dedup.copies.views import VIEWS, Box, content_box, evaluation_views, shrink

MOST_CANDIDATES = 3
"""Evaluation images that are compared with one web image, at most."""

_INVERTED = VIEWS.index("inverted")
_FEATURES_KEPT = 2_048  # of evaluation images in memory, 90 kB each


@dataclass(frozen=True)
class Copy:
    """A web image and the evaluation example that it shows, both by row number."""

    example: int
    image: int
    cosine: float
    alignment: Alignment | None  # None: the descriptors alone are near enough
    transform: Transform | None
    inverted: bool

    def edit(self) -> str:
        """Return the edit in words; empty if nothing was moved, or the edit is unknown."""
        words = self.transform.words() if self.transform else ""
        return ", ".join(filter(None, ["inverted" if self.inverted else "", words]))


@dataclass(frozen=True)
class Described:
    """The vectors of web images: one each, and one more for the content box of some."""

    whole: np.ndarray  # (n, dimensions) int8
    boxes: dict[int, Box]  # image number: its content box
    inner: np.ndarray  # (len(boxes), dimensions) int8, in the order of `boxes`

    @classmethod
    def of(cls, detector: Detector, images: Sequence[np.ndarray]) -> Self:
        """Describe web images."""
        boxes = {number: box for number, image in enumerate(images) if (box := content_box(image))}
        inside = [images[number][box.top : box.bottom, box.left : box.right] for number, box in boxes.items()]
        return cls(detector.describe(images), boxes, detector.describe(inside))


def describe_views(detector: Detector, images: Sequence[np.ndarray]) -> np.ndarray:
    """Return the vectors of all views of evaluation images, `(n * len(VIEWS), dimensions)` int8."""
    return detector.describe([view for image in images for view in evaluation_views(shrink(image))])


class CopyFinder:
    """An evaluation set to compare images with; `pixels(n)` returns its example n as RGB, at any size."""

    def __init__(
        self,
        detector: Detector,
        index: VectorIndex,
        pixels: Callable[[int], np.ndarray],
        min_probability: float = MIN_PROBABILITY,
    ) -> None:
        self.detector, self.index, self._pixels, self._min_probability = detector, index, pixels, min_probability
        self._features = lru_cache(_FEATURES_KEPT)(self._take_features)

    def find(self, web: Described, pixels: Callable[[int], np.ndarray]) -> list[Copy]:
        """Return the copies among web images, by example, then image; `pixels(n)` returns web image n as RGB."""
        best: dict[int, dict[int, tuple[int, int]]] = {}  # image -> example -> (score, view)
        threshold = self.detector.score(self.detector.card.propose)
        for numbers, vectors in ((list(range(len(web.whole))), web.whole), (list(web.boxes), web.inner)):
            hits = self.index.search(vectors, threshold, MOST_CANDIDATES)
            for query, row, view, score in zip(*(column.tolist() for column in hits), strict=True):
                candidates = best.setdefault(numbers[query], {})
                candidates[row] = max(candidates.get(row, (score, view)), (score, view))
        copies = []
        for image, candidates in best.items():
            nearest = sorted(candidates.items(), key=lambda one: (-one[1][0], one[0]))[:MOST_CANDIDATES]
            copies += self._verify(image, nearest, pixels(image))
        return sorted(copies, key=lambda copy: (copy.example, copy.image))

    def _verify(self, image: int, candidates: list[tuple[int, tuple[int, int]]], rgb: np.ndarray) -> list[Copy]:
        web = features(rgb)
        copies = []
        for row, (score, view) in candidates:
            cosine, inverted = self.detector.cosine(score), view == _INVERTED
            known = self._pixels(row)
            if is_small(known):
                window = align_small(255 - known if inverted else known, rgb)
                alignment = window if window.probability >= self._min_probability else None
            else:
                alignment = self._align(row, web, inverted)
            if alignment is None and cosine < self.detector.card.sure:
                continue
            size = (rgb.shape[1], rgb.shape[0])
            transform = None if alignment is None else Transform.of(alignment, self._size(row), size)
            copies.append(Copy(row, image, round(cosine, 4), alignment, transform, inverted))
        return copies

    def _align(self, row: int, web: Features, inverted: bool) -> Alignment | None:
        """Return the better alignment of the two mirror images that proves a copy, or None."""
        found = [align_features(self._features(row, flip, inverted), web, mirrored=flip) for flip in (False, True)]
        proofs = [one for one in found if one is not None and one.probability >= self._min_probability]
        return max(proofs, key=lambda one: one.probability, default=None)

    def _size(self, row: int) -> tuple[int, int]:
        height, width = self._pixels(row).shape[:2]
        return width, height

    def _take_features(self, row: int, flip: bool, inverted: bool) -> Features:
        rgb = self._pixels(row)
        rgb = 255 - rgb if inverted else rgb
        return features(mirrored(rgb) if flip else rgb)
