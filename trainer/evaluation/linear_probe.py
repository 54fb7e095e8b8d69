"""Linear probe: logistic regression by L-BFGS on frozen features, its L2 strength swept as in CLIP's appendix A.3."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
MAX_ITERATIONS = 1_000
POINTS_PER_DECADE = 8
COARSE = (0, 16, 32, 48, 64, 80, 96)  # 1e-6, 1e-4, 1e-2, 1, 1e2, 1e4, 1e6 on the grid of 96 steps


def strength(step: int) -> float:
    """Return the L2 strength at a point of the grid from 1e-6 to 1e6."""
    return float(10.0 ** (step / POINTS_PER_DECADE - 6))


@dataclass(frozen=True)
class Probe:
    """A fitted classifier."""

    weights: Floats  # (D + 1, classes); the last row is the bias
    strength: float

    def scores(self, features: Floats) -> Floats:
        """Return the logits, (n, classes)."""
        logits: Floats = features @ self.weights[:-1] + self.weights[-1]
        return logits


def fit(features: Floats, labels: Ints, classes: int, l2: float, start: Floats | None = None) -> Probe:
    """Minimise the summed cross-entropy plus l2 / 2 times the squared weights; the bias is free."""
    count, width = features.shape
    initial = np.zeros((width + 1, classes)) if start is None else start
    rows = np.arange(count)

    def loss_and_gradient(flat: Floats) -> tuple[float, Floats]:
        weights = flat.reshape(width + 1, classes)
        logits = features @ weights[:-1] + weights[-1]
        logits -= logits.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(logits).sum(axis=1))
        loss = (log_sum - logits[rows, labels]).sum() + l2 / 2 * (weights[:-1] ** 2).sum()
        slope = np.exp(logits - log_sum[:, None])
        slope[rows, labels] -= 1
        gradient = np.vstack([features.T @ slope + l2 * weights[:-1], slope.sum(axis=0)])
        return float(loss) / count, gradient.ravel() / count

    found = minimize(
        loss_and_gradient, initial.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": MAX_ITERATIONS}
    )
    return Probe(found.x.reshape(width + 1, classes), l2)


def sweep(score: Callable[[float], float]) -> float:
    """Return the best L2 strength by the paper's search: seven coarse points, then halve the step around the peak."""
    found = {step: score(strength(step)) for step in COARSE}
    gap = COARSE[1] - COARSE[0]
    while gap > 1:
        gap //= 2
        peak = max(found, key=lambda step: (found[step], step))
        for step in (peak - gap, peak + gap):
            if COARSE[0] <= step <= COARSE[-1] and step not in found:
                found[step] = score(strength(step))
    return strength(max(found, key=lambda step: (found[step], step)))


def linear_probe(features: Floats, labels: Ints, classes: int, seed: int = 0) -> Probe:
    """Choose the strength on a fifth of the training examples, then fit all of them with it.

    `features`: (n, D), as the image tower gives them before its projection.
    """
    held_out = np.zeros(len(labels), np.bool_)
    held_out[np.random.RandomState(seed).permutation(len(labels))[: max(1, len(labels) // 5)]] = True

    def validation_accuracy(l2: float) -> float:
        probe = fit(features[~held_out], labels[~held_out], classes, l2)
        return float((probe.scores(features[held_out]).argmax(axis=1) == labels[held_out]).mean())

    return fit(features, labels, classes, sweep(validation_accuracy))
