"""Counts of the characters of many captions at once."""

import sys
import unicodedata
from dataclasses import dataclass
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_SPACE, _LETTER, _UNSPACED = 1, 2, 4
_SCRIPTS_WITHOUT_SPACES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # kana
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0x20000, 0x323AF),
)


@dataclass(frozen=True)
class Characters:
    """The code points of n captions, one after the other; caption i begins at `starts[i]`."""

    points: np.ndarray  # (characters,) uint32
    starts: np.ndarray  # (n,) int64
    lengths: np.ndarray  # (n,) int64

    @classmethod
    def of(cls, captions: pa.StringArray) -> "Characters":
        lengths = pc.utf8_length(captions).to_numpy(zero_copy_only=False).astype(np.int64)
        joined = "".join(captions.to_pylist())
        points = np.frombuffer(joined.encode("utf-32-le"), "<u4")
        return cls(points, np.cumsum(lengths) - lengths, lengths)

    def _sums(self, is_counted: np.ndarray) -> np.ndarray:
        totals = np.concatenate([[0], np.cumsum(is_counted, dtype=np.int64)])
        return totals[self.starts + self.lengths] - totals[self.starts]

    def words(self) -> np.ndarray:
        """Return how many words each caption has, (n,) int64: the parts between single spaces."""
        return np.where(self.lengths > 0, self._sums(self.points == ord(" ")) + 1, 0)

    def letter_fractions(self) -> np.ndarray:
        """Return what fraction of the characters other than spaces are letters or their marks, (n,) float64."""
        kinds = _kinds()[self.points]
        shown = self._sums(kinds & _SPACE == 0)
        return self._sums(kinds & _LETTER != 0) / np.maximum(shown, 1)

    def need_spaces(self) -> np.ndarray:
        """Return which captions have no character of a script that is written without spaces, (n,) bool."""
        return self._sums(_kinds()[self.points] & _UNSPACED != 0) == 0

    def longest_runs(self) -> np.ndarray:
        """Return the length of the longest run of one character in each caption, (n,) int64; runs of spaces too."""
        if not len(self.points):
            return np.zeros(len(self.starts), np.int64)
        is_first = np.ones(len(self.points), bool)
        is_first[1:] = self.points[1:] != self.points[:-1]
        is_first[self.starts[self.lengths > 0]] = True
        firsts = np.flatnonzero(is_first)
        runs = np.diff(np.append(firsts, len(self.points)))
        longest = np.zeros(len(self.starts), np.int64)
        full = np.flatnonzero(self.lengths > 0)
        longest[full] = np.maximum.reduceat(runs, np.searchsorted(firsts, self.starts[full]))
        return longest


@cache
def _kinds() -> np.ndarray:
    """Return what each code point is: a space, a letter or mark, of a script without spaces."""
    categories = [unicodedata.category(chr(point))[0] for point in range(sys.maxunicode + 1)]
    kinds = np.zeros(len(categories), np.uint8)
    letters = np.array(categories)
    kinds[letters == "Z"] |= _SPACE
    kinds[(letters == "L") | (letters == "M")] |= _LETTER
    for first, last in _SCRIPTS_WITHOUT_SPACES:
        kinds[first : last + 1] |= _UNSPACED
    return kinds
