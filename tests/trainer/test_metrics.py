"""Metrics against their definitions, counted one by one, and the probe's search against its grid."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from trainer.evaluation.linear_probe import COARSE, fit, linear_probe, strength, sweep
from trainer.evaluation.metrics import (
    accuracy,
    eleven_point_average_precision,
    evaluate,
    label_ranks,
    mean_per_class,
    mean_top1_top5,
    roc_auc,
)

SCORES = st.lists(
    st.tuples(st.integers(0, 5).map(float), st.booleans()), min_size=1, max_size=14
).filter(lambda rows: any(positive for _, positive in rows))  # fmt: skip


@given(rows=SCORES)
@settings(max_examples=200, deadline=None)
def test_roc_auc_is_the_share_of_pairs_in_order(rows: list[tuple[float, bool]]):
    positives = [score for score, positive in rows if positive]
    negatives = [score for score, positive in rows if not positive]
    wins = [1.0 if p > n else 0.5 if p == n else 0.0 for p in positives for n in negatives]
    found = roc_auc(np.array([r[0] for r in rows]), np.array([r[1] for r in rows]))
    assert found == pytest.approx(np.mean(wins)) if wins else math.isnan(found)


@given(rows=SCORES)
@settings(max_examples=200, deadline=None)
def test_eleven_points_are_the_best_precision_beyond_each_recall(rows: list[tuple[float, bool]]):
    ordered = sorted(rows, key=lambda row: -row[0])
    total = sum(positive for _, positive in rows)
    points = []
    for tenth in range(11):
        best = 0.0
        for length in range(1, len(ordered) + 1):
            hits = sum(positive for _, positive in ordered[:length])
            if hits * 10 >= tenth * total:
                best = max(best, hits / length)
        points.append(best)
    found = eleven_point_average_precision(np.array([r[0] for r in rows]), np.array([r[1] for r in rows]))
    assert found == pytest.approx(sum(points) / 11)


def test_a_perfect_ranking_has_average_precision_1_and_the_worst_is_counted():
    positive = np.array([True, True, False, False])
    assert eleven_point_average_precision(np.array([4.0, 3.0, 2.0, 1.0]), positive) == 1
    # 1 hit in 3 and 2 in 4: recall up to 0.5 has best precision 0.5 as has 1.0.
    assert eleven_point_average_precision(np.array([1.0, 2.0, 3.0, 4.0]), positive) == pytest.approx(0.5)


def test_classes_weigh_the_same_in_mean_per_class():
    scores = np.eye(3)[[0, 0, 0, 0, 1, 0]]
    labels = np.array([0, 0, 0, 0, 1, 1])
    assert accuracy(scores, labels) == pytest.approx(5 / 6)
    assert mean_per_class(scores, labels) == pytest.approx((1 + 0.5) / 2)


@given(st.integers(0, 10_000))
def test_ranks_agree_with_sorting(seed: int):
    random = np.random.default_rng(seed)
    scores, labels = random.integers(0, 4, (6, 7)).astype(float), random.integers(0, 7, 6)
    by_sorting = [list(np.argsort(-row, kind="stable")).index(label) for row, label in zip(scores, labels, strict=True)]
    assert label_ranks(scores, labels).tolist() == by_sorting
    top5 = np.mean([rank < 5 for rank in by_sorting])
    assert mean_top1_top5(scores, labels) == pytest.approx((accuracy(scores, labels) + top5) / 2)


def test_metrics_go_by_their_registered_names():
    from dedup.eval_sets import known_sets

    scores, positive = np.array([[2.0, 1.0], [0.0, 3.0], [1.0, 0.5]]), np.eye(2, dtype=bool)[[0, 1, 1]]
    expected = {"accuracy": 2 / 3, "mean-per-class": 3 / 4, "mean-top1-top5": 5 / 6, "roc-auc": 1.0}
    for metric in {known.metric for known in known_sets()}:
        value = evaluate(metric, scores, positive)
        assert value == pytest.approx(expected.get(metric, value))
    assert evaluate("11-point-map", scores, positive) == pytest.approx((1 + (6 + 5 * 2 / 3) / 11) / 2)


def test_the_probe_minimises_the_regularised_cross_entropy():
    random = np.random.default_rng(0)
    features, labels = random.normal(size=(60, 4)), random.integers(0, 3, 60)

    def objective(weights: np.ndarray) -> float:
        logits = features @ weights[:-1] + weights[-1]
        return float(
            (logsumexp(logits, axis=1) - logits[np.arange(60), labels]).sum() + 0.5 * (weights[:-1] ** 2).sum()
        )

    best = fit(features, labels, 3, l2=1.0).weights
    lowest = objective(best)
    for _ in range(50):
        assert objective(best + random.normal(scale=0.01, size=best.shape)) > lowest


@pytest.mark.parametrize("peak", [0, 7, 33, 50, 95, 96])
def test_the_sweep_finds_the_peak_of_a_smooth_curve_in_few_fits(peak: int):
    tried = []

    def score(l2: float) -> float:
        tried.append(l2)
        return -abs(math.log10(l2) - math.log10(strength(peak)))

    assert sweep(score) == pytest.approx(strength(peak))
    assert len(tried) <= len(COARSE) + 8
    assert len(set(tried)) == len(tried)
    assert (strength(0), strength(96)) == pytest.approx((1e-6, 1e6))


def test_the_probe_separates_what_is_linear():
    random = np.random.default_rng(1)
    labels = random.integers(0, 3, 150)
    features = np.eye(5)[labels] + random.normal(scale=0.15, size=(150, 5))
    probe = linear_probe(features, labels, 3)
    assert (probe.scores(features).argmax(axis=1) == labels).mean() > 0.97
