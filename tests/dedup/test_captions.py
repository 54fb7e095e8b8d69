"""Captions of a dataset that repeat captions of an evaluation set: found by MinHash, verified by exact n-grams."""

import random

import numpy as np
import pyarrow as pa
import pytest

from dedup.captions import (
    MIN_CONTAINMENT,
    NGRAM_WORDS,
    CaptionIndex,
    count_long,
    find_caption_overlap,
    summarise_captions,
    word_ngrams,
)
from dedup.eval_sets.index import CAPTIONS

WORDS = [
    f"{a}{b}" for a in ("red", "blue", "small", "old", "tall", "wet", "dark") for b in ("house", "dog", "tree", "boat")
]


def sentence(seed: int, words: int = 12) -> str:
    chance = random.Random(seed)
    return " ".join(chance.choice(WORDS) for _ in range(words))


def index_of(*captions: str) -> CaptionIndex:
    return CaptionIndex.build(pa.table([[f"{n}.jpg" for n in range(len(captions))], list(captions)], CAPTIONS))


def found(index: CaptionIndex, *captions: str) -> list[tuple[int, int]]:
    return [(row, number) for row, number, _ in index.find(pa.array(captions))]


def test_case_punctuation_and_additions_make_no_difference():
    caption = "A man rides a wave on top of a surfboard."
    index = index_of(caption)
    same = ["a MAN rides a wave, on top of a surfboard", f"{caption} Photo by Ada", f"beach: {caption}"]
    assert found(index, *same) == [(0, 0), (0, 1), (0, 2)]
    assert found(index, "A man rides a horse on top of a hill.", "A wave on top of a surfboard rides a man.") == []


def test_short_captions_are_not_compared():
    assert word_ngrams(pa.array(["a dog on a beach", None, "", "a dog on a sandy beach"])) == [
        frozenset(),
        frozenset(),
        frozenset(),
        frozenset({"a dog on", "dog on a", "on a sandy", "a sandy beach"}),
    ]
    assert found(index_of("a dog on a beach"), "a dog on a beach") == []


def test_languages_without_spaces_are_cut_into_words():
    assert found(index_of("一只猫坐在红色的椅子上"), "一只猫坐在红色的椅子上。") == [(0, 0)]


def test_against_all_pairs():
    """Every match of an exhaustive comparison is found but for the few that the bands may miss, and nothing else."""
    chance = random.Random(0)
    known = [sentence(seed) for seed in range(120)]
    asked = []
    for number, caption in enumerate(known):
        words = caption.split()
        for _ in range(number % 4):
            words[chance.randrange(len(words))] = chance.choice(WORDS)
        words += [chance.choice(WORDS) for _ in range(number % 6)]
        asked.append(" ".join(words))
    grams = word_ngrams(pa.array(known)), word_ngrams(pa.array(asked))
    wanted = {
        (a, b)
        for a, left in enumerate(grams[0])
        for b, right in enumerate(grams[1])
        if len(left & right) / len(left) >= MIN_CONTAINMENT
    }
    matches = set(found(index_of(*known), *asked))
    assert matches <= wanted
    assert len(matches) >= 0.97 * len(wanted) > 30


def test_the_best_caption_of_a_pair_counts_once():
    first, second = sentence(1), sentence(2)
    texts = pa.table([["a.jpg", "a.jpg", "b.jpg"], [first, f"{first} {WORDS[0]} {WORDS[1]}", second]], CAPTIONS)
    pairs = pa.table({"uid": ["u1", "u2", "u3"], "caption": [first, sentence(9), f"{second} more"]})
    rows = find_caption_overlap(pairs, CaptionIndex.build(texts)).to_pylist()
    assert [(row["eval_id"], row["uid"], row["containment"]) for row in rows] == [
        ("a.jpg", "u1", 1),
        ("b.jpg", "u3", 1),
    ]
    assert (rows[0]["eval_caption"], rows[1]["caption"]) == (first, f"{second} more")


def test_nothing_matches_nothing():
    pairs = pa.table({"uid": ["u"], "caption": [sentence(1)]})
    assert find_caption_overlap(pairs, index_of()).num_rows == 0
    empty = pa.table({"uid": pa.array([], pa.string()), "caption": pa.array([], pa.string())})
    assert find_caption_overlap(empty, index_of(sentence(1))).num_rows == 0


def test_the_sums_are_about_examples():
    ids = pa.chunked_array([["a", "b", "c", "d"]])
    captions = pa.table([["a", "a", "b", "c"], [sentence(1), "short", sentence(2), "short"]], CAPTIONS)
    long = count_long(ids, captions)
    assert long.to_pylist() == [1, 1, 0, None]
    rows = {"eval_id": ["a", "a", "b"], "uid": ["u", "v", "w"], "eval_caption": ["x"] * 3, "caption": ["y"] * 3}
    overlap = pa.table(rows | {"containment": pa.array([0.9, 0.8, 1], pa.float32()), "kept": [True, True, False]})
    summary = summarise_captions(pa.chunked_array([long]), overlap)
    assert (summary.compared, summary.too_short, summary.overlap, summary.found) == (2, 1, 1, 2)
    assert [row["uid"] for row in summary.evidence] == ["v"]


@pytest.mark.parametrize("words", [6, 9, 30])
def test_ngrams_are_all_runs_of_words(words):
    text = " ".join(f"w{n}" for n in np.arange(words))
    (ngrams,) = word_ngrams(pa.array([text]))
    assert len(ngrams) == words - NGRAM_WORDS + 1
    assert all(ngram in text for ngram in ngrams)
