"""Measure the recall of a comparison on planted copies.

Examples of the evaluation set itself are edited in every way of `dedup.copies.edits`, and processed in the same way as
the images of the other set.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from dedup.copies.edits import EDITS, UNSEEN_EDITS, edited
from dedup.copies.views import shrink
from dedup.decode import ImageDecodeError, decode_rgb
from dedup.eval_sets.read import Example
from dedup.statistics import Proportion, proportion

_CONFIDENCE = 0.95

Find = Callable[[list[tuple[str, bytes]]], pa.Table]
"""From (id, image file) to overlap rows."""


PLANTED = pa.schema(
    [
        ("kind", pa.string()),
        ("found", pa.int32()),
        ("planted", pa.int32()),
        ("confused", pa.int32()),  # of all kinds: planted copies that match another example; the same in all rows
    ]
)


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

    def corrected(self, found: Proportion, precision: Proportion | None = None) -> tuple[float, float, float] | None:
        """Return the fraction at full recall and precision, with an interval from the least favourable ends of all.

        This assumes that real copies are edited like the planted ones, with all kinds equally frequent.
        """
        recall = self._over({**EDITS, **UNSEEN_EDITS})
        if not recall.value or found.value is None:
            return None
        right = (1.0, 1.0, 1.0)
        if precision is not None and precision.value is not None:
            right = (precision.value, precision.low, precision.high)
        value, low, high = found.value / recall.value, found.low / recall.high, found.high / recall.low
        return min(1.0, value * right[0]), min(1.0, low * right[1]), min(1.0, high * right[2])

    def to_json(self) -> dict[str, Any]:
        """Return it for overlap.json."""
        kinds = {name: list(counts) for name, counts in self.kinds.items()}
        return {"tuned": self.tuned.value, "unseen": self.unseen.value, "confused": self.confused, "kinds": kinds}

    def table(self) -> pa.Table:
        """Return it as `PLANTED`."""
        rows = [{"kind": kind, "found": found, "planted": planted} for kind, (found, planted) in self.kinds.items()]
        return pa.Table.from_pylist([row | {"confused": self.confused} for row in rows], PLANTED)

    @classmethod
    def of(cls, table: pa.Table) -> "Recall | None":
        """Return what `table` wrote; None of an empty table."""
        rows = table.to_pylist()
        if not rows:
            return None
        return cls({row["kind"]: (row["found"], row["planted"]) for row in rows}, rows[0]["confused"])


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


def spread_pictures(examples: Iterable[Example], total: int, count: int) -> dict[str, np.ndarray]:
    """Return `count` pictures by id, spread evenly over the `total` examples; unreadable ones are left out."""
    step = max(1, total // count)
    pictures: dict[str, np.ndarray] = {}
    for place, example in enumerate(examples):
        if place % step or example.failure:
            continue
        with suppress(ImageDecodeError):
            pictures[example.eval_id] = decode_rgb(example.encoded)
        if len(pictures) == count:
            break
    return pictures
