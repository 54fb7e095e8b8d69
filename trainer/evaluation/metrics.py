"""The metrics of the CLIP paper's table 9: which one each set uses, and its computation from scores in plain NumPy."""

import numpy as np
from numpy.typing import NDArray

from dedup.eval_sets import Metric, find_set

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def accuracy(scores: Floats, labels: Ints) -> float:
    """Return the fraction of examples whose highest score, of (n, classes), is their label's."""
    return float((scores.argmax(axis=1) == labels).mean())


def mean_per_class(scores: Floats, labels: Ints) -> float:
    """Return the mean over the classes that occur of the accuracy on each class."""
    correct = scores.argmax(axis=1) == labels
    return float(np.mean([correct[labels == label].mean() for label in np.unique(labels)]))


def top_k(scores: Floats, labels: Ints, k: int) -> float:
    """Return the fraction of examples whose label is among the k highest scores."""
    return float((label_ranks(scores, labels) < k).mean())


def mean_top1_top5(scores: Floats, labels: Ints) -> float:
    """Return the mean of top-1 and top-5 accuracy, as for Kinetics-700."""
    return (accuracy(scores, labels) + top_k(scores, labels, 5)) / 2


def label_ranks(scores: Floats, labels: Ints) -> Ints:
    """Return how many classes score higher than the label, ties resolved as argmax does: the first class wins."""
    label_scores = scores[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(scores.shape[1])[None, :] < labels[:, None]
    return ((scores > label_scores) | ((scores == label_scores) & earlier)).sum(axis=1)


def roc_auc(scores: Floats, positive: Bools) -> float:
    """Return the chance that a positive scores higher than a negative, ties counting half; NaN without both."""
    order, ranks = np.unique(scores, return_inverse=True)
    counts = np.bincount(ranks, minlength=len(order))
    mean_rank = np.cumsum(counts) - (counts - 1) / 2  # 1-based, tied scores share their mean rank
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return float("nan")
    above = mean_rank[ranks][positive].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def eleven_point_average_precision(scores: Floats, positive: Bools) -> float:
    """Return the mean of the best precision at recall >= 0, 0.1 ... 1 (PASCAL VOC 2007)."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(positive[order])
    if not len(hits) or not hits[-1]:
        return float("nan")
    precision = hits / np.arange(1, len(hits) + 1)
    recall_in_tenths = hits * 10  # compared with tenths of all positives in whole numbers, not rounded floats
    best = [precision[recall_in_tenths >= tenth * hits[-1]].max() for tenth in range(11)]
    return float(np.mean(best))


def eleven_point_map(scores: Floats, positive: Bools) -> float:
    """Return the mean over classes of the 11-point average precision; `positive` is (n, classes)."""
    classes = [c for c in range(scores.shape[1]) if positive[:, c].any()]
    return float(np.mean([eleven_point_average_precision(scores[:, c], positive[:, c]) for c in classes]))


def registered_metric(set_name: str) -> Metric:
    """Return the paper's metric for a set; accuracy for a set that is not registered."""
    known = find_set(set_name)
    return known.metric if known else "accuracy"


def shown_name(metric: Metric) -> str:
    """Return the name of the metric that `evaluate` computes: PM-0 and PM-10 need whole videos, we score frames."""
    return "accuracy (frames)" if metric == "pm0-pm10" else metric


def has_several_classes(metric: Metric) -> bool:
    """Return whether an example may have several classes."""
    return metric == "11-point-map"


def evaluate(metric: Metric, scores: Floats, positive: Bools) -> float:
    """Return a metric by its registered name; `positive` is (n, classes), one class an example except for mAP.

    ROC AUC takes the second of two classes as positive.
    """
    labels = positive.argmax(axis=1)
    match metric:
        case "accuracy" | "pm0-pm10":
            return accuracy(scores, labels)
        case "mean-per-class":
            return mean_per_class(scores, labels)
        case "mean-top1-top5":
            return mean_top1_top5(scores, labels)
        case "11-point-map":
            return eleven_point_map(scores, positive)
        case "roc-auc":
            return roc_auc(scores[:, 1] - scores[:, 0], positive[:, 1])


def chance(metric: Metric, classes: int) -> float | None:
    """Return the expected score of random guessing; None for mAP, where it depends on the labels."""
    match metric:
        case "11-point-map":
            return None
        case "roc-auc":
            return 0.5
        case "mean-top1-top5":
            return (1 + min(5, classes)) / (2 * classes)
        case _:
            return 1 / classes
