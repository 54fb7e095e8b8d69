"""Families of near-equal captions: "Product 1234 blue, size M", a thousand times with other numbers, colours and sizes.

Two captions are near if the Jaccard index of their sets of words is at least `similarity`; all numbers are one word,
and case does not count. A family is a caption and those near it: with chains of near captions, all captions about dogs
would be one. Candidates come from MinHash signatures, cut into bands (Broder 1997; Leskovec, Rajaraman and Ullman,
chapter 3), and each is verified on the words. In a band only neighbours and the first are compared, so a member may be
left out; none is wrong.
"""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dedup.duplicates import choose_survivors

_HASHES = 64
_MIN_CHANCE = 0.95  # that two captions just similar enough share a band
_MIN_WORDS = 4  # of fewer, two captions are near by chance


def caption_families(captions: pa.StringArray, similarity: float = 0.7) -> np.ndarray:
    """Return for each caption the row that represents its family, its own where it is in none: (n,) int64."""
    row, word, hashes = _word_sets(captions)
    sizes = np.bincount(row, minlength=len(captions))
    first, second = _candidates(row, hashes, sizes, similarity)
    shared = _shared_words(row, word, sizes, first, second)
    near = shared >= similarity * (sizes[first] + sizes[second] - shared)
    edges = np.stack([first[near], second[near]], axis=1)
    degrees = np.bincount(edges.ravel(), minlength=len(captions))
    ranks = (len(captions) - degrees).astype(np.uint64)  # who has most near ones represents them
    return choose_survivors(np.arange(len(captions)), ranks, edges)


def _word_sets(captions: pa.StringArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the different words of each caption, flat: row, number of the word, 64-bit hash of the word, by row."""
    plain = pc.replace_substring_regex(pc.utf8_lower(captions), r"\d+", "0")
    plain = pc.utf8_trim_whitespace(pc.replace_substring_regex(plain, r"[^\pL\pM0]+", " "))
    lists = pc.split_pattern(plain, " ")
    coded = lists.flatten().dictionary_encode()
    words = coded.dictionary.to_pylist()
    rows = np.repeat(np.arange(len(captions)), np.diff(lists.offsets.to_numpy()))
    keys = np.unique(rows.astype(np.int64) * max(1, len(words)) + coded.indices.to_numpy().astype(np.int64))
    row, word = np.divmod(keys, max(1, len(words)))
    hashed = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in words)
    return row, word, np.frombuffer(hashed, "<u8")[word]


def _candidates(
    row: np.ndarray, hashes: np.ndarray, sizes: np.ndarray, similarity: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of rows that share a band: each with the first row of the band and with the one before it."""
    long = np.flatnonzero(sizes >= _MIN_WORDS)
    is_long = sizes[row] >= _MIN_WORDS
    starts = np.cumsum(sizes[long]) - sizes[long]
    bands, rows_of_band = bands_for(similarity)
    random = np.random.default_rng(1)
    pairs = [np.zeros(0, np.int64)]
    for _ in range(bands if len(long) else 0):
        key = np.zeros(len(long), np.uint64)
        for _ in range(rows_of_band):
            factor, term, mixer = random.integers(0, 1 << 63, 3, np.int64).astype(np.uint64) | np.uint64(1)
            lowest = np.minimum.reduceat((hashes[is_long] * factor + term) >> np.uint64(32), starts)
            key = (key ^ lowest) * mixer
        order = np.argsort(key, kind="stable")
        is_first = np.ones(len(key), bool)
        is_first[1:] = key[order][1:] != key[order][:-1]
        places = np.flatnonzero(~is_first)
        firsts = np.maximum.accumulate(np.where(is_first, np.arange(len(key)), 0))[places]
        members, before, first = long[order[places]], long[order[places - 1]], long[order[firsts]]
        pairs += [before * len(sizes) + members, first * len(sizes) + members]
    found = np.unique(np.concatenate(pairs))
    return found // max(1, len(sizes)), found % max(1, len(sizes))


def bands_for(similarity: float) -> tuple[int, int]:
    """Return how many bands of how many hashes: the longest that show two captions of this similarity nearly always.

    What shares a band without being near costs one comparison, so only missed captions count.
    """
    for rows in range(_HASHES, 1, -1):
        bands = _HASHES // rows
        if 1 - (1 - similarity**rows) ** bands >= _MIN_CHANCE:
            return bands, rows
    return _HASHES, 1


def _shared_words(
    row: np.ndarray, word: np.ndarray, sizes: np.ndarray, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
    """Return how many words two captions share, for pairs of rows, (k,) int64."""
    ends = np.cumsum(sizes)
    lengths = sizes[second]
    pair = np.repeat(np.arange(len(second)), lengths)
    within = np.arange(len(pair)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    words = word[(ends - sizes)[second][pair] + within]
    width = int(word.max(initial=0)) + 1
    keys = row * width + word  # sorted: rows are in order, and words within a row
    wanted = first[pair] * width + words
    place = np.minimum(np.searchsorted(keys, wanted), max(0, len(keys) - 1))
    is_shared = keys[place] == wanted if len(keys) else np.zeros(0, bool)
    return np.bincount(pair[is_shared], minlength=len(first)).astype(np.int64)
