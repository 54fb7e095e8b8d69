"""Compute the positions of the bars and marks of the report's charts; the template draws them as SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Bar:
    """One bar of a column chart, in SVG user units from the upper left corner."""

    series: int
    x: float
    y: float
    width: float
    height: float
    label: str
    value: int


@dataclass(frozen=True)
class GridLine:
    """A horizontal line of a chart and its value."""

    y: float
    value: int


def count_buckets(counts: np.ndarray) -> tuple[int, ...]:
    """Return how many counts are 0, 1, 2-3, 4-7, 8-15, ...: a histogram on a log scale."""
    if not len(counts):
        return ()
    return tuple(np.bincount(np.frexp(counts.astype(np.float64))[1], minlength=1).tolist())


def bucket_label(bucket: int) -> str:
    """Name a bucket of `count_buckets`: 0, 1, 2-3, ..."""
    if bucket <= 1:
        return str(bucket)
    return f"{2 ** (bucket - 1):,}–{2**bucket - 1:,}"


def bars(
    series: Sequence[Sequence[int]], labels: Sequence[str], width: float, height: float, *, log: bool = False
) -> list[Bar]:
    """Return the bars of one or more series side by side, one group per label."""
    top = max((value for values in series for value in values), default=0)
    slot = width / max(1, len(labels))
    thickness = slot * 0.84 / len(series)
    found = []
    for number, values in enumerate(series):
        for place, value in enumerate(values):
            if value:
                size = round(height * _fraction(value, top, log), 2)
                x = round(slot * (place + 0.08) + thickness * number, 2)
                found.append(Bar(number, x, round(height - size, 2), round(thickness, 2), size, labels[place], value))
    return found


def histogram(counts: Sequence[int], labels: Sequence[str], width: float, height: float) -> list[Bar]:
    """Return the bars of one series from its first to its last that is not empty."""
    places = [place for place, count in enumerate(counts) if count]
    if not places:
        return []
    inside = slice(places[0], places[-1] + 1)
    return bars([counts[inside]], labels[inside], width, height)


def grid(series: Sequence[Sequence[int]], height: float) -> list[GridLine]:
    """Return the powers of ten up to the largest value, as lines of a log chart."""
    top = max((value for values in series for value in values), default=0)
    lines = range(int(math.log10(top)) + 1) if top else range(0)
    return [GridLine(round(height * (1 - _fraction(10**n, top, True)), 2), 10**n) for n in lines]


def cap_place(cap: int, buckets: int, width: float) -> float:
    """Return the x of a count on the scale of `count_buckets`, inside its bucket in proportion."""
    mantissa, exponent = math.frexp(cap)
    return round(width * (exponent + 2 * mantissa - 1) / max(1, buckets), 2)


def round_ceiling(value: float) -> float:
    """Return the smallest of some round fractions, 0.01 to 1, that is not below a value: the end of an axis."""
    return next((end for end in (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.5) if value <= end), 1.0)


def _fraction(value: float, top: float, log: bool) -> float:
    """Return the height of a value as a fraction of the chart; on a log scale a value of 1 is still visible."""
    return math.log10(value * 2) / math.log10(top * 2) if log else value / top
