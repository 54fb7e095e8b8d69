import math
import random
import re
from collections import Counter
from itertools import pairwise

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from queries.normal_form import normalize
from queries.origins.bigrams import bigram_queries
from queries.origins.unigrams import unigram_queries
from queries.wikipedia.counting import COUNTS, add_up, count_text


def as_counter(counts: pa.Table) -> Counter[tuple[str, str]]:
    keys = zip(counts["first"].to_pylist(), counts["second"].to_pylist(), strict=True)
    return Counter(dict(zip(keys, counts["count"].to_pylist(), strict=True)))


def counted_one_by_one(lines: list[str | None]) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for line in lines:
        tokens = normalize(line or "").split(" ")
        words = [bool(re.match(r"[a-z0-9é]", token)) for token in tokens]
        found.update((token, "") for token, word in zip(tokens, words, strict=True) if word)
        found.update(pair for i, pair in enumerate(pairwise(tokens)) if words[i] and words[i + 1])
    return found


LINES = st.lists(st.one_of(st.none(), st.text(st.sampled_from("aAbé1 -+🐶東ก'"), max_size=15)), max_size=6)


@given(LINES)
def test_counts_are_those_of_counting_one_by_one(lines: list[str | None]) -> None:
    counts = count_text(pa.array(lines, pa.string()))
    assert counts.schema == COUNTS
    assert as_counter(counts) == counted_one_by_one(lines)


@given(LINES, LINES)
def test_adding_up_batches_gives_the_counts_of_the_whole(one: list[str | None], other: list[str | None]) -> None:
    batches = [count_text(pa.array(lines, pa.string())) for lines in (one, other)]
    assert as_counter(add_up(pa.concat_tables(batches))) == counted_one_by_one([*one, *other])


def counts_of(text: str, repeat: int = 1) -> pa.Table:
    return add_up(count_text(pa.array([text] * repeat)))


def test_unigrams_are_ranked_by_count_then_alphabet() -> None:
    counts = counts_of("b a c a b d")
    assert unigram_queries(counts, 2).to_pylist() == [
        {"query": "a", "origin": "unigram", "score": 2.0},
        {"query": "b", "origin": "unigram", "score": 2.0},
    ]
    assert unigram_queries(counts, 3).num_rows == 0


def test_bigrams_are_ranked_by_pmi_among_those_frequent_enough() -> None:
    common = [f"of the word{random.Random(n).randrange(9)} of a the" for n in range(300)]
    lines = [*common, *["we play ping pong"] * 20, *["buenos aires the"] * 30, "typng eror"]
    counts = add_up(count_text(pa.array(lines)))
    words = pc.sum(counts.filter(pc.field("second") == "")["count"]).as_py()
    ranked = bigram_queries(counts, words, min_count=20)
    found = dict(zip(ranked["query"].to_pylist(), ranked["score"].to_pylist(), strict=True))
    assert list(found)[:4] == ["ping pong", "play ping", "we play", "buenos aires"]
    assert "typng eror" not in found
    assert found["buenos aires"] == round(math.log2(30 * words / (30 * 30)), 3)
    assert found.get("of the", 0) < found["buenos aires"]
    assert all(score > 0 for score in found.values())
    assert ranked["score"].to_pylist() == sorted(found.values(), reverse=True)


@pytest.mark.parametrize("words", [0, 5])
def test_no_text_gives_no_queries(words: int) -> None:
    empty = count_text(pa.array([], pa.string()))
    assert unigram_queries(empty).num_rows == 0
    assert bigram_queries(empty, words).num_rows == 0
