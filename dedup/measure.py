"""Measure a comparison on itself: how many planted copies it finds, and what it finds where there is nothing.

Recall: examples of the evaluation set itself are edited in every way of `dedup.copies.edits`, and go through the same
path as the images of the other set. Negative control: freshly rendered pictures stand for a set that cannot have
leaked; what matches them is false.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from dedup.copies.edits import EDITS, UNSEEN_EDITS, edited
from dedup.statistics import Proportion, contamination, proportion

_LONG_SIDE = 384  # pixels, of a picture before its edit
_CONFIDENCE = 0.95

Find = Callable[[list[tuple[str, bytes]]], pa.Table]
"""From (id, image file) to overlap rows."""


@dataclass(frozen=True)
class Recall:
    """Which planted edits were found: kind -> (found, planted), and planted copies taken for another example."""

    kinds: Mapping[str, tuple[int, int]]
    confused: int

    @property
    def tuned(self) -> Proportion:
        """Over the kinds of edits that detectors are tuned on."""
        return self._over(EDITS)

    @property
    def unseen(self) -> Proportion:
        """Over the kinds that neither training nor tuning may use."""
        return self._over(UNSEEN_EDITS)

    def _over(self, names: Mapping[str, object]) -> Proportion:
        counts = [self.kinds[name] for name in names if name in self.kinds]
        return proportion(sum(found for found, _ in counts), sum(planted for _, planted in counts), _CONFIDENCE)

    def corrected(self, found: int, total: int) -> tuple[float, float, float] | None:
        """Return the share of the set that would be found at full recall, with an interval from both intervals' ends.

        It holds if the copies out there are edited as the planted ones are, in equal parts of all kinds.
        """
        recall, share = self._over({**EDITS, **UNSEEN_EDITS}), contamination(found, total)
        if not recall.value or share.value is None:
            return None
        return min(1.0, share.value / recall.value), share.low / recall.high, min(1.0, share.high / recall.low)

    def to_json(self) -> dict[str, Any]:
        """Return it for overlap.json."""
        shares = {name: found / planted for name, (found, planted) in self.kinds.items()}
        return {"tuned": self.tuned.value, "unseen": self.unseen.value, "confused": self.confused, "kinds": shares}


@dataclass(frozen=True)
class Control:
    """The negative control: how many of its pictures matched one of so many images."""

    pictures: int
    images: int
    matches: int


def measure_recall(find: Find, pictures: Mapping[str, np.ndarray]) -> Recall:
    """Plant every kind of edit of the pictures (example id -> RGB), and look for them."""
    ids = sorted(pictures)
    working = {name: _shrunk(picture) for name, picture in pictures.items()}
    kinds, confused = {}, 0
    for kind in (*EDITS, *UNSEEN_EDITS):
        planted = []
        for place, name in enumerate(ids):
            planted.append((name, edited(kind, working[name], working[ids[place - 1]], name)))
        rows = find(planted).select(["eval_id", "uid"]).to_pylist()
        kinds[kind] = (len({row["uid"] for row in rows if row["uid"] == row["eval_id"]}), len(planted))
        confused += sum(row["uid"] != row["eval_id"] for row in rows)
    return Recall(kinds, confused)


def _shrunk(picture: np.ndarray) -> np.ndarray:
    scale = _LONG_SIDE / max(picture.shape[:2])
    if scale >= 1:
        return picture
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    return cv2.resize(np.ascontiguousarray(picture), size, interpolation=cv2.INTER_AREA)
