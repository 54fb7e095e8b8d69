"""Count the words and bigrams of running text, a batch at a time.

Words are the tokens of the normal form that consist of letters and digits. A bigram is two consecutive words of one
line with only separators between them: "ice-cream" is a bigram, "ice + cream" is not. In scripts without spaces tokens
are letters, not words; their entries come from titles.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from queries.normal_form import is_word, normalize_batch

COUNTS = pa.schema([("first", pa.string()), ("second", pa.string()), ("count", pa.int64())])
"""How often words and bigrams occur; `second` is empty for single words."""


def count_text(lines: pa.Array) -> pa.Table:
    """Return the words and bigrams of lines of text with their counts, as COUNTS, in no particular order."""
    tokens = _Tokens.of(normalize_batch(lines))
    return pa.concat_tables([tokens.count_words(), tokens.count_bigrams()])


def add_up(counts: pa.Table) -> pa.Table:
    """Return COUNTS with one row per word and bigram, and the sum of its counts."""
    summed = counts.group_by(["first", "second"], use_threads=False).aggregate([("count", "sum")])
    return summed.rename_columns(["first", "second", "count"])


@dataclass(frozen=True)
class _Tokens:
    """The tokens of lines of text, as indices into their vocabulary."""

    vocabulary: pa.Array
    is_word: npt.NDArray[np.bool_]  # of the vocabulary
    codes: npt.NDArray[np.int64]
    line: npt.NDArray[np.int64]

    @classmethod
    def of(cls, normal: pa.Array) -> "_Tokens":
        tokens = pc.split_pattern(pc.fill_null(normal, ""), " ")
        encoded = pc.list_flatten(tokens).dictionary_encode()
        words = np.array([is_word(token) for token in encoded.dictionary.to_pylist()], dtype=bool)
        codes = np.asarray(encoded.indices, dtype=np.int64)
        return cls(encoded.dictionary, words, codes, np.asarray(pc.list_parent_indices(tokens), dtype=np.int64))

    def count_words(self) -> pa.Table:
        codes, counts = np.unique(self.codes[self.is_word[self.codes]], return_counts=True)
        empty = pa.repeat(pa.scalar("", pa.string()), len(codes))
        return pa.table([self.vocabulary.take(pa.array(codes)), empty, counts], schema=COUNTS)

    def count_bigrams(self) -> pa.Table:
        word = self.is_word[self.codes]
        pairs = word[:-1] & word[1:] & (self.line[:-1] == self.line[1:])
        keys = self.codes[:-1][pairs] * len(self.vocabulary) + self.codes[1:][pairs]
        keys, counts = np.unique(keys, return_counts=True)
        first, second = np.divmod(keys, max(len(self.vocabulary), 1))
        columns = [self.vocabulary.take(pa.array(codes)) for codes in (first, second)]
        return pa.table([*columns, counts], schema=COUNTS)
