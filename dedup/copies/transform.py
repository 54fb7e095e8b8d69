"""Describe the edit of an image from the alignment of its copy: crop box, mirror, rotation, stretch, surround."""

from dataclasses import dataclass

import cv2
import numpy as np

from dedup.copies.verify import Alignment

_MIN_DEGREES = 0.7
_MIN_STRETCH = 1.04
_WHOLE = 0.985  # a fraction from here on counts as the whole image: alignments are exact to a pixel or two of 160


@dataclass(frozen=True)
class Transform:
    """The map from an evaluation image to a web image; it mirrors first."""

    mirrored: bool
    degrees: float  # counter-clockwise, -180 to 180
    stretch: float  # how much wider the web image shows it, relative to its height; 1: the aspect is kept
    corners: tuple[tuple[float, float], ...]  # of the web image on the evaluation image, as fractions of its sides
    evaluation_share: float  # fraction of the evaluation image's area that the web image shows
    web_share: float  # fraction of the web image's area that shows the evaluation image

    @classmethod
    def of(cls, alignment: Alignment, evaluation: tuple[int, int], web: tuple[int, int]) -> "Transform":
        """Derive it from an alignment of two images of these (width, height)."""
        matrix = np.array(alignment.matrix).reshape(2, 3)
        web_corners = _corners(web) @ matrix[:, :2].T + matrix[:, 2]
        common, _ = cv2.intersectConvexConvex(web_corners.astype(np.float32), _corners(evaluation).astype(np.float32))
        web_area = abs(np.linalg.det(matrix[:, :2])) * web[0] * web[1]
        rotation, lengths = _polar(matrix[:, :2])
        placed = web_corners / evaluation
        if alignment.mirrored:
            placed[:, 0] = 1 - placed[:, 0]
        return cls(
            alignment.mirrored,
            round(float(np.degrees(np.arctan2(rotation[1, 0], rotation[0, 0]))), 1),
            round(float(lengths[1] / lengths[0]), 3),
            tuple((round(float(x), 3), round(float(y), 3)) for x, y in placed),
            round(min(1.0, float(common) / (evaluation[0] * evaluation[1])), 3),
            round(min(1.0, float(common) / web_area), 3),
        )

    def words(self) -> str:
        """Return the geometric changes in words; empty if the whole image is shown unchanged."""
        parts = []
        if self.mirrored:
            parts.append("mirrored")
        if abs(self.degrees) >= _MIN_DEGREES:
            parts.append(
                f"rotated by {self.degrees:.0f}°" if abs(self.degrees) >= 10 else f"rotated by {self.degrees}°"
            )
        if self.evaluation_share < _WHOLE:
            parts.append(f"cropped to {self.evaluation_share:.0%}")
        if self.web_share < _WHOLE:
            parts.append(f"on {self.web_share:.0%} of a larger picture")
        if not 1 / _MIN_STRETCH <= self.stretch <= _MIN_STRETCH:
            parts.append(f"stretched {max(self.stretch, 1 / self.stretch):.2f} : 1")
        return ", ".join(parts)


def _corners(size: tuple[int, int]) -> np.ndarray:
    width, height = size
    return np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float64)


def _polar(linear: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest rotation of a linear map, and its scale factors along x and y."""
    left, _, right = np.linalg.svd(linear)
    return left @ right, np.linalg.norm(linear, axis=0)
