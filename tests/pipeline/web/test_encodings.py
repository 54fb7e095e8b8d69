"""Encodings by their web names, compared with the tables of webencodings and with Python's codecs."""

import pytest
import webencodings
from hypothesis import given
from hypothesis import strategies as st
from webencodings.labels import LABELS

from pipeline.web.encodings import decode, encode_query, find_encoding

NAMES = sorted(set(LABELS.values()))
SINGLE_BYTE = [n for n in NAMES if n.startswith(("windows-", "iso-8859", "koi8", "ibm", "mac", "x-mac"))]
# Where Python's tables, which webencodings uses, are not the standard's: letters of Belarusian and Ukrainian, and a
# Hebrew vowel.
KNOWN_DIFFERENCES = {
    "windows-1255": {0xCA: "\u05ba"},
    "koi8-u": {0xAE: "ў", 0xBE: "Ў"},
    "x-mac-cyrillic": {0xA2: "Ґ", 0xB6: "ґ", 0xFF: "€"},
}


def test_every_label_has_a_decoder():
    for label, name in LABELS.items():
        assert find_encoding(f" {label.upper()}\n") == name
        assert decode(b"a", name) in ("a", "\ufffd")
    assert find_encoding("no-such-charset") is None
    assert find_encoding("") is None


@pytest.mark.parametrize("name", SINGLE_BYTE)
def test_single_byte_tables_byte_by_byte(name):
    for code in range(256):
        expected = webencodings.decode(bytes([code]), name, "replace")[0]
        if expected == "\ufffd" and name.startswith("windows-") and code < 0xA0:
            expected = chr(code)  # the standard gives the bytes that Microsoft left out to the control characters
        expected = KNOWN_DIFFERENCES.get(name, {}).get(code, expected)
        assert decode(bytes([code]), name) == expected, hex(code)


@pytest.mark.parametrize(
    ("name", "codec", "most_other"),
    [("euc-kr", "cp949", 0), ("gbk", "gb18030", 110), ("shift_jis", "cp932", 0), ("big5", "big5hkscs", 300)],
)
def test_two_byte_tables_pair_by_pair(name, codec, most_other):
    """Python's tables are older than the standard's, so a few may differ; none may be missing."""
    other = []
    for pair in (bytes([lead, trail]) for lead in range(0x81, 0xFF) for trail in range(0x40, 0xFF)):
        try:
            expected = pair.decode(codec)
        except UnicodeDecodeError:
            continue
        if len(expected) == 1 and decode(pair, name) != expected:
            other.append((pair.hex(), decode(pair, name), expected))
    assert len(other) <= most_other, other[:9]
    assert not [pair for pair in other if "\ufffd" in pair[1]]


def test_undecodable_bytes_cost_no_ascii_beside_them():
    assert decode(b"\xff<b>", "euc-kr") == "\ufffd<b>"
    assert decode(b"\x81'>", "shift_jis") == "\ufffd'>"


@pytest.mark.parametrize(
    ("query", "encoding", "expected"),
    [
        ("q=é", "windows-1252", "q=%E9"),
        ("q=é&r=犬", "windows-1252", "q=%E9&r=%26%2329356%3B"),
        ("q=犬", "shift_jis", "q=%8C%A2"),
        ("q=①髙", "shift_jis", "q=%87@%FB%FC"),
        ("q=犬", "euc-jp", "q=%B8%A4"),
        ("q=犬の", "iso-2022-jp", "q=%1B$B8$$N%1B(B"),
        ("q=개", "euc-kr", "q=%B0%B3"),
        ("q=狗€", "gbk", "q=%B9%B7%80"),
        ("q=狗€😀", "gb18030", "q=%B9%B7%A2%E3%949%FC6"),
        ("q=狗", "big5", "q=%AA%AF"),
        ("q=é%20+'", "utf-16le", "q=%C3%A9%20+'"),
        ("a=b", "shift_jis", "a=b"),
    ],
)
def test_queries(query, encoding, expected):
    assert encode_query(query, encoding) == expected


@given(st.text(st.characters(codec="utf-8"), max_size=20), st.sampled_from(NAMES))
def test_any_query_becomes_ascii(query: str, encoding: str):
    assert encode_query(query, encoding).isascii()
