"""Find the web pictures that are edited copies of evaluation pictures: candidates by descriptor, proof on the pixels.

A candidate whose descriptors are as near as `Card.sure` is a copy; one above `Card.propose` is looked at, and counts if
its pixels align. Both are looked at, so that the report can say what was done.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import cv2
import numpy as np

from dedup.copies.detector import Detector
from dedup.copies.search import VectorIndex
from dedup.copies.transform import Transform
from dedup.copies.verify import Alignment, Features, align_features, features, mirrored
from dedup.copies.views import VIEWS, Box, content_box, evaluation_views

MOST_CANDIDATES = 3
"""Evaluation pictures that are looked at for one web picture."""

_VIEWED_SIDE = 384  # pixels
_INVERTED = VIEWS.index("inverted")
_FEATURES_KEPT = 2_048  # of evaluation pictures, 90 kB each


@dataclass(frozen=True)
class Copy:
    """A web picture and the evaluation picture that it shows, both by number."""

    picture: int
    image: int
    cosine: float
    alignment: Alignment | None  # None: the descriptors alone are near enough
    transform: Transform | None
    inverted: bool

    def edit(self) -> str:
        """Return what was done, in words; empty if the place of everything is as it was, or not known."""
        words = self.transform.words() if self.transform else ""
        return ", ".join(filter(None, ["inverted" if self.inverted else "", words]))


@dataclass(frozen=True)
class Described:
    """The vectors of web pictures: one each, and one more of the content box of some."""

    whole: np.ndarray  # (n, dimensions) int8
    boxes: dict[int, Box]  # image number: its content box
    inner: np.ndarray  # (len(boxes), dimensions) int8, in the order of `boxes`

    @classmethod
    def of(cls, detector: Detector, pictures: Sequence[np.ndarray]) -> Self:
        """Describe web pictures."""
        found = {number: box for number, picture in enumerate(pictures) if (box := content_box(picture))}
        inside = [pictures[number][box.top : box.bottom, box.left : box.right] for number, box in found.items()]
        return cls(detector.describe(pictures), found, detector.describe(inside))


def describe_views(detector: Detector, pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Return the vectors of all views of evaluation pictures, `(n * len(VIEWS), dimensions)` int8."""
    return detector.describe([view for picture in pictures for view in evaluation_views(_shrunk(picture))])


def _shrunk(picture: np.ndarray) -> np.ndarray:
    """Return a picture no larger than need be: rotating 12 megapixels would take longer than all else."""
    scale = _VIEWED_SIDE / max(picture.shape[:2])
    if scale >= 1:
        return picture
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    return cv2.resize(np.ascontiguousarray(picture), size, interpolation=cv2.INTER_AREA)


class CopyFinder:
    """An evaluation set to be compared with; `picture(n)` returns picture n as RGB, at any size."""

    def __init__(self, detector: Detector, index: VectorIndex, picture: Callable[[int], np.ndarray]) -> None:
        self.detector, self.index, self._picture = detector, index, picture
        self._features = lru_cache(_FEATURES_KEPT)(self._take_features)

    def find(self, web: Described, picture: Callable[[int], np.ndarray]) -> list[Copy]:
        """Return the copies among web pictures, by evaluation picture, then image; `picture(n)` returns image n."""
        best: dict[int, dict[int, tuple[int, int]]] = {}  # image: evaluation picture: (score, view)
        threshold = self.detector.score(self.detector.card.propose)
        for numbers, vectors in ((list(range(len(web.whole))), web.whole), (list(web.boxes), web.inner)):
            found = self.index.search(vectors, threshold, MOST_CANDIDATES)
            for query, row, view, score in zip(*(column.tolist() for column in found), strict=True):
                candidates = best.setdefault(numbers[query], {})
                candidates[row] = max(candidates.get(row, (score, view)), (score, view))
        copies = []
        for image, candidates in best.items():
            nearest = sorted(candidates.items(), key=lambda one: (-one[1][0], one[0]))[:MOST_CANDIDATES]
            copies += self._look_at(image, nearest, picture(image))
        return sorted(copies, key=lambda copy: (copy.picture, copy.image))

    def _look_at(self, image: int, candidates: list[tuple[int, tuple[int, int]]], picture: np.ndarray) -> list[Copy]:
        web = features(picture)
        copies = []
        for row, (score, view) in candidates:
            cosine, inverted = self.detector.cosine(score), view == _INVERTED
            alignment = self._align(row, web, inverted)
            if alignment is None and cosine < self.detector.card.sure:
                continue
            size = (picture.shape[1], picture.shape[0])
            transform = None if alignment is None else Transform.of(alignment, self._size(row), size)
            copies.append(Copy(row, image, round(cosine, 4), alignment, transform, inverted))
        return copies

    def _align(self, row: int, web: Features, inverted: bool) -> Alignment | None:
        """Return the better alignment of the two mirror images that proves a copy, or None."""
        found = [align_features(self._features(row, flip, inverted), web, mirrored=flip) for flip in (False, True)]
        proofs = [one for one in found if one is not None and one.is_copy]
        return max(proofs, key=lambda one: (one.inliers, one.correlation), default=None)

    def _size(self, row: int) -> tuple[int, int]:
        height, width = self._picture(row).shape[:2]
        return width, height

    def _take_features(self, row: int, flip: bool, inverted: bool) -> Features:
        picture = self._picture(row)
        picture = 255 - picture if inverted else picture
        return features(mirrored(picture) if flip else picture)
