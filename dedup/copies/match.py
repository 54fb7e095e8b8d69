"""Find the web images that are edited copies of evaluation images: candidates by descriptor, verification on pixels.

A candidate with a cosine of at least `Card.sure` is a copy; one of at least `Detector.propose_in` is a copy if its
pixels align. The pixels of both are compared, so that the report can name the edit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple, Self

import numpy as np

from dedup.copies.detector import Detector
from dedup.copies.search import VectorIndex
from dedup.copies.small import is_small
from dedup.copies.transform import Transform
from dedup.copies.verify import (
    MIN_PROBABILITY,
    Alignment,
    Features,
    align_features,
    align_small,
    best_alignment,
    features,
)
from dedup.copies.views import VIEWS, Box, content_box, evaluation_views, shrink

MOST_CANDIDATES = 3
"""Evaluation images that are compared with one web image, at most."""

_INVERTED = VIEWS.index("inverted")
_FEATURES_KEPT = 1_024  # evaluation images whose features are in memory, 180 kB each with the mirror image's
_KNOWN_KEPT = 8_192  # evaluation images whose size, or pixels where they are small, are in memory: 12 kB at most


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


class Candidate(NamedTuple):
    """An example that may be the original of a web image."""

    row: int  # number of the example
    score: int
    view: int  # of the example, which is nearest

    @property
    def inverted(self) -> bool:
        return self.view == _INVERTED


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


@dataclass(frozen=True)
class _WebImage:
    """A web image with candidates in some sets."""

    rgb: np.ndarray

    @cached_property
    def features(self) -> Features:
        return features(self.rgb)


class _Known(NamedTuple):
    """What is kept of an evaluation image besides its features."""

    size: tuple[int, int]  # width, height
    small: np.ndarray | None  # RGB, of an image that is too small for features


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
        self._known = lru_cache(_KNOWN_KEPT)(self._look_at)

    def propose(self, web: Described) -> dict[int, list[Candidate]]:
        """Return the nearest examples of each web image that has some, nearest first."""
        best: dict[int, dict[int, tuple[int, int]]] = {}  # image -> example -> (score, view)
        threshold = self.detector.score(self.detector.propose_in(len(self.index)))
        for numbers, vectors in ((list(range(len(web.whole))), web.whole), (list(web.boxes), web.inner)):
            hits = self.index.search(vectors, threshold, MOST_CANDIDATES)
            for query, row, view, score in zip(*(column.tolist() for column in hits), strict=True):
                candidates = best.setdefault(numbers[query], {})
                candidates[row] = max(candidates.get(row, (score, view)), (score, view))
        return {
            image: sorted(
                (Candidate(row, *found) for row, found in candidates.items()), key=lambda one: (-one.score, one.row)
            )[:MOST_CANDIDATES]
            for image, candidates in best.items()
        }

    def verify(self, image: int, candidates: Sequence[Candidate], web: _WebImage) -> list[Copy]:
        """Return the copies among the candidates of a web image."""
        copies = []
        for candidate, alignment in zip(candidates, self._align(candidates, web), strict=True):
            cosine = self.detector.cosine(candidate.score)
            proof = alignment if alignment and alignment.probability >= self._min_probability else None
            if proof is None and cosine < self.detector.card.sure:
                continue
            size = (web.rgb.shape[1], web.rgb.shape[0])
            transform = Transform.of(proof, self._known(candidate.row).size, size) if proof else None
            copies.append(Copy(candidate.row, image, round(cosine, 4), proof, transform, candidate.inverted))
        return copies

    def _align(self, candidates: Sequence[Candidate], web: _WebImage) -> list[Alignment | None]:
        """Return the best alignment of each candidate."""
        small = [self._known(one.row).small for one in candidates]
        large = [one for one, pixels in zip(candidates, small, strict=True) if pixels is None]
        sides = [side for one in large for side in self._features(one.row, one.inverted)]
        found = iter(align_features(sides, web.features) if sides else ())
        return [
            best_alignment(next(found), next(found))
            if pixels is None
            else align_small(255 - pixels if one.inverted else pixels, web.rgb)
            for one, pixels in zip(candidates, small, strict=True)
        ]

    def _look_at(self, row: int) -> _Known:
        rgb = self._pixels(row)
        return _Known((rgb.shape[1], rgb.shape[0]), rgb if is_small(rgb) else None)

    def _take_features(self, row: int, inverted: bool) -> tuple[Features, Features]:
        """Return the features of an evaluation image and of its mirror image."""
        rgb = self._pixels(row)
        rgb = 255 - rgb if inverted else rgb
        return features(rgb), features(rgb, mirrored=True)


def find_copies(
    finders: Sequence[CopyFinder | None], web: Described, pixels: Callable[[int], np.ndarray]
) -> list[list[Copy]]:
    """Return the copies that each set's finder finds among web images, by example, then image; none without a finder.

    `pixels(n)` returns web image n as RGB; it is called once for all sets, if the image has candidates.
    """
    proposed = [finder.propose(web) if finder else {} for finder in finders]
    copies: list[list[Copy]] = [[] for _ in finders]
    for image in sorted(set().union(*proposed)):
        looked_at = _WebImage(pixels(image))
        for finder, candidates, found in zip(finders, proposed, copies, strict=True):
            if finder and image in candidates:
                found += finder.verify(image, candidates[image], looked_at)
    return [sorted(found, key=lambda copy: (copy.example, copy.image)) for found in copies]
