"""Measure how much of an evaluation set was found, and whether that helped the model (CLIP paper, section 5).

Intervals are Clopper-Pearson: they are exact for the binomial distribution and have at least the stated confidence,
even for small counts. Contamination has 95 %, accuracies 99.5 % (the paper's figure 17).
"""

from dataclasses import dataclass

import numpy as np
from scipy import special

SHARE_CONFIDENCE = 0.95
ACCURACY_CONFIDENCE = 0.995
SIGNIFICANCE = 0.05


@dataclass(frozen=True, slots=True)
class Proportion:
    """`count` of `total`, and the interval that holds the true proportion with `confidence`."""

    count: int
    total: int
    low: float
    high: float
    confidence: float

    @property
    def value(self) -> float | None:
        """The proportion; None if `total` is 0."""
        return self.count / self.total if self.total else None


@dataclass(frozen=True, slots=True)
class SplitAccuracy:
    """Accuracy on all examples, on those not found in the training data (clean), and on those found (overlap)."""

    all: Proportion
    clean: Proportion
    overlap: Proportion
    p_value: float
    """The probability of at least this many correct ones on `overlap` at the accuracy of `clean` (one-tailed)."""

    @property
    def inflation(self) -> float | None:
        """All minus Clean: the effect of the overlap on the reported accuracy; None if nothing is clean."""
        if self.all.value is None or self.clean.value is None:
            return None
        return self.all.value - self.clean.value

    @property
    def advantage(self) -> float | None:
        """Overlap minus Clean, which the paper's figure 17 plots; None where one of them is empty."""
        if self.overlap.value is None or self.clean.value is None:
            return None
        return self.overlap.value - self.clean.value


def contamination(overlap: int, total: int) -> Proportion:
    """Return the fraction of an evaluation set that is in the training data, with a 95 % interval."""
    return proportion(overlap, total, SHARE_CONFIDENCE)


def proportion(count: int, total: int, confidence: float) -> Proportion:
    """Return `count / total` with its Clopper-Pearson interval; with total = 0 the interval is [0, 1]."""
    low, high = clopper_pearson(count, total, confidence)
    return Proportion(count, total, low, high, confidence)


def clopper_pearson(count: int, total: int, confidence: float) -> tuple[float, float]:
    """Return the exact two-sided interval of a binomial proportion.

    Its ends are the proportions at which `count` or more, and `count` or fewer, have probability (1 - confidence) / 2.
    """
    if not 0 <= count <= total:
        raise ValueError(f"count must be in [0, total], not {count} of {total}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1")
    tail = (1 - confidence) / 2
    low = float(special.betaincinv(count, total - count + 1, tail)) if count > 0 else 0.0
    high = float(special.betaincinv(count + 1, total - count, 1 - tail)) if count < total else 1.0
    return low, high


def binomial_p_value(count: int, total: int, null: float) -> float:
    """Return the probability of `count` or more successes in `total` trials of probability `null`."""
    return float(special.betainc(count, total - count + 1, null)) if count > 0 else 1.0


def split_accuracy(correct: np.ndarray, overlap: np.ndarray) -> SplitAccuracy:
    """Compare a model's accuracy on the examples that overlap with that on the others.

    Both are `(n,)` bool in the order of the examples: whether the model was correct, and whether the example overlaps.
    If either side is empty, the p-value is 1.
    """
    if correct.shape != overlap.shape or correct.dtype != np.bool_ or overlap.dtype != np.bool_:
        raise ValueError(f"need two bool arrays of one length, not {correct.shape} and {overlap.shape}")
    found, clean = (
        proportion(int(correct[part].sum()), int(part.sum()), ACCURACY_CONFIDENCE) for part in (overlap, ~overlap)
    )
    p_value = 1.0 if clean.value is None else binomial_p_value(found.count, found.total, clean.value)
    return SplitAccuracy(
        all=proportion(int(correct.sum()), len(correct), ACCURACY_CONFIDENCE),
        clean=clean,
        overlap=found,
        p_value=p_value,
    )


def bonferroni(p_value: float, tests: int) -> float:
    """Return a p-value corrected for the number of sets that were tested: below 0.05 is significant."""
    return min(1.0, p_value * tests)
