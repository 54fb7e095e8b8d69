"""Which queries does a caption contain?

A query matches when its normal form is found in the caption's, at token boundaries on both sides (`queries.normalize`).
Both are padded with one space, so that this is a plain substring search; an Aho-Corasick automaton does it for all
queries in one pass over the caption, whatever their number. Once built it never changes: threads share it.
"""

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from ahocorasick_rs import BytesAhoCorasick, Implementation

from queries.normalize import normalize, normalize_batch, values_buffer

# Captions searched in one go. One match is a Python tuple of three integers for a moment, about 150 bytes.
_CHUNK_BYTES = 1 << 20


class QueryMatcher:
    """Find all queries in captions. A query's id is its position in the sequence given.

    Queries that normalise to nothing never match; queries with the same normal form match together.
    """

    def __init__(self, queries: Sequence[str]) -> None:
        normal = normalize_batch(pa.array(queries, pa.string()))
        self._ids = np.flatnonzero(pc.binary_length(normal).to_numpy(zero_copy_only=False) > 0)
        patterns = [b" " + query + b" " for query in normal.take(pa.array(self._ids)).cast(pa.binary()).to_pylist()]
        self._automaton = BytesAhoCorasick(patterns, implementation=Implementation.ContiguousNFA)

    def match(self, captions: pa.StringArray) -> pa.ListArray:
        """Return, for each caption, the ids (int32) of the queries in it: sorted, each once; none for a null."""
        if len(captions) == 0:
            return pa.array([], pa.list_(pa.int32()))
        normal = pc.fill_null(normalize_batch(captions), "").cast(pa.large_string())
        return pa.concat_arrays([self._match_normal(rows) for rows in _chunks(normal)])

    def _match_normal(self, rows: pa.Array) -> pa.ListArray:
        """Match captions in normal form, which all become one text: " one caption \\n another \\n"."""
        space, end, nothing = (pa.scalar(text, pa.large_string()) for text in (" ", " \n", ""))
        padded = pc.binary_join_element_wise(space, rows, end, nothing)
        ends = np.cumsum(pc.binary_length(padded).to_numpy())
        found = self._automaton.find_matches_as_indexes(values_buffer(padded), overlapping=True)
        pattern, _, end_of_match = _columns(found)

        # Matches come by their end, so the captions are in order. One sort of (caption, id) pairs, each in one number,
        # puts the ids of each caption in order and repetitions side by side.
        matches = np.diff(np.searchsorted(end_of_match, ends, side="right"), prepend=0)
        keys = np.repeat(np.arange(len(rows)) << 32, matches) | self._ids[pattern]
        keys.sort()
        keys = keys[np.diff(keys, prepend=-1) != 0]
        offsets = np.searchsorted(keys, np.arange(len(rows) + 1) << 32)
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(keys.astype(np.int32)))


def _columns(found: list[tuple[int, int, int]]) -> npt.NDArray[np.int64]:
    flat = np.fromiter(chain.from_iterable(found), dtype=np.int64, count=3 * len(found))
    return flat.reshape(-1, 3).T


def _chunks(rows: pa.Array) -> Iterator[pa.Array]:
    """Cut an array of strings into slices of about `_CHUNK_BYTES`, or one row where a row is longer."""
    start_byte = np.cumsum(pc.binary_length(rows).to_numpy()) // _CHUNK_BYTES
    starts = np.flatnonzero(np.diff(start_byte, prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
        yield rows.slice(start, end - start)


def naive_match(queries: Sequence[str], caption: str) -> list[int]:
    """Return the ids of the queries in a caption, by asking one query after the other: the definition, for tests."""
    text = f" {normalize(caption)} "
    normal = ((query_id, normalize(query)) for query_id, query in enumerate(queries))
    return [query_id for query_id, query in normal if query and f" {query} " in text]
