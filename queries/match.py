"""Find the queries that a caption contains.

A query matches when its tokens (`queries.normal_form`) occur consecutively in the caption's. The queries form a trie
of tokens: words are numbered, and one hash table maps (node, next word), a pair of integers, to the next node. All
positions of a batch of captions descend the trie together, with one array operation per level, so the cost per caption
does not depend on the number of queries, and little time is spent in Python. Immutable once built: threads share it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from queries.int_table import IntTable
from queries.normal_form import as_strings, normalize, normalize_batch

Ints = npt.NDArray[np.int64]

_CHUNK_BYTES = 1 << 19
"""Bytes of captions matched at a time, about ten thousand captions: the arrays fit into the CPU's caches."""

_NONE = -1


class QueryMatcher:
    """Find all queries in captions. A query's id is its position in the sequence given.

    Queries that normalise to nothing never match; queries with the same normal form match together.
    """

    def __init__(self, queries: Iterable[str] | pa.Array | pa.ChunkedArray) -> None:
        normal = normalize_batch(as_strings(queries))
        matchable = np.flatnonzero(np.asarray(pc.binary_length(normal)) > 0)
        tokens = _Tokens.of(normal.take(pa.array(matchable)))
        self._words = {word: number for number, word in enumerate(tokens.vocabulary.to_pylist())}
        trie = _Trie.of(tokens)
        self._next, self._is_inner = trie.next, trie.is_inner

        # The ids of the queries that end in a node are consecutive; `_first` has their start, by node.
        self._ids = matchable[np.argsort(trie.ends, kind="stable")]
        self._first = np.searchsorted(np.sort(trie.ends), np.arange(len(trie.is_inner) + 1))

    def match(self, captions: Iterable[str | None] | pa.Array | pa.ChunkedArray) -> pa.ListArray:
        """Return, for each caption, the ids (int32) of the queries in it: sorted, each once; none for a null.

        Captions may be a list, a NumPy array, or an Arrow array or column of any string type.
        """
        captions = as_strings(captions)
        if len(captions) == 0:
            return pa.array([], pa.list_(pa.int32()))
        return pa.concat_arrays([self._match(chunk) for chunk in _chunks(pc.fill_null(captions, ""))])

    def _match(self, captions: pa.Array) -> pa.ListArray:
        tokens = _Tokens.of(normalize_batch(captions))
        number = self._words.get
        words = np.array([number(word, _NONE) for word in tokens.vocabulary.to_pylist()], dtype=np.int64)
        keys = np.concatenate([self._keys(row, node) for row, node in self._descend(words[tokens.codes], tokens.rows)])
        keys.sort()
        keys = keys[np.diff(keys, prepend=-1) != 0]
        offsets = np.searchsorted(keys, np.arange(len(captions) + 1) << 32)
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(keys.astype(np.int32)))

    def _descend(self, words: Ints, rows: Ints) -> Iterator[tuple[Ints, Ints]]:
        """Descend from every word that is a node, all in step; yield the rows and nodes reached, level by level."""
        position = np.flatnonzero(words >= 0)
        row, node = rows[position], words[position]
        words, rows = np.append(words, _NONE), np.append(rows, _NONE)
        while True:
            yield row, node
            inner = self._is_inner[node]
            position, row, node = position[inner] + 1, row[inner], node[inner]
            has_next = (rows[position] == row) & (words[position] >= 0)
            position, row, node = position[has_next], row[has_next], node[has_next]
            if len(position) == 0:
                return
            node = self._next.find((node << 32) | words[position]).astype(np.int64)
            reached = node >= 0
            position, row, node = position[reached], row[reached], node[reached]

    def _keys(self, row: Ints, node: Ints) -> Ints:
        """Return row << 32 | query id for the queries that end in the nodes."""
        first = self._first[node]
        count = self._first[node + 1] - first
        ends = count > 0
        row, first, count = row[ends], first[ends], count[ends]
        if count.max(initial=1) > 1:  # some queries have the same normal form
            total = np.cumsum(count)
            first = np.repeat(first - total + count, count) + np.arange(total[-1])
            row = np.repeat(row, count)
        return (row << 32) | self._ids[first]


@dataclass(frozen=True)
class _Tokens:
    """The concatenated tokens of normal forms, as indices into their vocabulary."""

    vocabulary: pa.Array
    codes: Ints
    rows: Ints

    @classmethod
    def of(cls, normal: pa.Array) -> "_Tokens":
        tokens = pc.split_pattern(normal, " ")
        encoded = pc.list_flatten(tokens).dictionary_encode()
        codes = np.asarray(encoded.indices, dtype=np.int64)
        return cls(encoded.dictionary, codes, np.asarray(pc.list_parent_indices(tokens), dtype=np.int64))


@dataclass(frozen=True)
class _Trie:
    """The queries as a trie of tokens. The node of a query's first token has the number of that token."""

    next: IntTable  # (node << 32) | token -> node
    is_inner: npt.NDArray[np.bool_]  # by node: whether it has children
    ends: Ints  # by query: its last node

    @classmethod
    def of(cls, tokens: _Tokens) -> "_Trie":
        start, length = _runs(tokens.rows)
        nodes = len(tokens.vocabulary)
        ends = tokens.codes[start]
        keys, values, inner = ([np.array([], dtype=np.int64)] for _ in range(3))
        for depth in range(1, int(length.max(initial=1))):
            longer = np.flatnonzero(length > depth)
            inner.append(ends[longer])
            steps, branch = np.unique((ends[longer] << 32) | tokens.codes[start[longer] + depth], return_inverse=True)
            keys.append(steps)
            values.append(np.arange(nodes, nodes + len(steps)))
            ends[longer] = nodes + branch
            nodes += len(steps)
        is_inner = np.zeros(nodes, dtype=bool)
        is_inner[np.concatenate(inner)] = True
        return cls(IntTable(np.concatenate(keys), np.concatenate(values).astype(np.int32)), is_inner, ends)


def _runs(rows: Ints) -> tuple[Ints, Ints]:
    """Return the start and length of the run of each row; every row has one."""
    start = np.flatnonzero(np.diff(rows, prepend=-1))
    return start, np.diff(start, append=len(rows))


def _chunks(rows: pa.Array) -> Iterator[pa.Array]:
    """Cut an array of strings into slices of about `_CHUNK_BYTES`, or one row where a row is longer."""
    chunk = np.cumsum(np.asarray(pc.binary_length(rows), dtype=np.int64)) // _CHUNK_BYTES
    starts = np.flatnonzero(np.diff(chunk, prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
        yield rows.slice(start, end - start)


def naive_match(queries: Sequence[str], caption: str) -> list[int]:
    """Return the ids of the queries in a caption, checking one query after the other: the definition, for tests."""
    text = f" {normalize(caption)} "
    normal = ((query_id, normalize(query)) for query_id, query in enumerate(queries))
    return [query_id for query_id, query in normal if query and f" {query} " in text]
