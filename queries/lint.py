"""Find harmful or useless entries: those that never match, match too much, repeat another, or are not words.

no_tokens     normalises to nothing, so it never matches
duplicate     has the normal form of an earlier entry, so it matches the same strings
too_long      longer than any phrase a caption is likely to hold
digits        numbers only: they match sizes, dates and file names
single        one letter or digit: it matches initials, and what apostrophes leave ("dog's")
too_common    matches a large fraction of a sample of captions, as stop words do
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
DEFAULT_MAX_FRACTION = 0.1


@dataclass(frozen=True)
class Findings:
    """The rows with problems, by reason, and the fraction of the sample that each query matches.

    A row may have several reasons. `fractions` is None without a sample.
    """

    rows: dict[str, npt.NDArray[np.int64]]
    fractions: npt.NDArray[np.float64] | None

    def dropped(self, keep: Iterable[str] = ()) -> npt.NDArray[np.int64]:
        """Return the rows to drop, sorted: those with any reason but the ones to keep."""
        reasons = [rows for reason, rows in self.rows.items() if reason not in set(keep)]
        return np.unique(np.concatenate([np.array([], dtype=np.int64), *reasons]))

    def examples(self, reason: str, count: int) -> npt.NDArray[np.int64]:
        """Return the rows to show for a reason: the first, or those that match most."""
        rows = self.rows[reason]
        if reason == "too_common" and self.fractions is not None:
            rows = rows[np.argsort(-self.fractions[rows], kind="stable")]
        return rows[:count]


def lint(
    queries: pa.Array,
    captions: Iterable[pa.Array] = (),
    *,
    max_chars: int = DEFAULT_MAX_CHARS,
    max_fraction: float = DEFAULT_MAX_FRACTION,
) -> Findings:
    """Check queries by their text, and against a sample of captions in batches."""
    normal = normalize_batch(queries)
    fractions = _match_fractions(queries, captions)
    codes = np.asarray(normal.dictionary_encode().indices, dtype=np.int64)
    repeats = np.ones(len(codes), dtype=bool)
    repeats[np.unique(codes, return_index=True)[1]] = False
    chars = np.asarray(pc.utf8_length(normal))
    has_reason = {
        "no_tokens": chars == 0,
        "duplicate": repeats & (chars > 0),
        "too_long": chars > max_chars,
        "digits": np.asarray(pc.match_substring_regex(normal, r"^\p{Nd}+( \p{Nd}+)*$")),
        "single": np.array([len(text) == 1 and is_word(text) for text in normal.to_pylist()], dtype=bool),
        "too_common": np.zeros(len(codes), dtype=bool) if fractions is None else fractions > max_fraction,
    }
    return Findings({reason: np.flatnonzero(has_reason[reason]) for reason in REASONS}, fractions)


def _match_fractions(queries: pa.Array, captions: Iterable[pa.Array]) -> npt.NDArray[np.float64] | None:
    """Return the fraction of the captions that each query matches; None if there are no captions."""
    matcher = None
    matches = np.zeros(len(queries), dtype=np.int64)
    total = 0
    for batch in captions:
        matcher = matcher or QueryMatcher(queries.to_pylist())
        matches += np.bincount(np.asarray(matcher.match(batch).values), minlength=len(queries))
        total += len(batch)
    return matches / total if total else None
