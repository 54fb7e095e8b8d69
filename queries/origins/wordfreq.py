"""A first list without a dump: the word frequencies of the package `wordfreq` (extra `[starter]`).

They are frequencies of English words in eight kinds of text (Wikipedia, subtitles, news, books, web, Twitter, Reddit,
...), rounded to 1 % steps; bigrams and titles are not included.
"""

import re

import pyarrow as pa

from queries.errors import InputError
from queries.list_files import CANDIDATES
from queries.normal_form import normalize_batch

ORIGIN = "wordfreq"

_DIGITS = re.compile(r"\d[\d.,]*\d")
"""wordfreq counts numbers by their shape: "0000" is the count of all four-digit numbers, not a word."""


def word_frequency_queries(language: str = "en") -> pa.Table:
    """Return the words of wordfreq's largest list as CANDIDATES, best first; the score is occurrences per 10^9 words.

    Raises:
        InputError: wordfreq is not installed.
    """
    try:
        from wordfreq import get_frequency_dict
    except ImportError:
        raise InputError(
            "--starter needs the wordfreq package: run pip install '.[starter]' in the project's folder"
        ) from None
    frequencies = get_frequency_dict(language, wordlist="large")
    words = [word for word in frequencies if not _DIGITS.search(word)]
    tokens = normalize_batch(pa.array(words, pa.string())).to_pylist()
    # "in.the" and "don't" are several tokens: as queries they would be phrases, "in the" and "don t".
    ranked = [word for word, normal in zip(words, tokens, strict=True) if " " not in normal]
    ranked.sort(key=lambda word: (-frequencies[word], word))
    scores = [round(frequencies[word] * 1e9, 3) for word in ranked]
    return pa.table([pa.array(ranked), pa.repeat(ORIGIN, len(ranked)), pa.array(scores)], schema=CANDIDATES)
