"""Find all 256-bit hashes within a Hamming distance of a query, exactly or nearly so, in plain NumPy.

Small indexes are scanned. Large ones use multi-index hashing (Norouzi, Punjani and Fleet, "Fast Exact Search in Hamming
Space with Multi-Index Hashing", 2014): the hash is a 16x16 grid of bits, cut into 16 rows and again into 16 columns of
16 bits, and a candidate must agree with the query in at least one whole row or column. Every candidate is then measured
in full, so no match is ever wrong. None is missed up to 15 bits, where some row must be free of errors (pigeonhole). At
31 randomly placed errors 1 % are missed; docs/dedup.md has the measurements on real images.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from dedup.mapped_arrays import create_array

HASH_BYTES = 32
BANDS = 16
BAND_BITS = 16
EXACT_BITS = BANDS - 1
"""Up to this distance a search misses nothing, regardless of the size of the index."""

SCANNED_ROWS = 8_192
"""Up to here a scan is about as fast as the tables, and exact at every distance."""

_TABLES = ("words", "buckets", "offsets")
# Rows measured at once: bounds the memory of a search to some 30 MB, and stays near the processor's caches.
_CANDIDATES = 1 << 18


class Matches(NamedTuple):
    """Pairs within the distance, sorted by query row, then index row; three arrays of one length."""

    query_rows: np.ndarray  # int64
    index_rows: np.ndarray  # int64
    distances: np.ndarray  # uint16, bits


@dataclass(frozen=True)
class HammingIndex:
    """An index of hashes; create one with `build`."""

    words: np.ndarray  # (n, 4) uint64
    buckets: np.ndarray | None  # (32 bands, n) int32: row numbers in the order of the band's value; None: scan
    offsets: np.ndarray | None  # (32 bands, 65537) int32: where the bucket of each value starts

    @classmethod
    def build(cls, hashes: np.ndarray, folder: Path | None = None) -> Self:
        """Index hashes, `(n, 32)` uint8. Tables take 160 bytes per hash and 8 MB; small sets 32 bytes per hash.

        With a folder, those of a large set are written there and mapped.
        """
        words = _words(hashes)
        if len(words) <= SCANNED_ROWS:
            return cls(words, None, None)
        keys = all_band_keys(hashes)
        shape = (2 * BANDS, len(words))
        if folder is None:
            buckets: np.ndarray = np.empty(shape, np.int32)
        else:
            buckets = create_array(folder / "buckets.npy", np.int32, shape)
        offsets = np.zeros((2 * BANDS, 2**BAND_BITS + 1), np.int32)
        for band in range(2 * BANDS):
            buckets[band] = np.argsort(keys[:, band], kind="stable")
            np.cumsum(np.bincount(keys[:, band], minlength=2**BAND_BITS), out=offsets[band, 1:])
        if folder is None:
            return cls(words, buckets, offsets)
        np.save(folder / "words.npy", words)
        np.save(folder / "offsets.npy", offsets)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Map the files that `build` wrote; the processes of a machine share their pages."""
        return cls(*(np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in _TABLES))

    def __len__(self) -> int:
        return len(self.words)

    def search(self, queries: np.ndarray, max_distance_bits: int) -> Matches:
        """Return the indexed hashes within `max_distance_bits` (0..31) of each query, `(m, 32)` uint8."""
        if not 0 <= max_distance_bits < 2 * BANDS:
            raise ValueError(f"max_distance_bits = {max_distance_bits}: must be 0 to {2 * BANDS - 1}")
        words = _words(queries)
        if self.buckets is None:
            return _scan(self.words, words, max_distance_bits)
        bands = BANDS if max_distance_bits <= EXACT_BITS else 2 * BANDS
        keys = all_band_keys(queries)[:, :bands]
        found = [
            _measure(self.words, words, query_rows, index_rows, max_distance_bits)
            for query_rows, index_rows in self._candidates(keys)
        ]
        return _merge(found, len(self.words))

    def _candidates(self, keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield blocks of (query rows, index rows) that share a band; a pair may come up once per band."""
        assert self.buckets is not None
        assert self.offsets is not None
        bands = np.arange(keys.shape[1])
        starts = self.offsets[bands, keys].astype(np.int64)
        counts = self.offsets[bands, keys.astype(np.int64) + 1] - starts
        flat = self.buckets.ravel()
        for ranges, places in expand_ranges((starts + bands * len(self)).ravel(), counts.ravel(), _CANDIDATES):
            yield ranges // len(bands), flat[places]


def search_by_scan(hashes: np.ndarray, queries: np.ndarray, max_distance_bits: int) -> Matches:
    """Compare every query with every hash: the definition of what `HammingIndex.search` finds."""
    return _scan(_words(hashes), _words(queries), max_distance_bits)


def band_keys(hashes: np.ndarray) -> np.ndarray:
    """Return the 16 rows of each hash as `(n, 16)` uint16: two hashes within 15 bits share one at the same place."""
    return _checked(hashes).view(">u2").astype(np.uint16)


def all_band_keys(hashes: np.ndarray) -> np.ndarray:
    """Return the 16 rows, then the 16 columns of each hash as `(n, 32)` uint16."""
    rows = band_keys(hashes)
    grid = rows.copy()
    # Transpose a 16x16 bit matrix: swap the off-diagonal quarters, at four sizes (Warren, "Hacker's Delight", 7-3).
    for half, low in ((8, 0x00FF), (4, 0x0F0F), (2, 0x3333), (1, 0x5555)):
        upper, lower = grid.reshape(-1, BANDS // half // 2, 2, half).transpose(2, 0, 1, 3)
        swap = (upper ^ lower >> half) & low
        upper ^= swap
        lower ^= swap << half
    return np.concatenate([rows, grid], axis=1)


def expand_ranges(starts: np.ndarray, counts: np.ndarray, limit: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield every place in the ranges `starts[i] .. starts[i] + counts[i] - 1` as (range numbers, places).

    They come in order, in blocks of at most `limit` places (more where one range alone is longer).
    """
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + limit, side="right")))
        sizes = counts[start:stop]
        ranges = np.repeat(np.arange(start, stop), sizes)
        yield ranges, np.arange(before, ends[stop - 1]) - (ends - counts)[ranges] + starts[ranges]
        start = stop


