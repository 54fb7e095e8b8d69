"""Measure the recall of a comparison on planted copies, and its false matches on images that cannot have copies.

Recall: examples of the evaluation set itself are edited in every way of `dedup.copies.edits`, and processed in the
same way as the images of the other set. Negative control: freshly rendered images are used as a set that cannot have
leaked; any match with them is false.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from dedup.copies.edits import EDITS, UNSEEN_EDITS, edited
from dedup.copies.views import shrink
from dedup.statistics import Proportion, contamination, proportion

_CONFIDENCE = 0.95

Find = Callable[[list[tuple[str, bytes]]], pa.Table]
"""From (id, image file) to overlap rows."""


@dataclass(frozen=True)
class Recall:
    """Which planted edits were found: kind -> (found, planted), and the number of matches with a wrong example."""

    kinds: Mapping[str, tuple[int, int]]
    confused: int

    @property
    def tuned(self) -> Proportion:
        """The recall over the kinds of edits that detectors are tuned on."""
        return self._over(EDITS)

    @property
    def unseen(self) -> Proportion:
        """The recall over the kinds that neither training nor tuning may use."""
        return self._over(UNSEEN_EDITS)

    def _over(self, names: Mapping[str, object]) -> Proportion:
        counts = [self.kinds[name] for name in names if name in self.kinds]
        return proportion(sum(found for found, _ in counts), sum(planted for _, planted in counts), _CONFIDENCE)

    def corrected(self, found: int, total: int) -> tuple[float, float, float] | None:
        """Return the fraction that would be found at full recall, with an interval from the ends of both intervals.

        This assumes that real copies are edited like the planted ones, with all kinds equally frequent.
        """
        recall, overlap = self._over({**EDITS, **UNSEEN_EDITS}), contamination(found, total)
        if not recall.value or overlap.value is None:
            return None
        return min(1.0, overlap.value / recall.value), overlap.low / recall.high, min(1.0, overlap.high / recall.low)

    def to_json(self) -> dict[str, Any]:
        """Return the recalls as JSON."""
        recalls = {name: found / planted for name, (found, planted) in self.kinds.items()}
        return {"tuned": self.tuned.value, "unseen": self.unseen.value, "confused": self.confused, "kinds": recalls}


@dataclass(frozen=True)
class Control:
    """The negative control: how many of its rendered `pictures` matched one of the `images`."""

    pictures: int
    images: int
    matches: int


def measure_recall(find: Find, images: Mapping[str, np.ndarray]) -> Recall:
    """Search for every kind of edit of the given images (example id -> RGB)."""
    ids = sorted(images)
    working = {name: shrink(image) for name, image in images.items()}
    kinds, confused = {}, 0
    for kind in (*EDITS, *UNSEEN_EDITS):
        planted = []
        for position, name in enumerate(ids):
            planted.append((name, edited(kind, working[name], working[ids[position - 1]], name)))
        rows = find(planted).select(["eval_id", "uid"]).to_pylist()
        kinds[kind] = (len({row["uid"] for row in rows if row["uid"] == row["eval_id"]}), len(planted))
        confused += sum(row["uid"] != row["eval_id"] for row in rows)
    return Recall(kinds, confused)
