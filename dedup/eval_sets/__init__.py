"""The evaluation sets that are known by name."""

from dedup.eval_sets.registry import (
    EvalSet,
    Metric,
    find_set,
    known_sets,
    registered,
    threshold_bits,
    threshold_probability,
)

__all__ = ["EvalSet", "Metric", "find_set", "known_sets", "registered", "threshold_bits", "threshold_probability"]
