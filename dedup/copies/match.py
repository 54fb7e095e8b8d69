"""Find the web images that are edited copies of evaluation images: candidates by descriptor, verification on pixels.

A candidate with a cosine of at least `Card.sure` is a copy; one of at least `Detector.propose_in` is a copy if its
pixels align. The pixels of both are compared, so that the report can name the edit.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from typing import NamedTuple, Self

import numpy as np

from dedup.copies.boxes import Box, inner_boxes
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
    evaluation_features,
    features,
    seen_resolution,
)
from dedup.copies.views import EQUALISED, INVERTED, evaluation_views, shrink

MOST_CANDIDATES = 3
"""Evaluation images that are compared with one web image, at most."""

_FEATURES_KEPT = 2_048  # evaluation images whose features are in memory, 180 kB each with the mirror image's
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
        return self.view == INVERTED

    @property
    def colours(self) -> int:
        """Return the view if its colours are others, or the first view."""
        return self.view if self.view in (INVERTED, EQUALISED) else 0


@dataclass(frozen=True)
class Described:
    """The vectors of web images: one each, and one of each picture inside some."""

    whole: np.ndarray  # (n, dimensions) int8
    boxes: Sequence[tuple[int, Box]]  # image number and where the picture is, by image number
    inner: np.ndarray  # (len(boxes), dimensions) int8, in the order of `boxes`

    @classmethod
    def of(cls, detector: Detector, images: Sequence[np.ndarray]) -> Self:
        """Describe web images."""
        boxes = [(number, box) for number, image in enumerate(images) for box in inner_boxes(image)]
        inside = [images[number][box.top : box.bottom, box.left : box.right] for number, box in boxes]
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


class KnownSet(NamedTuple):
    """An evaluation set to compare images with."""

    pixels: Callable[[int], np.ndarray]  # of its example n: RGB, at any size
    min_probability: float = MIN_PROBABILITY


class CopyFinder:
    """Evaluation sets to compare images with, in the order of the index."""

    def __init__(self, detector: Detector, index: VectorIndex, sets: Sequence[KnownSet]) -> None:
        self.detector, self.index, self.sets = detector, index, tuple(sets)
        sizes = np.diff(index.sets).tolist()
        self._min_scores = [detector.score(detector.propose_in(images)) for images in sizes]
        self._features = lru_cache(_FEATURES_KEPT)(self._take_features)
        self._known = lru_cache(_KNOWN_KEPT)(self._look_at)

    def find(
        self, web: Described, pixels: Callable[[int], np.ndarray], only: Collection[int] | None = None
    ) -> list[list[Copy]]:
        """Return the copies of each set's examples among web images, by example, then image.

        `pixels(n)` returns web image n as RGB; it is called once for all sets, if the image has candidates. `only` has
        the numbers of the sets to compare with; default: all.
        """
        copies: list[list[Copy]] = [[] for _ in self.sets]
        for image, of_sets in sorted(self.propose(web, only).items()):
            looked_at = _WebImage(pixels(image))
            for number, candidates in of_sets.items():
                copies[number] += self._verify(image, number, candidates, looked_at)
        return [sorted(found, key=lambda copy: (copy.example, copy.image)) for found in copies]

    def propose(self, web: Described, only: Collection[int] | None = None) -> dict[int, dict[int, list[Candidate]]]:
        """Return the nearest examples of each web image that has some: image -> set -> candidates, nearest first."""
        least = [score if only is None or number in only else None for number, score in enumerate(self._min_scores)]
        best: dict[tuple[int, int], tuple[int, int]] = {}  # (web image, image of the index) -> (score, view)
        owners = [number for number, _ in web.boxes]
        for numbers, vectors in ((list(range(len(web.whole))), web.whole), (owners, web.inner)):
            hits = self.index.search(vectors, least, MOST_CANDIDATES)
            for query, known, view, score in zip(*(column.tolist() for column in hits), strict=True):
                pair = numbers[query], known
                best[pair] = max(best.get(pair, (score, view)), (score, view))
        found: dict[int, dict[int, list[Candidate]]] = {}
        for (image, known), (score, view) in best.items():
            number, example = self._place(known)
            found.setdefault(image, {}).setdefault(number, []).append(Candidate(example, score, view))
        return {
            image: {number: _nearest(candidates) for number, candidates in sorted(of_sets.items())}
            for image, of_sets in found.items()
        }

    def _place(self, known: int) -> tuple[int, int]:
        """Return set and example of an image of the index."""
        number = int(np.searchsorted(self.index.sets, known, side="right")) - 1
        return number, known - int(self.index.sets[number])

    def _verify(self, image: int, number: int, candidates: Sequence[Candidate], web: _WebImage) -> list[Copy]:
        """Return the copies among the candidates of a web image in a set."""
        copies = []
        for candidate, alignment in zip(candidates, self._align(number, candidates, web), strict=True):
            cosine = self.detector.cosine(candidate.score)
            proof = alignment if alignment and alignment.probability >= self.sets[number].min_probability else None
            if proof is None and cosine < self.detector.card.sure:
                continue
            size = (web.rgb.shape[1], web.rgb.shape[0])
            transform = Transform.of(proof, self._known(number, candidate.row).size, size) if proof else None
            copies.append(Copy(candidate.row, image, round(cosine, 4), proof, transform, candidate.inverted))
        return copies

    def _align(self, number: int, candidates: Sequence[Candidate], web: _WebImage) -> list[Alignment | None]:
        """Return the best alignment of each candidate."""
        small = [self._known(number, one.row).small for one in candidates]
        resolution = seen_resolution(web.rgb)
        sides = [
            [] if pixels is not None else self._features(number, one.row, one.colours, resolution)
            for one, pixels in zip(candidates, small, strict=True)
        ]
        every = [side for some in sides for side in some]
        found = iter(align_features(every, web.features) if every else ())
        return [
            best_alignment(*islice(found, len(some)))
            if pixels is None
            else align_small(255 - pixels if one.inverted else pixels, web.rgb)
            for one, pixels, some in zip(candidates, small, sides, strict=True)
        ]

    def _look_at(self, number: int, row: int) -> _Known:
        rgb = self.sets[number].pixels(row)
        return _Known((rgb.shape[1], rgb.shape[0]), rgb if is_small(rgb) else None)

    def _take_features(self, number: int, row: int, colours: int, resolution: int | None) -> list[Features]:
        return evaluation_features(self.sets[number].pixels(row), colours, resolution)


def _nearest(candidates: list[Candidate]) -> list[Candidate]:
    return sorted(candidates, key=lambda one: (-one.score, one.row))[:MOST_CANDIDATES]
