"""A few of the rows that are dropped, for people to look at: a seeded sample for each reason, whatever the runner."""

import hashlib
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from pipeline.records import Reason

EXAMPLES_PER_REASON = 20
NEVER_SHOWN = frozenset({Reason.BLOCKED_HOST, Reason.OPTED_OUT})
"""Reasons whose rows are counted only: what is on a block list, and what its owner does not want to be used."""

DROPPED = pa.schema([("reason", pa.string()), ("url", pa.string()), ("caption", pa.string()), ("source", pa.string())])
_SHOWN_CHARS = 1_000


class Examples:
    """A uniform sample of at most EXAMPLES_PER_REASON rows for each reason, of rows that come in batches."""

    def __init__(self, name: str, source: str) -> None:
        """Seed the sample by the name of the unit that reads the rows."""
        self._random = np.random.default_rng(list(hashlib.blake2b(name.encode(), digest_size=16).digest()))
        self._source = source
        self._found: dict[str, list[tuple[float, str, str]]] = {}  # of each reason, those with the smallest numbers

    def add(self, reasons: np.ndarray, urls: pa.StringArray, captions: pa.StringArray) -> None:
        """Consider the rows of a batch; "" is not a reason."""
        numbers = self._random.random(len(reasons))
        for reason in np.unique(reasons).tolist():
            if reason and reason not in NEVER_SHOWN:
                places = np.flatnonzero(reasons == reason)
                places = places[np.argsort(numbers[places], kind="stable")[:EXAMPLES_PER_REASON]]
                rows = pa.array(places)
                shown = zip(
                    numbers[places].tolist(), urls.take(rows).to_pylist(), captions.take(rows).to_pylist(), strict=True
                )
                merged = sorted([*self._found.get(reason, []), *shown])
                self._found[reason] = merged[:EXAMPLES_PER_REASON]

    def table(self) -> pa.Table:
        """Return the sample, columns of DROPPED; the smallest numbers first, so that samples can be shortened."""
        rows = [
            (reason, url, caption[:_SHOWN_CHARS], self._source)
            for reason, found in sorted(self._found.items())
            for _, url, caption in found
        ]
        columns: Mapping[str, list[str]] = (
            dict(zip(DROPPED.names, map(list, zip(*rows, strict=True)), strict=True)) if rows else {}
        )
        return pa.table({name: pa.array(columns.get(name, []), pa.string()) for name in DROPPED.names}, DROPPED)
