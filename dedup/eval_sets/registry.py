"""Load the registered evaluation sets from registry.toml, checked and typed."""

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal, get_args

Kind = Literal["folder", "webdataset", "parquet"]
Metric = Literal["accuracy", "mean-per-class", "11-point-map", "mean-top1-top5", "roc-auc", "pm0-pm10"]
Basis = Literal["stated", "reconstructed", "candidate"]


@dataclass(frozen=True, slots=True)
class EvalSet:
    """One evaluation set; registry.toml explains the fields."""

    name: str
    title: str
    classes: int
    metric: Metric
    basis: Basis
    test_images: int | None = None
    clip_overlap_percent: float | None = None
    max_distance_bits: int | None = None
    min_probability: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if self.metric not in get_args(Metric) or self.basis not in get_args(Basis):
            raise ValueError(f"registry.toml: {self.name}: metric {self.metric!r} or basis {self.basis!r} is unknown")

    @property
    def is_registered(self) -> bool:
        """Whether the set is one of the 35."""
        return self.basis != "candidate"


@cache
def known_sets() -> tuple[EvalSet, ...]:
    """Return all 38 sets, those outside the 35 last."""
    text = resources.files(__package__).joinpath("registry.toml").read_text(encoding="utf-8")
    return tuple(EvalSet(**entry) for entry in tomllib.loads(text)["sets"])


def registered() -> tuple[EvalSet, ...]:
    """Return the 35 registered sets."""
    return tuple(known for known in known_sets() if known.is_registered)


def find_set(name: str) -> EvalSet | None:
    """Return the known set of that name; None for a set of the user's own."""
    return next((known for known in known_sets() if known.name == name), None)


def threshold_bits(name: str, default: int) -> int:
    """Return the PDQ distance up to which images match a set: `default`, or the registry's if that is stricter."""
    known = find_set(name)
    return default if known is None or known.max_distance_bits is None else min(default, known.max_distance_bits)


def threshold_probability(name: str, default: float) -> float:
    """Return the minimum probability of an edited copy: `default`, or the registry's if that is stricter."""
    known = find_set(name)
    return default if known is None or known.min_probability is None else max(default, known.min_probability)
