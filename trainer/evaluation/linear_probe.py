"""Linear probe: logistic regression by L-BFGS on frozen features, its L2 strength swept as in CLIP's appendix A.3.

Classes exclude each other (softmax), or, where an example may have several, each is a binary decision (sigmoids).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from trainer.evaluation.metrics import Bools, Floats, accuracy, eleven_point_map

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


def fit(features: Floats, positive: Bools, l2: float, *, several: bool) -> Probe:
    """Minimise the summed cross-entropy plus l2 / 2 times the squared weights; the bias is free.

    `positive`: (n, classes), which classes each example has; exactly one each unless `several`.
    """
    count, width = features.shape
    initial = np.zeros((width + 1, positive.shape[1]))
    targets = np.nonzero(positive)

    def loss_and_gradient(flat: Floats) -> tuple[float, Floats]:
        weights = flat.reshape(initial.shape)
        logits = features @ weights[:-1] + weights[-1]
        if several:
            log_sum = np.logaddexp(0, logits)
        else:
            logits -= logits.max(axis=1, keepdims=True)
            log_sum = np.log(np.exp(logits).sum(axis=1, keepdims=True))
        loss = log_sum.sum() - logits[targets].sum() + l2 / 2 * (weights[:-1] ** 2).sum()
        logit_gradient = np.exp(logits - log_sum)
        logit_gradient[targets] -= 1
        gradient = np.vstack([features.T @ logit_gradient + l2 * weights[:-1], logit_gradient.sum(axis=0)])
        return float(loss) / count, gradient.ravel() / count

    result = minimize(
        loss_and_gradient, initial.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": MAX_ITERATIONS}
    )
    return Probe(result.x.reshape(initial.shape), l2)


def sweep(score: Callable[[float], float]) -> float:
    """Return the best L2 strength by the paper's search: seven coarse points, then halve the step around the peak."""
    scores = {step: score(strength(step)) for step in COARSE}
    gap = COARSE[1] - COARSE[0]
    while gap > 1:
        gap //= 2
        peak = max(scores, key=lambda step: (scores[step], step))
        for step in (peak - gap, peak + gap):
            if COARSE[0] <= step <= COARSE[-1] and step not in scores:
                scores[step] = score(strength(step))
    return strength(max(scores, key=lambda step: (scores[step], step)))


def linear_probe(features: Floats, positive: Bools, *, several: bool = False, seed: int = 0) -> Probe:
    """Choose the strength on a fifth of the training examples, by accuracy or mAP, then fit all of them with it.

    `features`: (n, D), the image tower's output before its projection.
    """
    count = len(features)
    held_out = np.zeros(count, np.bool_)
    held_out[np.random.RandomState(seed).permutation(count)[: max(1, count // 5)]] = True

    def validation_score(l2: float) -> float:
        probe = fit(features[~held_out], positive[~held_out], l2, several=several)
        scores, labels = probe.scores(features[held_out]), positive[held_out]
        return eleven_point_map(scores, labels) if several else accuracy(scores, labels.argmax(axis=1))

    return fit(features, positive, sweep(validation_score), several=several)
