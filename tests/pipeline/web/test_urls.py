"""The normaliser against hand-worked cases of the WHATWG URL standard, and its laws."""

import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.web.urls import normalize_url

ABSOLUTE = {
    "HTTP://ExAmple.COM:80/a.jpg": "http://example.com/a.jpg",
    "https://example.com:443": "https://example.com/",
    "https://example.com:80/": "https://example.com:80/",
    "http://example.com/a/./b/../c.jpg": "http://example.com/a/c.jpg",
    "http://example.com/a/%2e%2E/c.jpg": "http://example.com/c.jpg",
    "http://example.com/a.jpg#top": "http://example.com/a.jpg",
    "http://example.com/a.jpg?#": "http://example.com/a.jpg?",
    "  http://example.com/a\n.j\tpg \r": "http://example.com/a.jpg",
    "http://example.com/a b.jpg?c d": "http://example.com/a%20b.jpg?c%20d",
    "http:\\\\example.com\\a.jpg": "http://example.com/a.jpg",
    "http:///example.com/a.jpg": "http://example.com/a.jpg",
    "http://münchen.example/ä.jpg?q=ü": "http://xn--mnchen-3ya.example/%C3%A4.jpg?q=%C3%BC",
    "http://EXAMPLE。com/": "http://example.com/",
    "http://ex%61mple.com/%7Ea": "http://example.com/%7Ea",
    "http://example.com/%zz%": "http://example.com/%zz%",
    "http://2130706433/": "http://127.0.0.1/",
    "http://0x7f.1/": "http://127.0.0.1/",
    "http://0177.0.0.1/": "http://127.0.0.1/",
    "http://[::FFFF:127.0.0.1]/": "http://[::ffff:7f00:1]/",
    "http://[2606:4700::6000]/": "http://[2606:4700::6000]/",
    "http://example.com:8080/": "http://example.com:8080/",
    "http://example.com/\ud800.jpg": "http://example.com/%EF%BF%BD.jpg",
}

REFUSED = [
    "",
    "   ",
    "a.jpg",
    "//example.com/a.jpg",
    "file:///etc/passwd",
    "data:image/png;base64,AAAA",
    "javascript:alert(1)",
    "ftp://example.com/a.jpg",
    "http://",
    "http://a b/",
    "http://example.com:99999/",
    "http://example.com:25/",
    "https://example.com:6667/a.jpg",
    "http://[2606:4700::1111]:22/",
    "http://user@example.com/",
    "http://user:secret@example.com/",
    "http://[fe80::1%25eth0]/",
    "http://\x00example.com/",
    "http://1.2.3.4.5/",
]

RELATIVE = {
    "a.jpg": "http://example.com/x/y/a.jpg",
    "/a.jpg": "http://example.com/a.jpg",
    "../../../a.jpg": "http://example.com/a.jpg",
    "//cdn.example.com/a.jpg": "http://cdn.example.com/a.jpg",
    "?b": "http://example.com/x/y/z?b",
    "https://other.example/a.jpg": "https://other.example/a.jpg",
}


@pytest.mark.parametrize(("raw", "expected"), ABSOLUTE.items())
def test_absolute_urls_are_normalised(raw: str, expected: str) -> None:
    assert normalize_url(raw) == expected


@pytest.mark.parametrize("raw", REFUSED)
def test_what_cannot_be_fetched_is_refused(raw: str) -> None:
    assert normalize_url(raw) is None


@pytest.mark.parametrize(("raw", "expected"), RELATIVE.items())
def test_references_are_resolved_against_their_base(raw: str, expected: str) -> None:
    assert normalize_url(raw, "http://example.com/x/y/z?q#f") == expected


@pytest.mark.parametrize("base", ["", "not a url", "mailto:me@example.org", "about:blank"])
def test_a_base_that_cannot_be_one_refuses_references(base: str) -> None:
    assert normalize_url("a.jpg", base) is None


def test_credentials_of_the_base_are_refused_too() -> None:
    assert normalize_url("a.jpg", "http://user:secret@example.com/") is None


HOSTILE_TEXT = st.text(alphabet=st.one_of(st.sampled_from(string.printable), st.characters()))


@given(st.builds("{}{}{}".format, st.sampled_from(["http://", "https://e.com", "", "//"]), HOSTILE_TEXT, HOSTILE_TEXT))
@example("https://e.com?/@#")
@example("http://e.com/@")
def test_normalising_is_idempotent_and_leaves_only_safe_characters(raw: str) -> None:
    url = normalize_url(raw)
    if url is not None:
        assert normalize_url(url) == url
        assert normalize_url(url, "http://base.example/x") == url
        assert url.isascii()
        assert url.isprintable()
        assert " " not in url
        assert "#" not in url
