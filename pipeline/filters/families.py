"""Families of near-equal captions: "Product 1234 blue, size M", a thousand times with other numbers, colours and sizes.

Two captions are near if the Jaccard index of their sets of words is at least `similarity`; all numbers are one word,
and case does not count. With chains of near captions all captions about dogs would be one family, so a family is one
caption and some that are near it. Candidates come from MinHash signatures, cut into bands (Broder 1997; Leskovec,
Rajaraman and Ullman, chapter 3), and each is verified on the words: a near caption may be missed, none is wrong.

`caption_families` looks at captions in memory, for the report. For a pool of any size (stages/caption_families.py) the
family of a set of words is named by the first set, by a hash, among itself and those near it: band by band, `band_rows`
and `firsts_of_bands` find it.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dedup.duplicates import choose_survivors

SIMILARITY = 0.7

BAND_ROWS = pa.schema([("band", pa.uint64()), ("key", pa.uint64()), ("words", pa.list_(pa.int32()))])
"""A set of words in one of its bands; `key` is its hash."""

FIRSTS = pa.schema([("key", pa.uint64()), ("first", pa.uint64())])
"""A set of words, and one near it with a smaller key."""

_HASHES = 100
_MIN_CHANCE = 0.95  # that two captions just similar enough share a band
_MIN_WORDS = 4  # of fewer, two captions are near by chance
_COMPARED_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class WordSets:
    """The different words of some captions, flat, by caption and ascending in it."""

    row: np.ndarray  # (w,) which caption
    word: np.ndarray  # (w,) int64, the same number for the same word
    sizes: np.ndarray  # (n,) different words of each caption
    hashes: np.ndarray  # (w,) uint64, of the words

    @classmethod
    def of(cls, captions: pa.StringArray) -> "WordSets":
        """Return the words of captions, numbered by the first 31 bits of their hashes."""
        plain = pc.replace_substring_regex(pc.utf8_lower(captions), r"\d+", "0")
        plain = pc.utf8_trim_whitespace(pc.replace_substring_regex(plain, r"[^\pL\pM0]+", " "))
        lists = pc.split_pattern(plain, " ")
        coded = lists.flatten().dictionary_encode()
        joined = b"".join(
            hashlib.blake2b(word.encode(), digest_size=8).digest() for word in coded.dictionary.to_pylist()
        )
        hashes = np.frombuffer(joined, "<u8")[coded.indices.to_numpy()]
        row = np.repeat(np.arange(len(captions)), np.diff(lists.offsets.to_numpy()))
        order = np.lexsort((hashes, row))
        row, hashes = row[order], hashes[order]
        is_new = np.ones(len(row), bool)
        is_new[1:] = (row[1:] != row[:-1]) | (hashes[1:] != hashes[:-1])
        row, hashes = row[is_new], hashes[is_new]
        word = (hashes >> np.uint64(33)).astype(np.int64)
        return cls(row, word, np.bincount(row, minlength=len(captions)), hashes)

    @classmethod
    def sent(cls, words: pa.ListArray) -> "WordSets":
        """Return what `band_rows` sent, without the hashes."""
        sizes = np.diff(words.offsets.to_numpy())
        row = np.repeat(np.arange(len(words)), sizes)
        return cls(row, words.flatten().to_numpy().astype(np.int64), sizes, np.zeros(0, np.uint64))

    @cached_property
    def starts(self) -> np.ndarray:
        """Return where the words of each caption start, (n,) int64."""
        return np.cumsum(self.sizes) - self.sizes

    @cached_property
    def bits(self) -> np.ndarray:
        """Return of each caption, which must have words, the bits that its words set in 64, (n,) uint64."""
        return np.bitwise_or.reduceat(np.uint64(1) << (self.word.astype(np.uint64) & np.uint64(63)), self.starts)

    @property
    def keys(self) -> np.ndarray:
        """Return the hash of each set, (n,) uint64; the sets must have words."""
        return np.add.reduceat(self.hashes, self.starts)

    def only(self, rows: np.ndarray) -> "WordSets":
        """Return the sets of some captions; `rows` is sorted."""
        place = np.full(len(self.sizes), -1)
        place[rows] = np.arange(len(rows))
        of_them = place[self.row] >= 0
        return WordSets(place[self.row[of_them]], self.word[of_them], self.sizes[rows], self.hashes[of_them])

    def long(self) -> np.ndarray:
        """Return the captions with enough words to be in a family, (k,) int64."""
        return np.flatnonzero(self.sizes >= _MIN_WORDS)

    def are_near(self, first: np.ndarray, second: np.ndarray, similarity: float) -> np.ndarray:
        """Return which pairs of captions are near, (k,) bool.

        A bit of one that the other lacks is a word that it lacks: that tells most pairs apart.
        """
        total = self.sizes[first] + self.sizes[second]
        a, b = self.bits[first], self.bits[second]
        most = np.minimum(self.sizes[first] - np.bitwise_count(a & ~b), self.sizes[second] - np.bitwise_count(b & ~a))
        near = most >= similarity * (total - most) - 1e-6
        for part in np.array_split(np.flatnonzero(near), 1 + near.sum() // _COMPARED_AT_ONCE):
            shared = self._shared(first[part], second[part])
            near[part] = shared / (total[part] - shared) >= similarity
        return near

    def _shared(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return how many words two captions share, for pairs of rows, (k,) int64."""
        lengths = self.sizes[second]
        pair = np.repeat(np.arange(len(second)), lengths)
        within = np.arange(len(pair)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        wanted = (first[pair] << 31) + self.word[self.starts[second][pair] + within]
        place = np.minimum(np.searchsorted(self._places, wanted), max(0, len(self._places) - 1))
        is_shared = self._places[place] == wanted if len(wanted) else np.zeros(0, bool)
        return np.bincount(pair[is_shared], minlength=len(first)).astype(np.int64)

    @cached_property
    def _places(self) -> np.ndarray:
        return (self.row << 31) + self.word


def caption_families(captions: pa.StringArray, similarity: float = SIMILARITY) -> np.ndarray:
    """Return for each caption the row that represents its family, its own where it is in none: (n,) int64.

    In a band only neighbours and the first are compared, so a member may be left out.
    """
    everything = WordSets.of(captions)
    long = everything.long()
    sets = everything.only(long)
    first, second = _candidates(sets, similarity)
    near = sets.are_near(first, second, similarity) if len(first) else np.zeros(0, bool)
    edges = np.stack([long[first[near]], long[second[near]]], axis=1)
    degrees = np.bincount(edges.ravel(), minlength=len(captions))
    ranks = (len(captions) - degrees).astype(np.uint64)  # who has most near ones represents them
    return choose_survivors(np.arange(len(captions)), ranks, edges)


def word_set_keys(captions: pa.StringArray) -> np.ndarray:
    """Return the key of each caption's set of words, (n,) uint64; 0 for those in no family: they have too few words."""
    sets = WordSets.of(captions)
    long = sets.long()
    keys = np.zeros(len(captions), np.uint64)
    if len(long):
        keys[long] = sets.only(long).keys
    return keys


def band_rows(captions: pa.StringArray, keys: np.ndarray, similarity: float) -> pa.Table:
    """Return each set of words once in each of its bands, as BAND_ROWS; `keys` are the `word_set_keys`."""
    different, rows = np.unique(keys, return_index=True)
    rows = np.sort(rows[different != 0])
    sets = WordSets.of(captions.take(pa.array(rows)))
    offsets = pa.array(np.append(sets.starts, len(sets.word)).astype(np.int32))
    words = pa.ListArray.from_arrays(offsets, pa.array(sets.word.astype(np.int32)))
    bands = _bands(sets, similarity) if len(rows) else ()
    tables = [pa.table([band, keys[rows], words], BAND_ROWS) for band in bands]
    return pa.concat_tables([BAND_ROWS.empty_table(), *tables])


def firsts_of_bands(rows: pa.Table, similarity: float) -> pa.Table:
    """Return of each set of words in some whole bands the near one of smallest key there, where that is smaller.

    `rows` has the columns BAND_ROWS. Sets of a band are compared in the order of their keys, until one is near.
    """
    band, key = rows["band"].to_numpy(), rows["key"].to_numpy()
    order = np.lexsort((key, band))
    is_new = np.ones(len(order), bool)
    is_new[1:] = (band[order][1:] != band[order][:-1]) | (key[order][1:] != key[order][:-1])
    order = order[is_new]
    starts_band = np.ones(len(order), bool)
    starts_band[1:] = band[order][1:] != band[order][:-1]
    start = np.maximum.accumulate(np.where(starts_band, np.arange(len(order)), 0))
    sets = WordSets.sent(rows["words"].combine_chunks().take(pa.array(order)))
    found = np.full(len(order), -1)
    step = 0
    left = np.flatnonzero(~starts_band)
    while len(left):
        others = start[left] + step
        is_near = sets.are_near(others, left, similarity)
        found[left[is_near]] = others[is_near]
        step += 1
        left = left[~is_near]
        left = left[start[left] + step < left]
    has_first = found >= 0
    return pa.table([key[order][has_first], key[order][found[has_first]]], FIRSTS)


def _bands(sets: WordSets, similarity: float) -> Iterator[np.ndarray]:
    """Yield of each band the hash of each set's MinHashes in it, (n,) uint64."""
    bands, rows_of_band = bands_for(similarity)
    random = np.random.default_rng(1)
    for _ in range(bands):
        key = np.zeros(len(sets.sizes), np.uint64)
        for _ in range(rows_of_band):
            factor, term, mixer = random.integers(0, 1 << 63, 3, np.int64).astype(np.uint64) | np.uint64(1)
            lowest = np.minimum.reduceat((sets.hashes * factor + term) >> np.uint64(32), sets.starts)
            key = (key ^ lowest) * mixer
        yield key


def _candidates(sets: WordSets, similarity: float) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of sets that share a band: each with the first one in the band and with the one before it."""
    count = len(sets.sizes)
    pairs = [np.zeros(0, np.int64)]
    for key in _bands(sets, similarity) if count else ():
        order = np.argsort(key, kind="stable")
        is_first = np.ones(count, bool)
        is_first[1:] = key[order][1:] != key[order][:-1]
        places = np.flatnonzero(~is_first)
        firsts = np.maximum.accumulate(np.where(is_first, np.arange(count), 0))[places]
        members, before, first = order[places], order[places - 1], order[firsts]
        pairs += [before * count + members, first * count + members]
    found = np.unique(np.concatenate(pairs))
    return found // max(1, count), found % max(1, count)


def bands_for(similarity: float) -> tuple[int, int]:
    """Return how many bands of how many hashes: the longest that show two captions of this similarity nearly always.

    What shares a band without being near costs one comparison, so only missed captions count.
    """
    for rows in range(_HASHES, 1, -1):
        bands = _HASHES // rows
        if 1 - (1 - similarity**rows) ** bands >= _MIN_CHANCE:
            return bands, rows
    return _HASHES, 1
