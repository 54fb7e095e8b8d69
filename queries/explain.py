"""Explain one query: whether it is in a list, its origins, what it matches, and how often."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from queries.allowlist import Allowlist
from queries.normal_form import normalize, normalize_batch


@dataclass(frozen=True)
class Entry:
    """An entry of a list: its id, spelling, and score by origin."""

    id: int
    query: str
    scores: dict[str, float | None]


@dataclass(frozen=True)
class Explanation:
    """The entries of a list that are related to a text.

    `entry` has the same normal form; None if no entry does. `inside` are the other entries that match every caption
    that the text matches; `around`, entries that contain it.
    """

    normal_form: str
    entry: Entry | None
    inside: list[Entry]
    around: list[Entry]


def explain(allowlist: Allowlist, text: str) -> Explanation:
    """Find the entries of a list that are related to a text."""
    form = normalize(text)
    normal = normalize_batch(allowlist.table["query"].combine_chunks())
    is_same = pc.equal(normal, form or None)
    lengths = pc.unique(pc.add(pc.count_substring(normal, " "), 1)).to_pylist()
    is_inside = pc.and_not(pc.is_in(normal, pa.array(_spans(form, lengths), pa.string())), is_same)
    is_around = pc.and_not(_contains(normal, form), is_same)
    same, inside, around = (_entries(allowlist, mask) for mask in (is_same, is_inside, is_around))
    return Explanation(form, same[0] if same else None, inside, around)


def _spans(form: str, lengths: Iterable[int]) -> list[str]:
    """Return the runs of the tokens of a normal form, of these lengths."""
    tokens = form.split(" ") if form else []
    starts = ((start, length) for length in lengths for start in range(len(tokens) - length + 1))
    return list({" ".join(tokens[start : start + length]) for start, length in starts})


def _contains(normal: pa.Array, form: str) -> pa.Array:
    """Return which normal forms contain another one, at token boundaries."""
    if not form:
        return pa.repeat(False, len(normal))
    padded = pc.binary_join_element_wise("", normal, "", " ")
    return pc.match_substring(padded, f" {form} ")


def _entries(allowlist: Allowlist, mask: pa.Array) -> list[Entry]:
    ids = pc.indices_nonzero(pc.fill_null(mask, False))
    rows = allowlist.table.take(ids).to_pylist()
    return [
        Entry(query_id, row["query"], dict(zip(row["origins"], row["score"], strict=True)))
        for query_id, row in zip(ids.to_pylist(), rows, strict=True)
    ]


@dataclass
class Occurrences:
    """The number of captions searched, how many of them match a query, and the first of these."""

    captions: int = 0
    matches: int = 0
    examples: list[str] = field(default_factory=list)


def count_occurrences(text: str, captions: Iterable[pa.Array], examples: int = 3) -> Occurrences:
    """Search batches of captions for one query."""
    occurrences = Occurrences()
    form = normalize(text)
    for batch in captions:
        hits = batch.filter(pc.fill_null(_contains(normalize_batch(batch), form), False))
        occurrences.captions += len(batch)
        occurrences.matches += len(hits)
        occurrences.examples += hits[: examples - len(occurrences.examples)].to_pylist()
    return occurrences
