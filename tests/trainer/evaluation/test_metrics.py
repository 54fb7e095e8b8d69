"""Metrics against their definitions, counted one by one, and the probe's search against its grid."""

import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from dedup.eval_sets import Metric, known_sets
from trainer.evaluation.linear_probe import COARSE, fit, linear_probe, strength, sweep
from trainer.evaluation.metrics import (
    accuracy,
    chance,
    eleven_point_average_precision,
    evaluate,
    label_ranks,
    mean_per_class,
    mean_top1_top5,
    roc_auc,
    shown_name,
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
    scores, positive = np.array([[2.0, 1.0], [0.0, 3.0], [1.0, 0.5]]), np.eye(2, dtype=bool)[[0, 1, 1]]
    expected: dict[Metric, float] = {
        "accuracy": 2 / 3,
        "mean-per-class": 3 / 4,
        "mean-top1-top5": 5 / 6,
        "11-point-map": (1 + (6 + 5 * 2 / 3) / 11) / 2,
        "roc-auc": 1.0,
        "pm0-pm10": 2 / 3,  # of single frames, and called so
    }
    assert {known.metric for known in known_sets()} == set(expected)
    assert {metric: evaluate(metric, scores, positive) for metric in expected} == pytest.approx(expected)
    renamed = {metric: shown_name(metric) for metric in expected if shown_name(metric) != metric}
    assert renamed == {"pm0-pm10": "accuracy (frames)"}


@pytest.mark.parametrize("metric", get_args(Metric))
@pytest.mark.parametrize("classes", [2, 8])
def test_chance_is_what_random_scores_reach(metric: Metric, classes: int):
    random = np.random.default_rng(0)
    labels = np.minimum(random.integers(0, 2 * classes, 20_000), classes - 1)  # the last class has half of them
    scores, positive = random.normal(size=(20_000, classes)), np.eye(classes, dtype=bool)[labels]
    expected = chance(metric, classes)
    assert (expected is None) == (metric == "11-point-map")
    if expected is not None and (metric != "roc-auc" or classes == 2):
        assert evaluate(metric, scores, positive) == pytest.approx(expected, abs=0.01)


def test_the_probe_minimises_the_regularised_cross_entropy():
    random = np.random.default_rng(0)
    features, labels = random.normal(size=(60, 4)), random.integers(0, 3, 60)
    positive = np.eye(3, dtype=bool)[labels]

    def objective(weights: np.ndarray) -> float:
        logits = features @ weights[:-1] + weights[-1]
        return float(
            (logsumexp(logits, axis=1) - logits[np.arange(60), labels]).sum() + 0.5 * (weights[:-1] ** 2).sum()
        )

    best = fit(features, positive, l2=1.0, several=False).weights
    lowest = objective(best)
    for _ in range(50):
        assert objective(best + random.normal(scale=0.01, size=best.shape)) > lowest


def test_a_probe_of_several_classes_tells_each_from_the_rest():
    random = np.random.default_rng(0)
    features, positive = random.normal(size=(80, 4)), random.random((80, 3)) < 0.4

    def objective(weights: np.ndarray, right: np.ndarray) -> float:
        signs = np.where(right, 1, -1)
        logits = features @ weights[:-1] + weights[-1]
        return float(np.log1p(np.exp(-signs * logits)).sum() + 0.5 * (weights[:-1] ** 2).sum())

    together = fit(features, positive, l2=1.0, several=True).weights
    for number in range(3):
        alone, right = together[:, number], positive[:, number]
        lowest = objective(alone, right)
        for _ in range(50):
            assert objective(alone + random.normal(scale=0.01, size=alone.shape), right) > lowest


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
    probe = linear_probe(features, np.eye(3, dtype=bool)[labels])
    assert (probe.scores(features).argmax(axis=1) == labels).mean() > 0.97


def test_the_probe_finds_several_classes_in_one_example():
    random = np.random.default_rng(1)
    positive = random.random((150, 3)) < 0.4
    features = positive @ np.eye(3, 5) + random.normal(scale=0.15, size=(150, 5))
    probe = linear_probe(features, positive, several=True)
    assert evaluate("11-point-map", probe.scores(features), positive) > 0.97
