"""The exact balance: at most `cap` pairs per query, the same on any runner and in any order (CLIP section 2.2).

Every (query, pair) has a priority: a 64-bit hash keyed by the seed, the query's text and the pair's uid. A query
selects the `cap` pairs of smallest priority (all of them, if it has no more than that), and a pair stays if at least
one query selects it.

No pair is ever grouped under its query. Scan 1 counts matches per query. For a query with more than `cap`, priorities
are uniform, so the cap-th smallest lies near cap/count: scan 2 counts the pairs below a narrow window around that
point and collects only the priorities inside it, which is enough to name the cap-th smallest exactly. Scan 3 compares.
If the pairs were selected before, as in the second balance after deduplication, or are ranked by a score (ranking.py),
priorities are not uniform, and such a window may miss. Then histograms narrow the whole range, 256-fold at a time,
until few enough keys are inside.

Pure NumPy; the stages wire it into Beam.
"""

import binascii
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.records import pair_uid
from pipeline.stages.balance.ranking import RANDOM, Ranking

ALL = np.uint64(0xFFFF_FFFF_FFFF_FFFF)

WINDOW_SIGMAS = 8.0
"""Half-width of a window in standard deviations of the cap-th smallest of `count` uniform numbers."""

NARROWING = 256
"""The number of parts into which a histogram cuts a window."""

PRIORITY_FIELDS = ("priority", "high", "low")
PRIORITY = np.dtype([(name, "<u8") for name in PRIORITY_FIELDS])
"""A pair's sort key for a query: its priority, ties broken by the uid as a 128-bit number."""


def query_hashes(queries: Sequence[str], seed: int) -> np.ndarray:
    """Return one 64-bit key per query, (n,) uint64: keyed by the text, so that a list's order does not matter."""
    key = seed.to_bytes(8, "little")
    hashes = (hashlib.blake2b(query.encode(), digest_size=8, key=key).digest() for query in queries)
    return np.frombuffer(b"".join(hashes), dtype="<u8")


PACKED_UID = pa.binary(16)
"""A uid as bytes: half the size of its hex characters, the same order, and no limit of 2 GiB to a column."""

_UID_CHARS = 32


