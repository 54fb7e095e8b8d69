import pyarrow as pa

from queries.allowlist import Allowlist
from queries.explain import Entry, count_occurrences, explain
from queries.list_files import SCHEMA

ROWS = [
    ("Dog", ["wordnet", "unigram"], [7.0, 500.0]),
    ("hot dog", ["wordnet"], [2.0]),
    ("hot", ["unigram"], [90.0]),
    ("hot-dog stand", ["title"], [12.0]),
    ("dogs", ["unigram"], [None]),
]
LIST = Allowlist(pa.Table.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in ROWS], schema=SCHEMA), "0")


def names(entries: list[Entry]) -> list[str]:
    return [entry.query for entry in entries]


def test_an_entry_is_found_by_its_normal_form() -> None:
    found = explain(LIST, "HOT-DOG!")
    assert found.normal_form == "hot dog"
    assert found.entry == Entry(1, "hot dog", {"wordnet": 2.0})
    assert names(found.inside) == ["Dog", "hot"]
    assert names(found.around) == ["hot-dog stand"]


def test_scores_are_given_by_origin() -> None:
    entry = explain(LIST, "dog").entry
    assert entry is not None
    assert entry.scores == {"wordnet": 7.0, "unigram": 500.0}


def test_a_text_that_is_no_entry() -> None:
    found = explain(LIST, "a very hot dog")
    assert found.entry is None
    assert names(found.inside) == ["Dog", "hot dog", "hot"]
    assert found.around == []


def test_a_long_text_is_no_harder_than_the_lengths_of_the_entries() -> None:
    rows = [*ROWS, ("x " * 100_000, ["web"], [None])]
    table = pa.Table.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in rows], schema=SCHEMA)
    found = explain(Allowlist(table, "0"), "y " * 30_000 + "hot dog")
    assert names(found.inside) == ["Dog", "hot dog", "hot"]


def test_a_text_that_never_matches() -> None:
    found = explain(LIST, "?!")
    assert (found.normal_form, found.entry, found.inside, found.around) == ("", None, [], [])


def test_occurrences_are_counted_over_batches() -> None:
    batches = [pa.array(["Dog", None, "dogs", "(dog)"]), pa.array(["a dog's"]), pa.array([], pa.string())]
    found = count_occurrences("dog", batches, examples=2)
    assert (found.captions, found.matches, found.examples) == (5, 3, ["Dog", "(dog)"])
    assert count_occurrences("?!", batches).matches == 0
