"""Families of captions against all pairs compared word by word."""

import hashlib
import re
from collections import defaultdict

import numpy as np
import pyarrow as pa
import pytest

from pipeline.filters.families import (
    BAND_ROWS,
    band_rows,
    bands_for,
    caption_families,
    firsts_of_bands,
    word_set_keys,
)

COLOURS, SIZES = ["blue", "red", "green", "black", "white"], ["s", "m", "l", "xl"]
NOUNS = ["shirt", "lamp", "chair", "table", "bag", "shoe", "clock", "cup"]


def words(caption: str) -> set[str]:
    return set(re.sub(r"\d+", "0", caption.lower()).replace(",", " ").replace(".", " ").split())


def jaccard(a: set[str], b: set[str]) -> float:
    return len(a & b) / len(a | b)


def make_captions(count: int, seed: int) -> list[str]:
    """Make template families of shops, and captions like no other."""
    random = np.random.default_rng(seed)
    vocabulary = [f"word{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(300)]
    templates = [" ".join(random.choice(vocabulary, 9)) for _ in range(8)]
    captions = []
    for i in range(count):
        if random.random() < 0.5:
            noun, colour, size = (random.choice(choice) for choice in (NOUNS, COLOURS, SIZES))
            captions.append(f"{templates[i % 8]} {noun} {i}, {colour}, size {size}")
        else:
            captions.append(" ".join(random.choice(vocabulary, random.integers(2, 12))))
    return captions


@pytest.mark.parametrize("similarity", [0.6, 0.7, 0.85])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_members_are_near_and_few_with_a_near_caption_are_in_no_family(similarity: float, seed: int) -> None:
    captions = make_captions(500, seed)
    sets = [words(caption) for caption in captions]
    found = caption_families(pa.array(captions), similarity).tolist()
    for row, of_family in enumerate(found):
        assert found[of_family] == of_family
        assert row == of_family or jaccard(sets[row], sets[of_family]) >= similarity
    long = [row for row in range(500) if len(sets[row]) >= 4]
    related = {r for r in long for other in long if r != other and jaccard(sets[r], sets[other]) >= similarity}
    in_families = {row for row in range(500) if found.count(found[row]) > 1}
    assert in_families <= related
    assert len(related) > 150
    assert len(in_families) >= 0.85 * len(related)  # some have only near ones that other families took


def test_equal_captions_are_one_family_and_short_ones_none() -> None:
    captions = ["a dog on the beach", "A DOG on the beach!", "a dog", "a dog", "", "猫が窓の外を見ている"]
    assert caption_families(pa.array(captions)).tolist() == [0, 0, 2, 3, 4, 5]
    assert caption_families(pa.array([], pa.string())).tolist() == []


def key_of(caption: str) -> int:
    found = words(caption)
    hashes = (int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little") for word in found)
    return sum(hashes) % 2**64 if len(found) >= 4 else 0


@pytest.mark.parametrize("similarity", [0.5, 0.7, 1.0])
def test_the_first_near_set_of_each_band_is_that_of_all_pairs_compared(similarity: float) -> None:
    captions = make_captions(300, 4)
    sets = {key_of(caption): words(caption) for caption in captions}
    keys = word_set_keys(pa.array(captions))
    assert keys.tolist() == [key_of(caption) for caption in captions]
    halves = [slice(0, 120), slice(120, None)]
    sent = pa.concat_tables(band_rows(pa.array(captions[half]), keys[half], similarity) for half in halves)
    of_band = defaultdict(set)
    for row in sent.to_pylist():
        of_band[row["band"]].add(row["key"])
        assert len(row["words"]) == len(sets[row["key"]])
    expected = {}
    for members in of_band.values():
        for key in members:
            near = [other for other in members if other < key and jaccard(sets[key], sets[other]) >= similarity]
            if near:
                expected[key, min(near)] = True
    found = {(row["key"], row["first"]) for row in firsts_of_bands(sent, similarity).to_pylist()}
    assert found == expected.keys()
    assert firsts_of_bands(BAND_ROWS.empty_table(), similarity).num_rows == 0
    assert similarity == 1 or len(found) > 80
    long = [key for key in sets if key]
    together = {frozenset((a, b)) for members in of_band.values() for a in members for b in members if a != b}
    near_pairs = [{a, b} for a in long for b in long if a < b and jaccard(sets[a], sets[b]) >= similarity]
    assert sum(frozenset(pair) in together for pair in near_pairs) >= 0.98 * len(near_pairs)


@pytest.mark.parametrize("similarity", [0.5, 0.7, 0.9])
def test_bands_miss_few_that_are_similar_enough(similarity: float) -> None:
    bands, rows = bands_for(similarity)
    assert bands * rows <= 100
    assert 1 - (1 - similarity**rows) ** bands >= 0.95
    longer = rows + 1
    assert 1 - (1 - similarity**longer) ** (100 // longer) < 0.95
