"""Decoding pages whose declarations are right, missing or lies."""

import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sources.charset import decode_page

RUSSIAN = "<p>Собака бежит по пляжу, а кошка спит на диване и видит сны о рыбе.</p>" * 5
JAPANESE = "<p>犬が浜辺を走り、猫はソファで魚の夢を見ながら眠っています。</p>" * 5
FRENCH = "<p>Le chien court sur la plage, déjà très fatigué, à côté d'un château.</p>" * 5


@pytest.mark.parametrize(
    ("text", "encoding", "header", "meta"),
    [
        (RUSSIAN, "utf-8", None, None),
        (RUSSIAN, "utf-8", "iso-8859-1", None),  # a server's default
        (RUSSIAN, "utf-8", None, "windows-1251"),
        (RUSSIAN, "windows-1251", "windows-1251", None),
        (RUSSIAN, "windows-1251", None, "windows-1251"),
        (RUSSIAN, "windows-1251", "utf-8", "windows-1251"),  # the header cannot be right
        (RUSSIAN, "windows-1251", None, None),
        (RUSSIAN, "koi8-r", "koi8-r", None),
        (JAPANESE, "shift_jis", None, "shift_jis"),
        (JAPANESE, "euc_jp", None, None),
        (JAPANESE, "iso2022_jp", "iso-2022-jp", None),
        (FRENCH, "latin-1", None, None),
        (FRENCH, "latin-1", None, "utf-8"),
        (FRENCH, "latin-1", None, "utf-16"),  # a meta element that can be read is not UTF-16
        (FRENCH, "utf-16-le", "utf-16le", None),
        (FRENCH, "latin-1", "no-such-charset", None),
        (FRENCH, "latin-1", "'ISO-8859-1'", None),
    ],
)
def test_declarations_and_lies(text, encoding, header, meta):
    page = (f'<meta charset="{meta}">' if meta else "") + text
    assert decode_page(page.encode(encoding), header) == page


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [(codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")],
)
def test_a_byte_order_mark_settles_it(mark, encoding):
    assert decode_page(mark + RUSSIAN.encode(encoding), "windows-1251") == RUSSIAN


def test_utf8_with_some_damage_stays_utf8():
    page = RUSSIAN.encode()
    damaged = page[:101] + b"\xff" + page[101:]
    assert decode_page(damaged, None).replace("\ufffd", "").startswith("<p>Собака бежит по пляжу")


def test_a_page_cut_within_a_character():
    assert decode_page(RUSSIAN.encode()[: len("<p>Соб".encode()) - 1], "windows-1251") == "<p>Со"


@given(st.binary(max_size=200), st.none() | st.text(max_size=12))
def test_any_bytes_have_a_text_that_can_be_encoded(page: bytes, charset: str | None):
    decode_page(page, charset).encode()
