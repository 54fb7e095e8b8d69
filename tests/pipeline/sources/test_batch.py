"""Judging rows: the quick test for addresses in normal form, and the cleaning of texts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sources.batch import _PLAIN_REFERENCE, _PLAIN_URL, clean_text
from pipeline.web.urls import normalize_url

HOSTS = st.lists(
    st.sampled_from(["a", "xn--a", "xn--mnchen-3ya", "1", "0x1", "a-", "-", "a--b", "www", "127", "example"]),
    max_size=4,
).map(".".join)
TAILS = st.sampled_from(
    [".com", ".co", ".c", "", ".1", ".", ".com.", ".COM", ".com:80", ".xn--p1ai", "..com", ".com@b.com"]
)
PATHS = st.text(st.sampled_from("/.%2eE?#'\"\\ab~!$&()*+,;=:@-_|^`{} [])") | st.characters(), max_size=12)


@given(st.sampled_from(["http", "https", "HTTP", "ftp"]), HOSTS, TAILS, PATHS)
def test_plain_addresses_are_normal(scheme: str, host: str, tail: str, path: str):
    for url in (f"{scheme}://{host}{tail}/{path}", f"{scheme}://{host}{tail}{path}"):
        if _PLAIN_URL.fullmatch(url):
            assert normalize_url(url) == normalize_url(url, "https://b.example/c/d") == url


@given(PATHS)
def test_plain_references_only_lack_an_origin(path: str):
    for base in ("http://b.example/c/d?e", "https://b.example:8080/"):
        origin = base[: base.index("/", 8)]
        if _PLAIN_REFERENCE.fullmatch("/" + path):
            assert normalize_url("/" + path, base) == f"{origin}/{path}"


@pytest.mark.parametrize(
    "url", ["http://a.example/", "https://cdn-1.a.example/x/y_z.jpg?w=3&h=%20/..", "http://a.example//x/'"]
)
def test_usual_addresses_are_plain(url):
    assert _PLAIN_URL.fullmatch(url)


@pytest.mark.parametrize(
    "url", ["http://a.example", "http://1.2.3.4/", "http://a.example/.", "http://a.example/%2e/", "http://a/"]
)
def test_addresses_left_to_the_parser(url):
    assert not _PLAIN_URL.fullmatch(url)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog", "A dog"),
        (" A\t\u00a0dog \u3000\r\n", "A dog"),
        ("A\x00\x07\x85dog\ufeff", "A dog"),
        ("\u200b", ""),
        ("half \ud83d", "half"),
        ("\udc00half \ud83d emoji", "half emoji"),
        ("whole \ud83d\ude00", "whole 😀"),
        ("👩\u200d🚀 é", "👩\u200d🚀 é"),  # joiners belong to emoji and to words
        ("", ""),
    ],
)
def test_clean_text(text, expected):
    assert clean_text(text) == expected


@given(st.text(st.characters()))
def test_clean_text_is_clean_and_can_be_encoded(text: str):
    cleaned = clean_text(text)
    assert cleaned == clean_text(cleaned) == cleaned.encode().decode()
    assert "  " not in cleaned
    assert cleaned == cleaned.strip()
