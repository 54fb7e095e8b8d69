"""Look for entries that do harm or no good: they never match, match too much, repeat another, or are not words.

no_tokens     normalises to nothing, so it never matches
duplicate     has the normal form of an earlier entry, so it matches the same strings
too_long      longer than any phrase a caption is likely to hold
digits        numbers only: they match sizes, dates and file names
single        one letter or digit: it matches initials, and what apostrophes leave ("dog's")
too_common    found in a large share of a sample of captions, as stop words are
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from queries.match import QueryMatcher
from queries.normal_form import is_word, normalize_batch

REASONS = ("no_tokens", "duplicate", "too_long", "digits", "single", "too_common")
DEFAULT_MAX_CHARS = 100
DEFAULT_MAX_SHARE = 0.1


@dataclass(frozen=True)
class Findings:
    """What is wrong with a list: for each reason the rows, and the share of the sample that each query matches.

    A row may stand under several reasons. `shares` is None without a sample.
    """

    rows: dict[str, npt.NDArray[np.int64]]
    shares: npt.NDArray[np.float64] | None

    def dropped(self, keep: Iterable[str] = ()) -> npt.NDArray[np.int64]:
        """Return the rows to drop, sorted: those with any reason but the ones to keep."""
        reasons = [rows for reason, rows in self.rows.items() if reason not in set(keep)]
        return np.unique(np.concatenate([np.array([], dtype=np.int64), *reasons]))

    def examples(self, reason: str, count: int) -> npt.NDArray[np.int64]:
        """Return the rows to show for a reason: the first, or those that match most."""
        rows = self.rows[reason]
        if reason == "too_common" and self.shares is not None:
            rows = rows[np.argsort(-self.shares[rows], kind="stable")]
        return rows[:count]


def lint(
    queries: pa.Array,
    captions: Iterable[pa.Array] = (),
    *,
    max_chars: int = DEFAULT_MAX_CHARS,
    max_share: float = DEFAULT_MAX_SHARE,
) -> Findings:
    """Check queries, one after the other and against a sample of captions in batches."""
    normal = normalize_batch(queries)
    shares = _measure_shares(queries, captions)
    codes = np.asarray(normal.dictionary_encode().indices, dtype=np.int64)
    repeats = np.ones(len(codes), dtype=bool)
    repeats[np.unique(codes, return_index=True)[1]] = False
    chars = np.asarray(pc.utf8_length(normal))
    found = {
        "no_tokens": chars == 0,
        "duplicate": repeats & (chars > 0),
        "too_long": chars > max_chars,
        "digits": np.asarray(pc.match_substring_regex(normal, r"^\p{Nd}+( \p{Nd}+)*$")),
        "single": np.array([len(text) == 1 and is_word(text) for text in normal.to_pylist()], dtype=bool),
        "too_common": np.zeros(len(codes), dtype=bool) if shares is None else shares > max_share,
    }
    return Findings({reason: np.flatnonzero(found[reason]) for reason in REASONS}, shares)


def _measure_shares(queries: pa.Array, captions: Iterable[pa.Array]) -> npt.NDArray[np.float64] | None:
    """Return the share of the captions that each query matches; None of no captions."""
    matcher = None
    matches = np.zeros(len(queries), dtype=np.int64)
    total = 0
    for batch in captions:
        matcher = matcher or QueryMatcher(queries.to_pylist())
        matches += np.bincount(np.asarray(matcher.match(batch).values), minlength=len(queries))
        total += len(batch)
    return matches / total if total else None
