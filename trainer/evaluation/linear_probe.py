"""Linear probe: logistic regression by L-BFGS on frozen features, its L2 strength swept as in CLIP's appendix A.3.

Classes exclude each other (softmax), or, where an example may have several, each is a binary decision (sigmoids). The
loss and its gradient are computed on the device, a slice of examples at a time: in float32 on a GPU, float64 on a CPU.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from trainer.evaluation.metrics import Bools, Floats, accuracy, eleven_point_map

MAX_ITERATIONS = 1_000
SLICE = 1 << 26
"""Logits at a time."""
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

    def scores(self, features: Floats | NDArray[np.float32]) -> Floats:
        """Return the logits, (n, classes)."""
        logits: Floats = np.asarray(features @ self.weights[:-1] + self.weights[-1], np.float64)
        return logits


class _Objective:
    """The summed cross-entropy of examples on a device, and its gradient."""

    def __init__(self, features: NDArray[np.floating], positive: Bools, device: torch.device, *, several: bool) -> None:
        self.dtype = torch.float32 if device.type == "cuda" else torch.float64
        self._features = torch.as_tensor(np.ascontiguousarray(features)).to(device, self.dtype)
        self._positive = torch.as_tensor(positive).to(device)
        self._several = several
        self.shape = (features.shape[1] + 1, positive.shape[1])

    def __call__(self, flat: Floats, l2: float) -> tuple[float, Floats]:
        """Return the loss per example and its gradient by the weights, flattened."""
        weights = torch.as_tensor(flat.reshape(self.shape)).to(self._features.device, self.dtype)
        loss, gradient = torch.zeros((), dtype=torch.float64), torch.zeros_like(weights)
        rows = max(1, SLICE // self.shape[1])
        for start in range(0, len(self._features), rows):
            loss += self._add(self._features[start : start + rows], start, weights, gradient).double().cpu()
        loss += l2 / 2 * (weights[:-1].double() ** 2).sum().cpu()
        gradient[:-1] += l2 * weights[:-1]
        count = len(self._features)
        return float(loss) / count, gradient.double().cpu().numpy().ravel() / count

    def _add(self, features: Tensor, start: int, weights: Tensor, gradient: Tensor) -> Tensor:
        """Return the loss of a slice; add its gradient."""
        positive = self._positive[start : start + len(features)]
        logits = torch.addmm(weights[-1], features, weights[:-1])
        right = logits[positive].sum()
        if self._several:
            loss = torch.nn.functional.softplus(logits).sum() - right
            logits.sigmoid_()
        else:
            loss = torch.logsumexp(logits, dim=1).sum() - right
            logits = torch.softmax(logits, dim=1)
        logits -= positive.to(logits.dtype)
        gradient[:-1].addmm_(features.T, logits)
        gradient[-1] += logits.sum(dim=0)
        return loss


def fit(
    features: NDArray[np.floating],
    positive: Bools,
    l2: float,
    *,
    several: bool,
    device: torch.device | None = None,
    start: Floats | None = None,
) -> Probe:
    """Minimise the summed cross-entropy plus l2 / 2 times the squared weights; the bias is free.

    `positive`: (n, classes), which classes each example has; exactly one each unless `several`. `start`: weights of a
    probe with another strength, from where fewer iterations are needed.
    """
    objective = _Objective(features, positive, device or torch.device("cpu"), several=several)
    return _fit(objective, l2, start)


def _fit(objective: _Objective, l2: float, start: Floats | None) -> Probe:
    initial = np.zeros(objective.shape) if start is None else start
    result = minimize(
        objective, initial.ravel(), args=(l2,), jac=True, method="L-BFGS-B", options={"maxiter": MAX_ITERATIONS}
    )
    return Probe(result.x.reshape(objective.shape), l2)


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


def linear_probe(
    features: NDArray[np.floating],
    positive: Bools,
    *,
    several: bool = False,
    seed: int = 0,
    device: torch.device | None = None,
) -> Probe:
    """Choose the strength on a fifth of the training examples, by accuracy or mAP, then fit all of them with it.

    `features`: (n, D), the image tower's output before its projection.
    """
    count, device = len(features), device or torch.device("cpu")
    held_out = np.zeros(count, np.bool_)
    held_out[np.random.RandomState(seed).permutation(count)[: max(1, count // 5)]] = True
    objective = _Objective(features[~held_out], positive[~held_out], device, several=several)
    fitted: dict[float, Probe] = {}

    def validation_score(l2: float) -> float:
        near = min(fitted, key=lambda other: abs(np.log(other / l2)), default=None)
        fitted[l2] = probe = _fit(objective, l2, None if near is None else fitted[near].weights)
        scores, labels = probe.scores(features[held_out]), positive[held_out]
        return eleven_point_map(scores, labels) if several else accuracy(scores, labels.argmax(axis=1))

    best = sweep(validation_score)
    return fit(features, positive, best, several=several, device=device, start=fitted[best].weights)
