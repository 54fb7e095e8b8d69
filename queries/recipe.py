"""The recipe of the list: the sources, the number of entries of each, and what a list lacks if sources are missing.

The paper's list (CLIP section 2.2) has the words that occur at least 100 times in English Wikipedia, its bigrams of
high pointwise mutual information, the titles of its articles above a search volume, and the WordNet synsets not among
these: 500,000 entries. It gives no other threshold; the fractions below are close to those of its reconstruction,
MetaCLIP (Table 1: 86,654 synsets, 251,465 words, 100,646 bigrams, 61,235 titles).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from queries.origins import bigrams, titles, unigrams, wordnet
from queries.origins import wordfreq as word_frequencies
from queries.selection import Selection, Source, select

DEFAULT_SIZE = 500_000

# In the order of selection. Titles fill the rest.
_FRACTIONS = {wordnet.ORIGIN: 0.2, unigrams.ORIGIN: 0.5, bigrams.ORIGIN: 0.2, titles.ORIGIN: None}

_LACKS = {
    wordnet.ORIGIN: "no WordNet synsets (--wordnet)",
    unigrams.ORIGIN: "no words counted in Wikipedia (--dump)",
    bigrams.ORIGIN: "no bigrams by mutual information (--dump)",
    titles.ORIGIN: "no article titles by page views (--pageviews)",
}
_STARTER_LACKS = [
    "words come from wordfreq's mix of texts, not from Wikipedia alone, and none is rarer than one in 10^8 words",
    "no bigrams by mutual information: the only phrases are WordNet's",
    "no article titles: names of people, places, works and products are missing unless they are common single words",
    "synonyms of synsets are entries too, not only their names: they fill the room of bigrams and titles",
]


@dataclass(frozen=True)
class Recipe:
    """The list's size and thresholds. Budgets count new entries; None: the origin's default fraction of the size."""

    size: int = DEFAULT_SIZE
    min_count: int = unigrams.DEFAULT_MIN_COUNT
    min_bigram_count: int = bigrams.DEFAULT_MIN_COUNT
    min_views: int = 1
    synsets: int | None = None
    unigrams: int | None = None
    bigrams: int | None = None
    titles: int | None = None

    @property
    def budgets(self) -> dict[str, int | None]:
        """New entries of each origin in the first pass, in the order of selection; None: all that fit."""
        chosen = dict(zip(_FRACTIONS, (self.synsets, self.unigrams, self.bigrams, self.titles), strict=True))
        defaults = {origin: None if part is None else round(part * self.size) for origin, part in _FRACTIONS.items()}
        return {origin: defaults[origin] if chosen[origin] is None else chosen[origin] for origin in _FRACTIONS}


def choose(recipe: Recipe, candidates: Mapping[str, pa.Table]) -> tuple[Selection, list[str]]:
    """Choose a list from the candidates of each origin; also return what it lacks compared with the recipe."""
    sources = [Source(origin, candidates[origin], n) for origin, n in recipe.budgets.items() if origin in candidates]
    chosen = select(sources, recipe.size)
    missing = [what for origin, what in _LACKS.items() if origin not in candidates]
    return chosen, missing + _shortage(recipe.size, chosen)


def choose_starter(size: int, wordnet_folder: str) -> tuple[Selection, list[str]]:
    """Choose a list from the words of wordfreq and all lemmas of WordNet, to start without a dump.

    Raises:
        InputError: wordfreq is not installed, or the folder does not hold WordNet.
    """
    lemmas = wordnet.wordnet_queries(wordnet_folder, synonyms=True)
    sources = [
        Source(wordnet.ORIGIN, lemmas, round(0.2 * size)),
        Source(word_frequencies.ORIGIN, word_frequencies.word_frequency_queries()),
    ]
    chosen = select(sources, size)
    return chosen, _STARTER_LACKS + _shortage(size, chosen)


def _shortage(size: int, chosen: Selection) -> list[str]:
    missing = size - chosen.table.num_rows
    return [f"{missing:,} of {size:,} entries: the sources have no more"] if missing else []
