import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from queries.list_files import CANDIDATES
from queries.normal_form import normalize
from queries.selection import Source, select


def source(origin: str, entries: dict[str, float], budget: int | None = None) -> Source:
    rows = [{"query": query, "origin": origin, "score": score} for query, score in entries.items()]
    return Source(origin, pa.Table.from_pylist(rows, schema=CANDIDATES), budget)


WORDNET = source("wordnet", {"dog": 9, "Hot Dog": 2, "cat": 1}, 2)
UNIGRAM = source("unigram", {"the": 90, "dog": 50, "cat": 40, "of": 30, "cow": 20}, 2)
TITLE = source("title", {"Cow": 900, "Rome": 700})


def test_sources_give_up_to_their_budget_and_the_last_fills_the_rest() -> None:
    chosen = select([WORDNET, UNIGRAM, TITLE], 6)
    assert chosen.table.to_pylist() == [
        {"query": "dog", "origins": ["wordnet", "unigram"], "score": [9, 50]},
        {"query": "Hot Dog", "origins": ["wordnet"], "score": [2]},
        {"query": "the", "origins": ["unigram"], "score": [90]},
        {"query": "cat", "origins": ["wordnet", "unigram"], "score": [1, 40]},
        {"query": "cow", "origins": ["unigram", "title"], "score": [20, 900]},
        {"query": "Rome", "origins": ["title"], "score": [700]},
    ]
    assert chosen.report == {
        "wordnet": {"entries": 3, "given": 2, "lowest_score": 2},
        "unigram": {"entries": 5, "given": 2, "lowest_score": 40},
        "title": {"entries": 2, "given": 2, "lowest_score": 700},
    }


def test_what_budgets_leave_over_fills_the_room() -> None:
    chosen = select([WORDNET, UNIGRAM, TITLE], 7)
    assert chosen.table["query"].to_pylist() == ["dog", "Hot Dog", "the", "cat", "of", "cow", "Rome"]
    assert select([WORDNET, UNIGRAM, TITLE], 100).table.num_rows == 7


def test_no_candidates_give_an_empty_list() -> None:
    assert select([source("wordnet", {})], 5).table.num_rows == 0


ENTRIES = st.dictionaries(st.text(st.sampled_from("aAbBc "), max_size=3), st.integers(1, 9).map(float), max_size=12)


@given(
    st.lists(st.tuples(ENTRIES, st.one_of(st.none(), st.integers(0, 5))), min_size=1, max_size=3), st.integers(0, 12)
)
def test_the_size_is_exact_and_no_two_entries_match_the_same(
    entries: list[tuple[dict[str, float], int | None]], size: int
) -> None:
    ranked = [dict(sorted(found.items(), key=lambda item: -item[1])) for found, _ in entries]
    sources = [source(f"s{i}", found, entries[i][1]) for i, found in enumerate(ranked)]
    chosen = select(sources, size).table.to_pylist()
    normal = [normalize(entry["query"]) for entry in chosen]
    known = {normalize(query) for found in ranked for query in found} - {""}
    assert len(set(normal)) == len(normal) == min(size, len(known))
    for entry, form in zip(chosen, normal, strict=True):
        having = [i for i, found in enumerate(ranked) if form in map(normalize, found)]
        assert entry["origins"] == [f"s{i}" for i in having]
        assert entry["score"] == [next(s for q, s in ranked[i].items() if normalize(q) == form) for i in having]
