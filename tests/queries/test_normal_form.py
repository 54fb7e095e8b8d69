import sys
import unicodedata
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from queries.normal_form import normalize, normalize_batch

CASES = [
    # punctuation separates
    ("(dog)", "dog"),
    ("dog's", "dog s"),
    ("dog’s", "dog s"),
    ("dog´s", "dog s"),
    ("dog-house", "dog house"),
    ("dog_house.jpg", "dog house jpg"),
    ("U.S.", "u s"),
    ("Ac/Dc", "ac dc"),
    ("a\tb\r\nc\x00d", "a b c d"),
    ("2.8 1,000 2nd 4K", "2 8 1 000 2nd 4k"),
    ("?!…", ""),
    ("", ""),
    # symbols are tokens, or decoration
    ("C++", "c + +"),
    ("C#", "c #"),
    ("AT&T", "at & t"),
    ("100%", "100 %"),
    ("$5 €6", "$ 5 € 6"),
    ("Lego® City™", "lego city"),
    ("Lego℠dog", "lego dog"),
    ("sun | sea > sand", "sun sea sand"),
    # compatibility forms and case
    ("Ｄｏｇ　Ｈｏｕｓｅ", "dog house"),
    ("ﬁsh 𝓭𝓸𝓰 Ⅳ", "fish dog iv"),
    ("5½", "5 1 2"),
    ("m² H₂O", "m2 h2o"),
    ("straße STRASSE", "strasse strasse"),
    ("ΌΔΟΣ όδος", "όδοσ όδοσ"),
    ("İstanbul I\u0307", "istanbul i"),
    ("İ\u0307 i\u0307\u0307\u0301", "i í"),
    # marks
    ("naive naïve nai\u0308ve", "naive naïve naïve"),
    ("\u0301dog", "dog"),
    ("a ¨ b", "a b"),
    ("x\u0331\u0302y", "x\u0331\u0302y"),
    # invisible characters
    ("so\u00adft", "soft"),
    ("\ufeffdog\u200e", "dog"),
    ("dog\u200bhouse", "dog house"),
    ("می\u200cخواهم", "میخواهم"),
    ("e\u200c\u0301", "é"),
    # emoji
    ("❤️ ❤", "❤ ❤"),
    ("dog🐶cat", "dog 🐶 cat"),
    ("👍🏽", "👍"),
    ("👨‍👩‍👧", "👨 👩 👧"),
    ("1️⃣", "1"),
    # scripts without spaces
    ("東京タワー", "東 京 タ ワ ー"),
    ("ﾀﾜｰ", "タ ワ ー"),
    ("か\u3099ま\u3099", "が ま\u3099"),
    ("iPhone手机15个", "iphone 手 机 15 个"),
    ("ปลาที่", "ป ล า ที่"),
    ("ພາສາລາວ", "ພ າ ສ າ ລ າ ວ"),
    ("ភាសា", "ភា សា"),
    ("မြန်မာ", "မြ န် မာ"),
    ("๒๕๖๐ปี", "๒๕๖๐ ปี"),
    # others
    ("무지개가 뜬다", "무지개가 뜬다"),
    ("كلب جميل، كبير", "كلب جميل كبير"),
    ("כלב־בית", "כלב בית"),
    ("нейро-СЕТЬ", "нейро сеть"),
    ("\ue000 \ufffd", ""),
]

AWKWARD = st.one_of(
    st.sampled_from([c for case in CASES for text in case for c in text]),
    st.characters(exclude_categories=["Cs"]),
    st.sampled_from("\n\r\u2028\u0085 \u0307Iiİ\u0345½™\uffa0\u3164"),
)
TEXTS = st.text(AWKWARD, max_size=30)


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_normalize_cases(text: str, expected: str) -> None:
    assert normalize(text) == expected


@given(st.lists(st.one_of(st.none(), TEXTS, st.text(st.characters(max_codepoint=127))), max_size=8))
def test_a_batch_gives_what_single_texts_give(texts: list[str | None]) -> None:
    expected = [None if text is None else normalize(text) for text in texts]
    assert normalize_batch(pa.array(texts, pa.string())).to_pylist() == expected


def test_a_batch_gives_what_single_texts_give_for_every_character() -> None:
    characters = [chr(c) for c in range(sys.maxunicode + 1) if not 0xD800 <= c < 0xE000]
    normal = normalize_batch(pa.array(characters)).to_pylist()
    different = [c for c, found in zip(characters, normal, strict=True) if found != normalize(c)]
    assert different == []


@given(TEXTS)
def test_the_normal_form_is_its_own_normal_form(text: str) -> None:
    assert normalize(normalize(text)) == normalize(text)


@pytest.mark.parametrize(
    "frame", ["{}", "{}\u0307", "{}\u0307\u0307", "{0}\u0307{0}", "i{}\u0307", "İ{}\u0323", "a{}\u0345", "{}\U00016ff0"]
)
def test_the_normal_form_is_its_own_normal_form_with_every_character(frame: str) -> None:
    texts = [frame.format(chr(c)) for c in range(0x32400) if unicodedata.category(chr(c)) not in ("Cs", "Co", "Cn")]
    normal = normalize_batch(pa.array(texts))
    pairs = zip(texts, normal.to_pylist(), normalize_batch(normal).to_pylist(), strict=True)
    assert [text for text, once, twice in pairs if once != twice] == []


def test_thousands_of_dots_are_one() -> None:
    assert normalize("I" + "\u0307" * 500_000 + "x") == "ix"


@given(TEXTS)
def test_the_normal_form_is_tokens_between_single_spaces(text: str) -> None:
    normal = normalize(text)
    assert normal == "" or all(normal.split(" "))
    assert unicodedata.is_normalized("NFKC", normal)


@given(TEXTS, st.sampled_from(["NFC", "NFD"]))
def test_canonically_equivalent_texts_have_the_same_normal_form(text: str, form: Any) -> None:
    assert normalize(unicodedata.normalize(form, text)) == normalize(text)


def test_slices_and_types_of_arrays() -> None:
    texts = pa.array(["A-b", None, "É", "d"])
    assert normalize_batch(texts.slice(1, 2)).to_pylist() == [None, "é"]
    assert normalize_batch(texts.cast(pa.large_string())).to_pylist() == ["a b", None, "é", "d"]
    assert normalize_batch(texts).type == pa.string()
    assert normalize_batch(texts.slice(0, 0)).to_pylist() == []
