"""Conditions on captions: each against a plain reading of the same rule, or against captions judged by hand."""

import gzip
import unicodedata
from itertools import groupby

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.shared_data import SHARED

from pipeline.config.filters import FiltersConfig
from pipeline.filters.characters import Characters
from pipeline.filters.text import has_markup, is_address, is_file_name, text_reasons
from pipeline.records import Reason

CAPTIONS = st.lists(
    st.text(alphabet="aé b猫ก1.😀\u0301-", max_size=12).map(lambda text: " ".join(text.split())), max_size=9
)


@given(CAPTIONS)
def test_counts_of_characters_are_those_of_a_loop(captions: list[str]) -> None:
    found = Characters.of(pa.array(captions, pa.string()))
    assert found.words().tolist() == [len(text.split()) for text in captions]
    assert found.longest_runs().tolist() == [
        max((len(list(run)) for _, run in groupby(t)), default=0) for t in captions
    ]
    fractions = []
    for text in captions:
        shown = [c for c in text if not c.isspace()]
        fractions.append(sum(unicodedata.category(c)[0] in "LM" for c in shown) / max(1, len(shown)))
    assert found.letter_fractions().tolist() == pytest.approx(fractions)
    assert found.need_spaces().tolist() == [not set(text) & set("猫ก") for text in captions]


def test_a_sliced_column_is_read_from_its_start() -> None:
    column = pa.array(["left out entirely", "aaab", "", "x y"], pa.string())[1:]
    assert Characters.of(column).longest_runs().tolist() == [3, 0, 1]
    assert Characters.of(column).words().tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    ("condition", "dropped", "kept"),
    [
        (
            is_file_name,
            [
                "IMG_4894",
                "IMG_4894.JPG",
                "img 20190304 120312",
                "DSC00123.jpg",
                "DSC_0042",
                "DSCN1234",
                "P1010023",
                "PXL_20210405_123456789",
                "IMG-20190101-WA0007",
                "Screenshot 2020-01-01 at 10.11.12",
                "WhatsApp Image 2019-03-04 at 12.03.12",
                "untitled",
                "Untitled-2",
                "image001",
                "photo (3)",
                "20190304_120312",
                "12345678_10157_n",
                "9f86d081884c7d659a2feaa0c55ad015",
                "123e4567-e89b-12d3-a456-426614174000",
                "shaker-heritage-barn-wedding-day007.jpg",
                "картина.png",
            ],
            [
                "Image of a dog",
                "Photo 51 shows the helix of DNA",
                "a photo",
                "Boeing 747",
                "Peugeot 108",
                "Scan of the letter of 1912",
                "The file is open",
                "Facade of the church",
                "deadbeef is a word to programmers",
                "NASA",
                "K9 unit with a dog",
                "photograph",
                "Photo booth",
                "1984",
                "A380",
                "IMG Academy wins 3-1",
            ],
        ),
        (
            is_address,
            [
                "https://example.org/a.jpg",
                "www.example.org",
                "example.com",
                "http://example.org/a photo",
                "hitachi-solutions.jp",
                "Visit www.example.org!",
                "EXAMPLE.COM | 2019",
            ],
            [
                "Photo by Jane Roe, www.example.org",
                "A dog on the beach (source: https://example.org/dogs)",
                "St. Patrick's Day",
                "The U.S. Army in Washington, D.C.",
                "He said no.We left",
                "Dr.Who in town",
            ],
        ),
        (
            has_markup,
            [
                "<b>Game 20</b>",
                "dog<br/>cat",
                "&lt;i&gt;Truong Son&lt;/i&gt;",
                '[caption id="attachment_7"]',
                "{{ product.title }}",
                "{% if image %}",
                "red%20house",
                'alt="dog"',
                "<!-- picture -->",
                "dog \\u00e9",
                "javascript:void(0)",
            ],
            [
                "black &amp; white",
                "Tom & Jerry",
                "x < y and y > z",
                "I <3 dogs",
                "5% off [sale]",
                "Area function of the brain",
                "50% 20 people",
                "C++ <-> Python",
            ],
        ),
    ],
)
def test_captions_judged_by_hand(condition, dropped: list[str], kept: list[str]) -> None:
    found = condition(pa.array(dropped + kept, pa.string())).tolist()
    wrong = [text for text, is_found in zip(dropped + kept, found, strict=True) if is_found != (text in dropped)]
    assert wrong == []


def test_the_first_condition_of_the_table_names_the_reason() -> None:
    texts = ["IMG_4894", "www.example.org", "dog", "a dog and a cat and a fox", "a 12345", "a dooooog", "a dog", "猫"]
    config = FiltersConfig(
        file_names=True, urls=True, markup=True, min_words=2, max_words=5, min_letter_fraction=0.5, max_repeated_chars=4
    )
    assert text_reasons(pa.array(texts, pa.string()), config).tolist() == [
        Reason.FILE_NAME_CAPTION,
        Reason.URL_CAPTION,
        Reason.TOO_FEW_WORDS,
        Reason.TOO_MANY_WORDS,
        Reason.TOO_FEW_LETTERS,
        Reason.REPEATED_CHARACTERS,
        "",
        "",  # written without spaces
    ]
    assert not np.any(text_reasons(pa.array(texts, pa.string()), FiltersConfig()) != "")


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the folder of real data")
def test_good_captions_of_two_data_sets_are_not_taken_for_names_addresses_or_markup() -> None:
    with gzip.open(SHARED / "text/cc3m_validation.tsv.gz", "rt", encoding="utf-8") as file:
        cc3m = [line.split("\t")[0] for line in file]
    with gzip.open(SHARED / "text/multi30k_en_145k.txt.gz", "rt", encoding="utf-8") as file:
        multi30k = file.read().splitlines()
    captions = pa.array([" ".join(text.split()) for text in cc3m + multi30k], pa.string())
    for condition in (is_file_name, is_address, has_markup):
        assert condition(captions).sum() == 0, condition