def distances_bits(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the Hamming distance of each row of `a` to the same row of `b`; both `(n, 32)` uint8, result uint16."""
    return _popcount(_words(a) ^ _words(b))


def _checked(hashes: np.ndarray) -> np.ndarray:
    if hashes.dtype != np.uint8 or hashes.ndim != 2 or hashes.shape[1] != HASH_BYTES:
        raise ValueError(f"need hashes as (n, {HASH_BYTES}) uint8, not {hashes.shape} {hashes.dtype}")
    return np.ascontiguousarray(hashes)


def _words(hashes: np.ndarray) -> np.ndarray:
    return _checked(hashes).view(np.uint64)


def _popcount(words: np.ndarray) -> np.ndarray:
    ones = np.bitwise_count(words).T
    total = ones[0].astype(np.uint16)
    for column in ones[1:]:  # five times as fast as sum(axis=-1) on four columns
        total += column
    return total


def _measure(
    index: np.ndarray, queries: np.ndarray, query_rows: np.ndarray, index_rows: np.ndarray, max_distance_bits: int
) -> Matches:
    distances = _popcount(index.take(index_rows, axis=0) ^ queries.take(query_rows, axis=0))
    near = distances <= max_distance_bits
    return Matches(query_rows[near], index_rows[near].astype(np.int64), distances[near])


def _scan(index: np.ndarray, queries: np.ndarray, max_distance_bits: int) -> Matches:
    rows_at_once = max(1, _CANDIDATES // max(1, len(index)))
    found = []
    for start in range(0, len(queries), rows_at_once):
        block = queries[start : start + rows_at_once]
        distances = np.zeros((len(block), len(index)), np.uint16)
        for word in range(index.shape[1]):
            distances += np.bitwise_count(block[:, word, None] ^ index[None, :, word])
        query_rows, index_rows = np.nonzero(distances <= max_distance_bits)
        found.append(Matches(query_rows + start, index_rows, distances[query_rows, index_rows]))
    return _merge(found, len(index))


def _merge(found: list[Matches], index_size: int) -> Matches:
    """Join blocks of matches, sort them, and keep each pair once."""
    if not found:
        return Matches(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint16))
    joined = Matches(*(np.concatenate(column) for column in zip(*found, strict=True)))
    _, first = np.unique(joined.query_rows * index_size + joined.index_rows, return_index=True)
    return Matches(*(column[first] for column in joined))
