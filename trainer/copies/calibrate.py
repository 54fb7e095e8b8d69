"""Set a detector's thresholds on photos it was not trained on, and measure its recall at them."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from dedup.copies.detector import Detector, scores
from dedup.copies.edits import EDITS, UNSEEN_EDITS, edited
from dedup.copies.match import Described
from dedup.copies.views import VIEWS, evaluation_views

MOST_REFERENCES = 2_000
MOST_EDITED = 100

_LOOSE_RATE = 1e-3
_PROPOSE_RATE = 1e-5
_TAIL_RATE = 1e-6
_COPIES = 0.9  # photos as near as this are copies of one photo that is in the set twice,
_MOST_COPIES = 1e-4  # unless there are more of them
_SURE_DECADES = 4  # below the tail's rate: 1e-10


@dataclass(frozen=True)
class Calibration:
    """Thresholds (cosines), and the recall of each kind of edit at both."""

    loose: float
    propose: float
    sure: float
    strangers: int
    recall: dict[str, tuple[float, float]]

    def card(self) -> str:
        """Return the card of the model, in Markdown."""
        rows = [f"| {name} | {loose:.3f} | {strict:.3f} |" for name, (loose, strict) in self.recall.items()]
        return "\n".join(
            [
                "# Copy detector",
                "",
                f"Calibrated on held-out photos, {self.strangers:,} pairs of strangers. Pairs at a cosine of "
                f"{self.propose:.3f} are verified (one stranger in 100,000; in small sets {self.loose:.3f}, one in "
                f"1,000), at {self.sure:.3f} accepted without "
                "(one in 10^10, by the decay of the tail).",
                "",
                f"| edit | recall at {self.propose:.3f} | at {self.sure:.3f} |",
                "|---|---|---|",
                *rows,
                "",
            ]
        )


def calibrate(detector: Detector, photos: Sequence[np.ndarray]) -> Calibration:
    """Compare edits of some of the photos with all of them."""
    photos = photos[:MOST_REFERENCES]
    chosen = np.linspace(0, len(photos) - 1, min(MOST_EDITED, len(photos))).astype(np.int64)
    views = [detector.describe([evaluation_views(photo)[view] for photo in photos]) for view in range(len(VIEWS))]
    strangers, own = [], {}
    for name in (*EDITS, *UNSEEN_EDITS):
        best = _similarity(detector, _edited(name, photos, chosen), views)
        rows = np.arange(len(chosen))
        own[name] = best[rows, chosen].copy()
        best[rows, chosen] = best[rows, (chosen + 1) % len(photos)] = -1  # the edit may show the next photo as well
        strangers.append(best.ravel())
    merged = np.concatenate(strangers)
    if (merged >= _COPIES).mean() < _MOST_COPIES:
        merged = merged[merged < _COPIES]
    rates = (_LOOSE_RATE, _PROPOSE_RATE, _TAIL_RATE)
    loose, propose, tail = (min(1.0, float(np.quantile(merged, 1 - rate))) for rate in rates)
    sure = min(1.0, tail + _SURE_DECADES * (tail - propose))
    recall = {name: (float((found >= propose).mean()), float((found >= sure).mean())) for name, found in own.items()}
    return Calibration(round(loose, 3), round(propose, 3), round(sure, 3), len(merged), recall)


def _edited(name: str, photos: Sequence[np.ndarray], chosen: np.ndarray) -> list[np.ndarray]:
    images = []
    for row in chosen:
        file = edited(name, photos[row], photos[(row + 1) % len(photos)], str(row))
        images.append(np.asarray(cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR))[:, :, ::-1])
    return images


def _similarity(detector: Detector, images: list[np.ndarray], views: list[np.ndarray]) -> np.ndarray:
    """Return the best cosine of each image, or of a picture inside it, over the views of each photo."""
    web = Described.of(detector, images)
    best = np.max([scores(web.whole, view) for view in views], axis=0)
    if web.boxes:
        inner = np.max([scores(web.inner, view) for view in views], axis=0)
        np.maximum.at(best, [number for number, _ in web.boxes], inner)
    return np.asarray(best / np.float32(detector.scale**2))
