"""Language identification of captions: accuracy on a parallel corpus, and the corners of the function itself."""

import gzip
import tarfile

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sources.language import _SCRIPTS, identify_languages


def identify(*captions: str | None) -> list[str]:
    return identify_languages(pa.array(captions, pa.string())).to_pylist()


def test_languages_of_plain_captions():
    captions = (
        "Two dogs run along the beach",
        "Zwei Hunde rennen am Strand entlang",
        "東京タワーの夜景",
        "собака на пляже",
    )
    assert identify(*captions) == ["en", "de", "ja", "ru"]


def test_undetermined():
    assert identify("", None, "12345 - 67", "©®!", "DSC00123") == ["und"] * 5


def test_a_language_whose_script_is_not_there_is_undetermined():
    names = [
        "DSC_0457",
        "Canon EOS 5D Mark II",
        "IMG 2034",
        "Nikon D90",
        "©2008 Foo",
        "iPhone 12 Pro Max",
        "HP LJ 1020",
    ]
    latin = {"en", "de", "fr", "es", "it", "pt", "nl", "und"}
    for code in identify(*names):
        assert code not in {"he", "zh", "ja", "ru", "ar", "ko"}
    assert latin & set(identify(*names))
    assert identify("כלב על החוף", "狗的照片在海滩上", "개가 해변을 달린다", "собака бежит по пляжу") == [
        "he",
        "zh",
        "ko",
        "ru",
    ]


@given(st.text(st.characters(max_codepoint=0x7F), max_size=40))
def test_no_ascii_text_is_in_another_script(text: str):
    assert identify(text)[0] not in _SCRIPTS or "Latin" in _SCRIPTS[identify(text)[0]]


def test_empty_array_and_sliced_array():
    assert identify_languages(pa.array([], pa.string())).to_pylist() == []
    sliced = pa.array(["x", "Zwei Hunde rennen am Strand entlang", "y"], pa.string()).slice(1, 1)
    assert identify_languages(sliced).to_pylist() == ["de"]


def test_line_ends_do_not_shift_the_answers():
    assert identify("Two dogs run\nalong the beach", "Zwei Hunde rennen am Strand") == ["en", "de"]


@given(st.lists(st.text(), max_size=6))
def test_any_text_has_an_answer_that_does_not_depend_on_its_neighbours(captions: list[str]):
    assert identify(*captions) == [identify(caption)[0] for caption in captions]


@pytest.mark.parametrize(("code", "least_right"), [("en", 0.98), ("de", 0.99), ("fr", 0.99), ("cs", 0.94)])
def test_accuracy_on_image_captions(shared_data, code, least_right):
    with tarfile.open(shared_data / "text" / "multi30k_parallel_29k.tar.gz") as corpus:
        member = next(m for m in corpus.getmembers() if m.name.endswith(f"train.{code}.gz"))
        lines = gzip.decompress(corpus.extractfile(member).read()).decode().splitlines()[:4_000]
    answers = identify(*lines)
    right = answers.count(code)
    wrong = len(answers) - right - answers.count("und")
    assert right / len(lines) >= least_right
    assert wrong / len(lines) <= 0.01
