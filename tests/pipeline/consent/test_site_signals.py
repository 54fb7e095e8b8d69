"""TDM files, RSL licences, headers, challenge pages: the examples of their documents, and what strangers write."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from pipeline.consent.bot_walls import challenge_in_headers, challenge_in_page, price_in_headers
from pipeline.consent.policy import Signal, refusing
from pipeline.consent.response_headers import statements_of_headers
from pipeline.consent.rsl import licence_links, read_rsl, rsl_statement
from pipeline.consent.tdm import read_tdm_file, statement_of_file, tdm_statement

# The example of the TDM Reservation Protocol's final report, section 6.1, and rules that overlap: the first counts.
TDM_FILE = b"""[
  {"location": "/directory-a/", "tdm-reservation": 1, "tdm-policy": "https://provider.com/policies/policy-a.json"},
  {"location": "/directory-b/html/", "tdm-reservation": 1},
  {"location": "/directory-b/images/*.jpg", "tdm-reservation": 1},
  {"location": "/directory-c/", "tdm-reservation": 0},
  {"location": "/open/all", "tdm-reservation": 0},
  {"location": "/open/", "tdm-reservation": "1"},
  {"location": "/odd/", "tdm-reservation": 2},
  {"tdm-reservation": 1}, "not a rule", null
]"""


@pytest.mark.parametrize(
    ("path", "is_reserved"),
    [
        ("/directory-a/x.jpg", True),
        ("/directory-b/html/x", True),
        ("/directory-b/images/a/b.jpg", True),
        ("/directory-b/images/a.png", None),
        ("/directory-c/x", False),
        ("/open/all/x", False),
        ("/open/x", True),
        ("/odd/x", None),
        ("/elsewhere", None),
    ],
)
def test_tdm_files(path: str, is_reserved: bool | None) -> None:
    statement = statement_of_file(read_tdm_file(TDM_FILE), f"https://provider.com{path}")
    assert (None if statement is None else statement.refuses) == is_reserved


def test_the_policy_is_recorded() -> None:
    statement = statement_of_file(read_tdm_file(TDM_FILE), "https://provider.com/directory-a/x")
    assert statement is not None
    assert "https://provider.com/policies/policy-a.json" in statement.text


@given(st.binary(max_size=200))
def test_any_bytes_are_a_tdm_file(body: bytes) -> None:
    assert isinstance(read_tdm_file(body), tuple)


@pytest.mark.parametrize(
    ("lines", "is_reserved"),
    [(["1"], True), ([" 1 "], True), (["0"], False), (["0", "1"], True), (["0, 1"], True), (["2"], None), ([], None)],
)
def test_reservations_of_a_response(lines: list[str], is_reserved: bool | None) -> None:
    statement = tdm_statement(lines, [], "header")
    assert (None if statement is None else statement.refuses) == is_reserved


def licence(terms: str, url: str = "/", attributes: str = "") -> bytes:
    return (
        f'<?xml version="1.0"?><rsl xmlns="https://rslstandard.org/rsl"><content url="{url}" {attributes}>'
        f"{terms}</content></rsl>"
    ).encode()


PERMITS_TRAINING = '<permits type="usage">ai-train</permits>'
LICENCES = {
    "": None,
    "<license></license>": None,
    '<license><permits type="usage">all</permits></license>': None,
    '<license><permits type="usage">ai-all</permits></license>': None,
    f"<license>{PERMITS_TRAINING}</license>": None,
    f'<license>{PERMITS_TRAINING}<payment type="free"/></license>': None,
    f'<license>{PERMITS_TRAINING}<payment type="attribution"/></license>': None,
    '<license><permits type="usage">search, ai-train</permits></license>': None,
    '<license><prohibits type="usage">ai-train</prohibits></license>': "prohibits training",
    '<license><prohibits type="usage">all</prohibits></license>': "prohibits training",
    '<license><prohibits type="usage">ai-input ai-train</prohibits></license>': "prohibits training",
    "<license><prohibits>ai-all</prohibits></license>": "prohibits training",
    '<license><prohibits type="usage">ai-index</prohibits></license>': None,
    '<license><permits type="usage">search</permits></license>': "permits search only",
    f'<license>{PERMITS_TRAINING}<payment type="subscription"/></license>': "has a price",
    '<license><permits type="usage">train-ai</permits><payment type="subscription"><custom>u</custom></payment>'
    "</license>": "has a price",
    '<license><payment type="crawl"><amount currency="USD">0.015</amount></payment></license>': "has a price",
    f'<license>{PERMITS_TRAINING}<permits type="user">education</permits></license>': "depends on who",
    f'<license>{PERMITS_TRAINING}<prohibits type="geo">EU</prohibits></license>': "depends on who",
    f'<license>{PERMITS_TRAINING}<payment type="purchase"/></license><license>{PERMITS_TRAINING}</license>': None,
    '<license></license><license><prohibits type="usage">ai-train</prohibits></license>': "prohibits training",
}


@pytest.mark.parametrize("terms", LICENCES, ids=str)
def test_terms_of_a_licence(terms: str) -> None:
    contents = read_rsl(licence(terms), "https://example.com/license.xml")
    statement = rsl_statement(contents, "https://example.com/license.xml", "https://example.com/a.jpg")
    assert statement is not None
    expected = LICENCES[terms]
    assert statement.refuses == (expected is not None)
    assert (expected or "permits training") in statement.text


@pytest.mark.parametrize(
    ("content_url", "url", "speaks"),
    [
        ("/", "https://example.com/a.jpg", True),
        ("/images/*", "https://example.com/images/a.jpg", True),
        ("/images/*", "https://example.com/a.jpg", False),
        ("https://example.com/*", "https://example.com/a.jpg", True),
        ("https://other.com/*", "https://example.com/a.jpg", False),
    ],
)
def test_where_a_licence_holds(content_url: str, url: str, speaks: bool) -> None:
    contents = read_rsl(
        licence('<license><prohibits type="usage">all</prohibits></license>', content_url), "https://example.com/l.xml"
    )
    assert (rsl_statement(contents, "l", url) is not None) == speaks


def test_a_licence_server_and_a_licence_that_cannot_be_read_refuse() -> None:
    for contents in (
        read_rsl(
            licence(f"<license>{PERMITS_TRAINING}</license>", attributes='server="https://s.com"'), "https://e.com/"
        ),
        read_rsl(b"<html><body>Our licence</body></html>", "https://e.com/"),
        read_rsl(b"", "https://e.com/"),
    ):
        statement = rsl_statement(contents, "https://e.com/l.xml", "https://e.com/a.jpg")
        assert statement is not None
        assert statement.refuses


def test_entities_of_a_licence_are_not_resolved() -> None:
    bomb = b'<!DOCTYPE rsl [<!ENTITY a "ai-train"><!ENTITY x SYSTEM "file:///etc/passwd">]>' + licence("&x;&a;")[21:]
    read_rsl(bomb, "https://e.com/")


def test_links_to_licences() -> None:
    lines = [
        '<https://e.com/l.xml>; rel="license"; type="application/rsl+xml", </n>; rel=next',
        "</m.xml>; type=application/rsl+xml; rel=license",
        '<https://creativecommons.org/licenses/by/4.0/>; rel="license"',
    ]
    assert licence_links(lines, "https://e.com/a/b.jpg") == ["https://e.com/l.xml", "https://e.com/m.xml"]


HEADERS = [
    ({"Content-Usage": "train-ai=n"}, Signal.CONTENT_USAGE),
    ({"content-usage": "train-ai=n;x=1"}, Signal.CONTENT_USAGE),
    ({"Content-Usage": "train-ai=y"}, None),
    ({"Content-Usage": "train-ai=no"}, None),
    ({"Content-Signal": "ai-train=no"}, Signal.CONTENT_SIGNAL),
    ({"Content-Signal": "ai-train=yes"}, None),
    ({"TDM-Reservation": "1"}, Signal.TDM_RESERVATION),
    ({"TDM-Reservation": "1", "TDM-Policy": "https://e.com/p.json"}, Signal.TDM_RESERVATION),
    ({"TDM-Reservation": "0"}, None),
    ({}, None),
]


@pytest.mark.parametrize(("headers", "signal"), HEADERS)
def test_headers(headers: dict[str, str], signal: Signal | None) -> None:
    refusal = refusing(statements_of_headers(CIMultiDict(headers)))
    assert (None if refusal is None else refusal.signal) == signal


def test_headers_of_several_lines_and_of_any_length() -> None:
    headers = CIMultiDict([("Content-Usage", "search=y"), ("content-usage", "train-ai=n"), ("TDM-Reservation", "1")])
    headers.extend([("TDM-Policy", "https://e.com/p.json"), ("Content-Signal", "ai-train=yes")])
    expected = [
        "content-usage: train-ai=n, search=y (header)",
        "content-signal: train-ai=y (header)",
        "tdm-reservation: 1 (header, policy https://e.com/p.json)",
    ]
    for _ in range(2):
        assert list(map(str, statements_of_headers(headers))) == expected
    headers.add("Content-Signal", "x" * 1_000)
    assert list(map(str, statements_of_headers(headers))) == expected


def test_challenges_are_told_from_pictures_and_pages() -> None:
    assert challenge_in_headers(CIMultiDict({"CF-Mitigated": "challenge"}))
    assert challenge_in_headers(CIMultiDict({"x-amzn-waf-action": "captcha"}))
    assert challenge_in_headers(CIMultiDict({"Server": "cloudflare", "CF-Ray": "1"})) is None
    page = b"<!DOCTYPE html><html><head><title>Just a moment...</title></head><body></body></html>"
    assert challenge_in_page(page)
    assert challenge_in_page(b"<html>" + b"<script src=https://www.google.com/recaptcha/api.js></script>")
    assert challenge_in_page(b"<html><body>Not found</body></html>") is None
    assert challenge_in_page(b"\xff\xd8\xff" + page) is None
    assert challenge_in_page(b"User-agent: *\nDisallow: /") is None
    assert price_in_headers(CIMultiDict({"crawler-price": "USD 0.01"})) == "payment required: USD 0.01"
