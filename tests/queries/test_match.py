import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from queries import match
from queries.match import QueryMatcher, naive_match
from queries.normal_form import normalize, normalize_batch

# Few characters, so that queries do occur; among them what separates, combines, folds and stands alone.
TEXTS = st.text(st.sampled_from("aAbß \n\t-'.+#é\u0301\u200d\u200b🐶東京ปที่ใＡ"), max_size=12)


def matched(queries: list[str], caption: str) -> list[str]:
    [ids] = QueryMatcher(queries).match(pa.array([caption], pa.string())).to_pylist()
    return [queries[i] for i in ids]


@given(st.lists(TEXTS, max_size=8), st.lists(st.one_of(st.none(), TEXTS), max_size=6))
def test_the_matcher_finds_what_asking_one_by_one_finds(queries: list[str], captions: list[str | None]) -> None:
    found = QueryMatcher(queries).match(pa.array(captions, pa.string()))
    assert found.type == pa.list_(pa.int32())
    assert found.to_pylist() == [[] if c is None else naive_match(queries, c) for c in captions]


@pytest.mark.parametrize(
    ("query", "hits", "misses"),
    [
        (
            "dog",
            ["(dog)", "a Dog's bone", "dog-house", "ＤＯＧ", "dog_1.jpg", "#dog", "dog🐶", "dog"],
            ["dogs", "hotdog", ""],
        ),
        ("dog house", ["dog-house", "Dog\nHouse", "dog (house)", "dog's dog house"], ["dog's house", "doghouse"]),
        ("U.S.", ["the U.S. army", "u s", "U.S.A."], ["US", "us"]),
        ("C++", ["C++", "C++11", "learn c++!"], ["C", "C+", "C#"]),
        ("C", ["C", "C++", "vitamin-C"], ["cc"]),
        ("AC/DC", ["Ac/Dc live", "AC-DC", "ac dc"], ["acdc"]),
        ("naive", ["naive art"], ["naïve art"]),
        ("naïve", ["NAI\u0308VE"], ["naive"]),
        ("Straße", ["STRASSE", "straße"], ["stra"]),
        ("🐶", ["dog🐶", "🐶🐶"], ["🐱", ""]),
        ("👩", ["👨‍👩‍👧"], ["👨"]),
        ("東京", ["東京タワー", "大東京", "東 京"], ["京東"]),
        ("ปลา", ["กินปลาทู"], ["ปล่า"]),
        ("कुत्ता", ["काला कुत्ता"], ["कुत्ते"]),
        ("كلب", ["كلب\u200f جميل", "(كلب)"], ["كلبي"]),
        ("כלב", ["\u202bכלב-ים\u202c"], ["כלבים"]),
        ("e\u0301te\u0301", ["ÉTÉ", "l'été"], ["ete"]),
        ("soft", ["so\u00adft", "so\u2060ft\ufeff"], ["so\u200bft"]),
    ],
)
def test_matching_rules(query: str, hits: list[str], misses: list[str]) -> None:
    assert [caption for caption in hits if matched([query], caption) != [query]] == []
    assert [caption for caption in misses if matched([query], caption) != []] == []


def test_queries_that_overlap_or_contain_each_other_all_match() -> None:
    queries = ["a b", "b c", "a b c", "b", "a", "c", "c d", "a", "B"]
    assert matched(queries, "a b c") == ["a b", "b c", "a b c", "b", "a", "c", "a", "B"]


def test_queries_of_many_tokens_match_to_their_last() -> None:
    queries = ["a " * 30 + "b", "a " * 30 + "c", "a " * 31, "a a"]
    assert matched(queries, "a " * 30 + "b c") == [queries[0], queries[3]]
    assert matched(queries, "a " * 31 + "c") == [queries[1], queries[2], queries[3]]


def test_a_match_never_spans_two_captions() -> None:
    assert QueryMatcher(["dog house"]).match(pa.array(["dog", "house"])).to_pylist() == [[], []]


def test_long_captions_and_many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(match, "_CHUNK_BYTES", 100)
    captions = ["x " * 5_000 + "dog", "", None, "dog", *["cat"] * 200, "é" * 10_000, "Dog é"]
    found = QueryMatcher(["cat", "dog"]).match(pa.array(captions)).to_pylist()
    assert found == [[1], [], [], [1], *[[0]] * 200, [], [1]]


def test_no_queries_or_only_empty_ones_match_nothing() -> None:
    assert QueryMatcher([]).match(pa.array(["dog"])).to_pylist() == [[]]
    assert QueryMatcher(["", "?!"]).match(pa.array(["dog", "?!"])).to_pylist() == [[], []]


def test_slices_of_captions() -> None:
    captions = pa.array(["a", "b", "a b"])
    assert QueryMatcher(["a", "b"]).match(captions.slice(1)).to_pylist() == [[1], [0, 1]]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_every_kind_of_text_array(kind: pa.DataType) -> None:
    captions = pa.array(["a B", None, ""]).cast(kind)
    assert QueryMatcher(["b"]).match(captions).to_pylist() == [[0], [], []]
    assert normalize_batch(captions).to_pylist() == ["a b", None, ""]


def test_threads_share_one_matcher() -> None:
    queries = [f"w{i}" for i in range(2_000)]
    matcher = QueryMatcher(queries)
    batches = [pa.array([f"w{i} w{(i * 7) % 2_500}" for i in range(k, k + 500)]) for k in range(0, 2_000, 100)]
    with ThreadPoolExecutor(4) as threads:
        concurrent = list(threads.map(matcher.match, batches))
    assert [found.to_pylist() for found in concurrent] == [matcher.match(batch).to_pylist() for batch in batches]


def documented_cases() -> list[tuple[str, str]]:
    """Read (caption, normal form) from the table in docs/queries.md: as many forms as captions, or one for all."""
    lines = (Path(__file__).parents[2] / "docs/queries.md").read_text().split("\n")
    start = lines.index("| caption | normal form | effect |") + 2
    cases: list[tuple[str, str]] = []
    for line in lines[start : lines.index("", start)]:
        captions, forms = (re.findall(r"`([^`]+)`", cell) for cell in line.split(" | ")[:2])
        cases += zip(captions, forms if len(forms) > 1 else forms * len(captions), strict=True)
    return cases


@pytest.mark.parametrize(("caption", "form"), documented_cases())
def test_the_documented_cases_hold(caption: str, form: str) -> None:
    assert normalize(caption) == form


def test_the_documented_cases_are_there() -> None:
    captions = "".join(caption for caption, _ in documented_cases())
    assert len(documented_cases()) > 40
    for character in "'.+/\u0308ßＤ🐶東\u200b\u200f\u00adป":
        assert character in captions
