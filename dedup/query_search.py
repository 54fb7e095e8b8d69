"""All queries of a set in its report, small enough for one page: lines, in gzip and base64, that its script reads.

A line is the query and the pairs found, planned and kept, separated by tabs; most found first, ties by the text. Half a
million queries take some six megabytes.
"""

import base64
import gzip
from collections.abc import Iterable, Sequence

import numpy as np

_LEVEL = 9


def encode_queries(queries: Sequence[str], found: np.ndarray, planned: np.ndarray, kept: np.ndarray) -> str:
    """Return the table for the page; the arrays have one number for each query. Equal tables give equal text."""
    order = sorted(range(len(queries)), key=lambda i: (-int(found[i]), queries[i]))
    lines = (f"{_one_cell(queries[i])}\t{found[i]}\t{planned[i]}\t{kept[i]}\n" for i in order)
    return base64.b64encode(gzip.compress("".join(lines).encode(), _LEVEL, mtime=0)).decode()


def decode_queries(encoded: str) -> Iterable[tuple[str, int, int, int]]:
    """Yield query, found, planned, kept."""
    for line in gzip.decompress(base64.b64decode(encoded)).decode().splitlines():
        query, *numbers = line.split("\t")
        yield query, int(numbers[0]), int(numbers[1]), int(numbers[2])


def _one_cell(query: str) -> str:
    return " ".join(query.split())
