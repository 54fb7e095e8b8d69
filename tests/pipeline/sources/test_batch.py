"""Judging rows: the quick test for addresses in normal form, and the cleaning of texts."""

import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import PairsConfig
from pipeline.records import Reason
from pipeline.sources import batch as batch_module
from pipeline.sources.batch import _PLAIN_REFERENCE, _PLAIN_URL, BatchBuilder, Image, Origin, clean_text
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


def clean_text_by_its_words(text: str) -> str:
    text = re.sub("[\ud800-\udfff]", "", text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass"))
    return " ".join(re.sub("[\x00-\x1f\x7f-\x9f\u200b\ufeff]", " ", text).split())


@given(st.text(st.sampled_from(" ab\t\u00a0\u2003\u200b\u200d\ud83d\x1c\u2028é") | st.characters(), max_size=8))
def test_texts_that_are_clean_already_are_left_as_they_are(text: str):
    assert clean_text(text) == clean_text_by_its_words(text)


@given(st.text(st.characters()))
def test_clean_text_is_clean_and_can_be_encoded(text: str):
    cleaned = clean_text(text)
    assert cleaned == clean_text(cleaned) == cleaned.encode().decode()
    assert "  " not in cleaned
    assert cleaned == cleaned.strip()


ABSOLUTE = ["http://c.example/x.jpg", "HTTP://c.example/x", "//c.example/y", "//C.example/y", "//c", "//c.example:25/x"]
OTHERS = ["/x.jpg", "/x.jpg#f", "/./x", "/a/../b", "a/b.jpg", "", " ", "//", "mailto:x", "data:image/png;base64,AA"]
ADDRESSES = st.sampled_from([*ABSOLUTE, *OTHERS])


@given(ADDRESSES, st.sampled_from(["http://b.example/d/p.html", "https://b.example:8443/", ""]))
def test_the_quick_ways_to_an_address_lead_where_the_parser_does(raw: str, page: str):
    builder = BatchBuilder(PairsConfig())
    assert not list(builder.add_page([Image(raw, [("alt", "a dog")])], page, None))
    (found,) = builder.finish()
    expected = normalize_url(raw, normalize_url(page))
    reason = Reason.NO_URL if not raw.strip() else Reason.BAD_URL
    assert found.candidates["url"].to_pylist() == ([] if expected is None else [expected])
    assert dict(found.dropped) == ({reason: 1} if expected is None else {})


PAGES = st.lists(st.lists(st.integers(0, 5), max_size=6), max_size=5)


@given(PAGES, st.integers(1, 5), st.booleans())
def test_each_row_has_the_page_it_is_of_however_batches_are_cut(pages: list[list[int]], rows: int, as_table: bool):
    builder = BatchBuilder(PairsConfig())
    batches, expected, without = [], [], 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_module, "_BATCH_ROWS", rows)
        for number, images in enumerate(pages):
            page, at = f"http://p{number}.example/", datetime(2020, 1, 1 + number, tzinfo=UTC)
            shown = [(f"http://a.example/{n}/{k}", "" if n == 0 else f"text {n}") for k, n in enumerate(images)]
            expected += [(url, text, page, at, number) for url, text in shown if text]
            without += sum(not text for _, text in shown)
            if as_table:
                for url, text in shown:
                    builder.add_row(url, text, page, Origin(at, number))
                    batches += [builder.take()] if builder.is_full else []
            else:
                made = [Image(url, [("alt", text)] if text else []) for url, text in shown]
                batches += builder.add_page(made, page, None, captured=at.isoformat(), offset=number)
        batches += builder.finish()
    names = ["url", "caption", "page_url", "captured_at", "source_offset"]
    found = [tuple(row.values()) for one in batches for row in one.candidates.select(names).to_pylist()]
    assert found == expected
    assert all(one.candidates.num_rows == rows for one in batches[:-1])
    assert sum(one.dropped[Reason.NO_CAPTION] for one in batches) == without
