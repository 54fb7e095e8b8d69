"""In which order a query takes its pairs: at random, the best first, or at random by weight.

Each order is a 64-bit priority of (query, pair), and a query selects the `cap` smallest, so that the cap is as hard and
the selection as independent of machines as with random priorities.

    random      the hash of (seed, query, uid)
    best        the score, equal scores by the hash
    weighted    the `cap` largest of score / temperature + Gumbel noise made of the hash: a sample without replacement
                with weights exp(score / temperature) (Efraimidis and Spirakis 2006)

Logarithms are interpolated in a table that decimal arithmetic makes: `numpy.log` differs in the last bit between
processors, and two workers must not differ about one pair.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Literal

import numpy as np
import orjson
import pyarrow as pa

_STEPS = 1_024
_LN2 = 0.6931471805599453


@dataclass(frozen=True)
class Ranking:
    """An order of the pairs of a query."""

    by: Literal["random", "best", "weighted"] = "random"
    temperature: float = 1.0
    kept: str | None = None
    """The key of `extra` that has the score, a number that a source stated; None: the column `score`."""

    @property
    def needs_scores(self) -> bool:
        return self.by != "random"

    @property
    def columns(self) -> list[str]:
        """Return the column that `scores` reads, if there is any."""
        return ["score" if self.kept is None else "extra"] if self.needs_scores else []

    def scores(self, pairs: pa.Table) -> np.ndarray | None:
        """Return the score of each pair, (n,) float32, NaN where there is none."""
        if not self.needs_scores:
            return None
        if self.kept is None:
            return np.asarray(pairs["score"].to_numpy().astype(np.float32))
        return kept_numbers(pairs["extra"].to_pylist(), self.kept)

    def priorities(self, hashes: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Return the priority of pairs of hash (n,) uint64 and score (n,) float32, NaN last: (n,) uint64."""
        if self.by == "random":
            return hashes
        if self.by == "best":
            return _descending(scores).astype(np.uint64) << np.uint64(32) | hashes >> np.uint64(32)
        uniform = ((hashes >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
        values = scores.astype(np.float64) / self.temperature - log(-log(uniform))
        return _descending(values)


RANDOM = Ranking()


def kept_numbers(extras: Sequence[str | None], key: str) -> np.ndarray:
    """Return the numbers under a key of JSON objects, also those written as text, (n,) float32, NaN where there is
    none."""
    found = np.full(len(extras), np.nan, np.float32)
    with np.errstate(over="ignore"):  # beyond float32 is infinite
        for row, extra in enumerate(extras):
            value = None if extra is None else orjson.loads(extra).get(key)
            if isinstance(value, str | int | float) and not isinstance(value, bool):
                try:
                    found[row] = np.float32(float(value))
                except (ValueError, OverflowError):
                    continue
    return found


def _descending(values: np.ndarray) -> np.ndarray:
    """Return unsigned integers of the same width in the opposite order of floats; NaN comes last."""
    kind, sign = (np.uint32, 31) if values.dtype == np.float32 else (np.uint64, 63)
    bits = (values + values.dtype.type(0)).view(kind)  # -0 becomes 0
    ascending = np.where(bits >> kind(sign), ~bits, bits | kind(1 << sign))
    return np.where(np.isnan(values), ~kind(0), ~ascending)


def log(x: np.ndarray) -> np.ndarray:
    """Return the natural logarithm of positive float64, to 2e-7, the same bits on every machine."""
    mantissa, exponent = np.frexp(x)
    at = (mantissa - 0.5) * (2 * _STEPS)
    step = np.minimum(at.astype(np.int64), _STEPS - 1)
    table = _table()
    return table[step] + (at - step) * (table[step + 1] - table[step]) + exponent * _LN2


@cache
def _table() -> np.ndarray:
    """Return the logarithms of 1/2, ..., 1."""
    return np.array([float((Decimal(_STEPS + i) / (2 * _STEPS)).ln()) for i in range(_STEPS + 1)])