def pack_uids(uids: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return uids (32 hex characters each) as PACKED_UID."""
    if isinstance(uids, pa.ChunkedArray):
        uids = uids.combine_chunks()
    hexadecimal = uids.cast(pa.binary(_UID_CHARS))
    first = hexadecimal.offset * _UID_CHARS
    text = memoryview(hexadecimal.buffers()[1])[first : first + len(hexadecimal) * _UID_CHARS]
    packed = pa.py_buffer(binascii.unhexlify(text))
    return pa.FixedSizeBinaryArray.from_buffers(PACKED_UID, len(hexadecimal), [None, packed])


def unpack_uids(packed: pa.ChunkedArray) -> pa.Array:
    """Return uids as strings again; nulls stay."""
    whole = pa.concat_arrays([pa.nulls(0, PACKED_UID), *packed.chunks])
    first, width = whole.offset * PACKED_UID.byte_width, PACKED_UID.byte_width
    text = pa.py_buffer(binascii.hexlify(memoryview(whole.buffers()[1])[first : first + len(whole) * width]))
    ends = pa.py_buffer(np.arange(len(whole) + 1, dtype=np.int32) * _UID_CHARS)
    return pc.if_else(whole.is_valid(), pa.StringArray.from_buffers(len(whole), ends, text), None)


def uid_numbers(uids: pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return the high and low 64 bits of uids, strings or packed, two (n,) uint64 arrays."""
    packed = uids if uids.type == PACKED_UID else pack_uids(uids)
    if isinstance(packed, pa.ChunkedArray):
        packed = packed.combine_chunks()
    width = PACKED_UID.byte_width
    words = np.frombuffer(packed.buffers()[1], ">u8", 2 * len(packed), packed.offset * width).reshape(-1, 2)
    numbers = words.astype("<u8")
    return numbers[:, 0], numbers[:, 1]


def _mix(x: np.ndarray) -> np.ndarray:
    """Apply MurmurHash3's 64-bit finaliser: every input bit flips each output bit with probability 1/2."""
    x = x ^ (x >> np.uint64(33))
    x = x * np.uint64(0xFF51AFD7ED558CCD)
    x = x ^ (x >> np.uint64(33))
    x = x * np.uint64(0xC4CEB9FE1A85EC53)
    return x ^ (x >> np.uint64(33))


def priorities(keys: np.ndarray, high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Return the priority of pairs for queries: query keys and uid halves, all (n,) uint64, to (n,) uint64."""
    with np.errstate(over="ignore"):
        return _mix(_mix(_mix(high ^ keys) + low) + keys)


@dataclass(frozen=True)
class Matches:
    """The (pair, query) matches of some pairs, flat: row i of the pairs matches query `query[k]` where `row[k] ==
    i`."""

    row: np.ndarray
    query: np.ndarray
    key: np.ndarray  # PRIORITY

    @classmethod
    def of(
        cls,
        uids: pa.Array | pa.ChunkedArray,
        query_ids: pa.Array | pa.ChunkedArray,
        keys: np.ndarray,
        ranking: Ranking = RANDOM,
        scores: np.ndarray | None = None,
    ) -> "Matches":
        """Flatten a table's columns; `keys` is the array of `query_hashes`, `scores` are what the ranking needs."""
        lists = query_ids.combine_chunks() if isinstance(query_ids, pa.ChunkedArray) else query_ids
        lengths = np.diff(lists.offsets.to_numpy())
        query = lists.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
        high, low = uid_numbers(uids)
        row = np.repeat(np.arange(len(lists)), lengths)
        key = np.empty(len(row), PRIORITY)
        key["high"], key["low"] = high[row], low[row]
        hashes = priorities(keys[query], key["high"], key["low"])
        key["priority"] = hashes if scores is None else ranking.priorities(hashes, scores[row])
        return cls(row, query, key)


def count_matches(query_ids: pa.Array | pa.ChunkedArray, query_count: int) -> np.ndarray:
    """Return how many pairs match each query, (query_count,) int64. Scan 1."""
    lists = query_ids.combine_chunks() if isinstance(query_ids, pa.ChunkedArray) else query_ids
    return np.bincount(lists.flatten().to_numpy(zero_copy_only=False), minlength=query_count).astype(np.int64)


@dataclass(frozen=True)
class Windows:
    """The ranges in which the cap-th smallest priority of each head query is searched: `low <= priority <= high`,
    arrays by head."""

    head: np.ndarray  # (h,) query ids, ascending
    low: np.ndarray  # (h,) uint64
    high: np.ndarray  # (h,) uint64

    @classmethod
    def around(cls, counts: np.ndarray, cap: int, sigmas: float = WINDOW_SIGMAS) -> "Windows":
        """Place a window for every query with more than `cap` matches."""
        head = np.flatnonzero(counts > cap)
        n = counts[head].astype(np.float64)
        expected = cap / n
        spread = sigmas * np.sqrt(expected * (1 - expected) / n) + sigmas / n
        return cls(head, _scaled(expected - spread), _scaled(expected + spread))

    @property
    def steps(self) -> np.ndarray:
        """Return the width of each of the NARROWING parts of a window, (h,) uint64."""
        return (self.high - self.low) // np.uint64(NARROWING) + np.uint64(1)

    def part(self, first: int, last: int) -> "Windows":
        """Return the windows of a range of heads."""
        return Windows(self.head[first:last], self.low[first:last], self.high[first:last])

    def whole(self, queries: np.ndarray) -> "Windows":
        """Return windows over the whole range for some of these queries."""
        head = np.sort(queries)
        return Windows(head, np.zeros(len(head), np.uint64), np.full(len(head), ALL))


def _place(matches: Matches, windows: Windows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return, for the matches of head queries: the index into `windows`, the key, whether it is below the window."""
    position = np.searchsorted(windows.head, matches.query)
    position[position == len(windows.head)] = 0
    is_head = windows.head[position] == matches.query if len(windows.head) else np.zeros(len(position), bool)
    position, key = position[is_head], matches.key[is_head]
    return position, key, key["priority"] < windows.low[position]


def _scaled(share: np.ndarray) -> np.ndarray:
    """Map fractions of the range to 64-bit integers, saturating at both ends."""
    numbers = np.zeros(len(share), np.uint64)
    inside = (share > 0) & (share < 1)
    numbers[inside] = (share[inside] * 2.0**64).astype(np.uint64)
    numbers[share >= 1] = ALL
    return numbers


@dataclass(frozen=True)
class WindowCount:
    """The result of scan 2 over some pairs: per head query, how many lie below its window, and the keys inside it."""

    below: np.ndarray  # (h,) int64
    head: np.ndarray  # (k,) positions in Windows.head
    key: np.ndarray  # (k,) PRIORITY

    @classmethod
    def of(cls, parts: Iterable[Matches], windows: Windows) -> "WindowCount":
        """Count and collect from the matches of some pairs."""
        return cls.total([cls._of(matches, windows) for matches in parts])

    @classmethod
    def _of(cls, matches: Matches, windows: Windows) -> "WindowCount":
        position, key, under = _place(matches, windows)
        inside = ~under & (key["priority"] <= windows.high[position])
        return cls(np.bincount(position[under], minlength=len(windows.head)), position[inside], key[inside])

    def split(self, bounds: Sequence[tuple[int, int]]) -> list["WindowCount"]:
        """Cut into the counts of consecutive ranges of head queries, positions counted from each range's start."""
        order = np.argsort(self.head, kind="stable")
        head, key = self.head[order], self.key[order]
        cuts = [(np.searchsorted(head, a), np.searchsorted(head, b)) for a, b in bounds]
        return [
            WindowCount(self.below[a:b], head[i:j] - a, key[i:j]) for (a, b), (i, j) in zip(bounds, cuts, strict=True)
        ]

    @classmethod
    def total(cls, parts: Sequence["WindowCount"]) -> "WindowCount":
        """Add up the counts of disjoint sets of pairs; an empty sum is the neutral element."""
        parts = [p for p in parts if len(p.below)]
        if not parts:
            return cls(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, PRIORITY))
        return cls(
            np.sum([p.below for p in parts], axis=0),
            np.concatenate([p.head for p in parts]),
            np.concatenate([p.key for p in parts]),
        )


@dataclass(frozen=True)
class WindowHistogram:
    """The distribution of the priorities of some pairs over the windows."""

    below: np.ndarray  # (h,) int64
    inside: np.ndarray  # (h, NARROWING) int64

    @classmethod
    def of(cls, parts: Iterable[Matches], windows: Windows) -> "WindowHistogram":
        """Count the matches of some pairs."""
        below = np.zeros(len(windows.head), np.int64)
        inside = np.zeros((len(windows.head), NARROWING), np.int64)
        for matches in parts:
            position, key, under = _place(matches, windows)
            below += np.bincount(position[under], minlength=len(below))
            within = ~under & (key["priority"] <= windows.high[position])
            position, priority = position[within], key["priority"][within]
            np.add.at(inside, (position, (priority - windows.low[position]) // windows.steps[position]), 1)
        return cls(below, inside)

    def split(self, bounds: Sequence[tuple[int, int]]) -> list["WindowHistogram"]:
        """Cut into the counts of consecutive ranges of head queries."""
        return [WindowHistogram(self.below[a:b], self.inside[a:b]) for a, b in bounds]

    @classmethod
    def total(cls, parts: Sequence["WindowHistogram"]) -> "WindowHistogram":
        """Add up the counts of disjoint sets of pairs; an empty sum is the neutral element."""
        parts = [p for p in parts if len(p.below)]
        if not parts:
            return cls(np.zeros(0, np.int64), np.zeros((0, NARROWING), np.int64))
        return cls(np.sum([p.below for p in parts], axis=0), np.sum([p.inside for p in parts], axis=0))

    def narrowed(self, windows: Windows, cap: int) -> tuple[Windows, np.ndarray]:
        """Return the part of each window that contains the cap-th smallest priority, and how many keys are inside it.
        The windows must contain it.
        """
        up_to = self.below[:, None] + np.cumsum(self.inside, axis=1)
        part = np.argmax(up_to >= cap, axis=1)
        low = windows.low + part.astype(np.uint64) * windows.steps
        high = np.minimum(windows.high - low, windows.steps - np.uint64(1)) + low
        return Windows(windows.head, low, high), self.inside[np.arange(len(part)), part]


@dataclass(frozen=True)
class Thresholds:
    """The largest key that each query selects; the largest possible key if it selects everything."""

    key: np.ndarray  # (query_count,) PRIORITY

    @classmethod
    def unlimited(cls, query_count: int) -> "Thresholds":
        return cls(np.full(query_count, np.array((ALL, ALL, ALL), PRIORITY)))

    def selects(self, matches: Matches) -> np.ndarray:
        """Return which of the matches are selected by their query, (k,) bool. Scan 3."""
        limit, key = self.key[matches.query], matches.key
        smaller, equal = key["priority"] < limit["priority"], key["priority"] == limit["priority"]
        for name in ("high", "low"):
            smaller |= equal & (key[name] < limit[name])
            equal &= key[name] == limit[name]
        return smaller | equal


def find_thresholds(windows: Windows, count: WindowCount, cap: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the key of the cap-th smallest pair of each head query, and which queries' windows missed it. Two arrays
    over `windows.head`: (h,) PRIORITY and (h,) bool; the first is undefined where the second is true.
    """
    order = np.lexsort((count.key["low"], count.key["high"], count.key["priority"], count.head))
    head, key = count.head[order], count.key[order]
    starts = np.searchsorted(head, np.arange(len(windows.head)))
    ends = np.searchsorted(head, np.arange(len(windows.head)), side="right")
    wanted = starts + (cap - 1 - count.below)
    missed = (count.below >= cap) | (wanted >= ends)
    keys = np.zeros(len(windows.head), PRIORITY)
    keys[~missed] = key[wanted[~missed]]
    return keys, missed


def selected_lists(matches: Matches, selected: np.ndarray, rows: int) -> pa.ListArray:
    """Return per pair the ids of the queries that select it, as list<int32>; empty if none does."""
    lengths = np.bincount(matches.row[selected], minlength=rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(matches.query[selected].astype(np.int32)))


def balance(pairs: pa.Table, cap: int, seed: int = 0, queries: Sequence[str] | None = None) -> pa.Table:
    """Balance pairs in memory: return those that a query selects, with the column `selected_by`, list<int32>.

    `pairs` has the column `query_ids` (lists of query numbers, as `QueryMatcher.match` returns them) and either `uid`
    or `url` and `caption`, of which the uid is made. `queries` are the texts of the numbers: with the texts of the
    allowlist and uids as in a build, the selection is that of a build. Without them, a query's number is its text.

    Raises:
        ValueError: a column is missing, or `cap` is less than 1.
    """
    if cap < 1:
        raise ValueError(f"cap = {cap}: must be 1 or more")
    query_ids = pairs["query_ids"].cast(pa.list_(pa.int32()))
    query_count = len(queries) if queries is not None else (pc.max(pc.list_flatten(query_ids)).as_py() or 0) + 1
    texts = [str(number) for number in range(query_count)] if queries is None else list(queries)
    if not pairs.num_rows:
        return pairs.append_column("selected_by", query_ids)
    matches = Matches.of(_uids_of(pairs), query_ids, query_hashes(texts, seed))
    order = np.lexsort((matches.key["low"], matches.key["high"], matches.key["priority"], matches.query))
    first = np.searchsorted(matches.query[order], matches.query[order])
    selected = np.zeros(len(order), bool)
    selected[order] = np.arange(len(order)) - first < cap
    lists = selected_lists(matches, selected, pairs.num_rows)
    chosen = pairs.append_column("selected_by", lists)
    return chosen.filter(pc.greater(pc.list_value_length(lists), 0))


def _uids_of(pairs: pa.Table) -> pa.ChunkedArray | pa.Array:
    if "uid" in pairs.column_names:
        return pairs["uid"].cast(pa.string())
    if not {"url", "caption"} <= set(pairs.column_names):
        raise ValueError(f"need a column uid, or url and caption; the columns are {', '.join(pairs.column_names)}")
    urls, captions = pairs["url"].to_pylist(), pairs["caption"].to_pylist()
    return pa.array([pair_uid(url, caption) for url, caption in zip(urls, captions, strict=True)], pa.string())
