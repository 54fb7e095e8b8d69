"""Candidates from WARC files: what is a row, what becomes of it, and that the account closes."""

import bz2
import gzip
import io
import lzma
import re
import tarfile
import zlib
from collections import Counter

import brotli
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5
from resiliparse.parse.html import HTMLTree
from support.warc_files import Rows, gzipped, http, page, record, rows_of

from pipeline.config import PairsConfig
from pipeline.records import Reason
from pipeline.sources import batch, html
from pipeline.sources.charset import decode_page
from pipeline.sources.html import extract_images
from pipeline.sources.warc import read_warc
from pipeline.web import warc_records
from pipeline.web.http_payload import decode_body, parse_response
from pipeline.web.urls import normalize_url
from pipeline.web.warc_records import WarcRecord, read_records

PAGE_URL = "http://a.example/dir/page.html"


def read(*records: bytes, limits: PairsConfig | None = None) -> tuple[Rows, Counter[Reason]]:
    return rows_of(read_warc(io.BytesIO(gzipped(records)), limits or PairsConfig()))


def urls(html_text: str, uri: str = PAGE_URL) -> list[str]:
    return [row[0] for row in read(page(html_text, uri))[0]]


def test_a_row_for_each_text():
    rows, dropped = read(
        page("<figure><img src='../a.jpg' alt=' A  dog\n'title='Rex &amp; me'><figcaption>On the beach</figcaption>")
    )
    assert rows == [
        ("http://a.example/a.jpg", "A dog", "alt", PAGE_URL),
        ("http://a.example/a.jpg", "Rex & me", "title", PAGE_URL),
        ("http://a.example/a.jpg", "On the beach", "figcaption", PAGE_URL),
    ]
    assert dropped == Counter()


@pytest.mark.parametrize(
    ("markup", "reason", "count"),
    [
        ("<img src=a.jpg><img src=a.jpg alt='  ' title='&nbsp;&#x200b;'>", Reason.NO_CAPTION, 2),
        ("<img>", Reason.NO_CAPTION, 1),
        ("<img alt=x><img src=' ' alt=x title=y>", Reason.NO_URL, 3),
        ("<img src='data:image/png;base64,AA' alt=x>", Reason.BAD_URL, 1),
        ("<img src='ftp://a.example/a.jpg' alt=x title=y>", Reason.BAD_URL, 2),
        ("<img src='http://[' alt=x><img src='javascript:1' alt=x>", Reason.BAD_URL, 2),
        (f"<img src='{'a' * 2100}' alt=x>", Reason.BAD_URL, 1),
        (f"<img src=a.jpg alt='{'a' * 10_001}'>", Reason.CAPTION_TOO_LONG, 1),
    ],
)
def test_reasons(markup, reason, count):
    rows, dropped = read(page(markup))
    assert rows == []
    assert dropped == Counter({reason: count})


def test_the_same_text_of_the_same_image_counts_once_a_page():
    twice = "<img src=a.jpg alt=x title=x><img src='./a.jpg' alt=' x '><img src=b.jpg alt=x>"
    rows, dropped = read(page(twice), page(twice, "http://a.example/other"))
    assert [row[0] for row in rows] == [
        "http://a.example/dir/a.jpg",
        "http://a.example/dir/b.jpg",
        "http://a.example/a.jpg",
        "http://a.example/b.jpg",
    ]
    assert dropped == Counter({Reason.REPEATED_TEXT: 4})


def test_limits_of_the_config():
    limits = PairsConfig(min_caption_chars=3, max_caption_chars=5, max_url_chars=64)
    long_url = f"<img src=/{'u' * 64} alt=four>"
    rows, dropped = read(page("<img src=a alt=ab><img src=a alt=four><img src=a alt=sixsix>" + long_url), limits=limits)
    assert [row[1] for row in rows] == ["four"]
    assert dropped == Counter({Reason.NO_CAPTION: 1, Reason.CAPTION_TOO_LONG: 1, Reason.BAD_URL: 1})


def test_addresses_start_at_the_base():
    assert urls("<img src=a.jpg alt=x><base href='/b/'>") == ["http://a.example/b/a.jpg"]
    assert urls("<base href='https://c.example/d/e'><img src=a.jpg alt=x>") == ["https://c.example/d/a.jpg"]
    assert urls("<base href='mailto:x'><img src=a.jpg alt=x>") == ["http://a.example/dir/a.jpg"]
    assert urls("<img src=a.jpg?x=1&amp;y=2 alt=x>") == ["http://a.example/dir/a.jpg?x=1&y=2"]
    assert urls("<img src='//c.example/a b.jpg#f' alt=x>") == ["http://c.example/a%20b.jpg"]


def test_an_absolute_address_survives_a_page_url_that_is_none():
    assert urls("<img src='http://b.example/a.jpg' alt=x>", "http://a.example:99999/") == ["http://b.example/a.jpg"]


def test_only_pages_answered_with_200_are_read():
    image = "<img src=a.jpg alt=x>"
    rows, dropped = read(
        page(image, status="404 Not Found"),
        page(image, status="302 Found"),
        page(image, content_type="text/plain"),
        page(image, content_type=None),
        record("request", http(image.encode())),
        record("revisit", http(image.encode())),
        record("response", image.encode(), "dns:a.example", content_type="text/dns"),
        record("resource", image.encode(), content_type="text/html"),
        page(image, content_type="Application/XHTML+xml; charset=utf-8"),
    )
    assert len(rows) == 1
    assert dropped == Counter()


def test_texts_are_what_a_reader_sees():
    emoji = page('<img src=a.jpg alt="caf\u00e9\u00a0\u3000\u0007 \ufeff&#x1F600;">')
    latin = page("<meta charset=utf-8><img src=b.jpg alt='d\xe9j\xe0 vu, tr\xe8s fatigu\xe9'>".encode("latin-1"))
    rows, _ = read(emoji, latin)
    assert [row[1] for row in rows] == ["café 😀", "déjà vu, très fatigué"]


@pytest.mark.parametrize(
    ("coding", "pack"),
    [
        ("gzip", lambda body: gzip.compress(body, mtime=0)),
        ("zstd", lambda body: pa.compress(body, "zstd", asbytes=True)),
        *(("deflate", lambda body, level=level: zlib.compress(body, level)) for level in (1, 5, 6, 9)),
    ],
)
def test_coded_payloads(coding, pack):
    body = pack(b"<img src=a.jpg alt=x>")
    for headers in ([f"Content-Encoding: {coding}"], ["Content-Encoding: utf-8"], []):  # the last two no longer say it
        rows, _ = read(page(body, headers=headers))
        assert rows == [("http://a.example/dir/a.jpg", "x", "alt", PAGE_URL)]


@pytest.mark.parametrize(
    "block",
    [
        http(gzip.compress(b"<img src=a.jpg alt=x>", mtime=0)[:9], headers=["Content-Encoding: gzip"]),
        http(gzip.compress(b"<img src=a.jpg alt=x>" * 99, mtime=0), headers=["Content-Encoding: br"]).replace(
            b"\x1f\x8b", b"no"
        ),
        http(brotli.compress(b"<img src=a.jpg alt=x>" * 99), headers=["Content-Encoding: gzip"]),
        http(b"<img src=a.jpg alt=x>", headers=["Content-Encoding: compress"]),
        http("<img src=a.jpg alt='狗'>".encode("hz"), content_type="text/html; charset=hz-gb-2312"),
        b"<html><img src=a.jpg alt=x></html>",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n<img src=a.jpg alt=x>",
        b"",
    ],
)
def test_a_page_that_cannot_be_read_is_counted(block):
    rows, dropped = read(record("response", block))
    assert rows == []
    assert dropped == Counter({Reason.DAMAGED_RECORD: 1})


def deflated_raw(content: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(content) + compressor.flush()


@pytest.mark.parametrize("headers", [[], ["Content-Encoding: gzip"], ["Content-Encoding: br"]])
@pytest.mark.parametrize("pack", [bz2.compress, lzma.compress, deflated_raw])
def test_a_page_in_a_coding_that_no_header_names_is_counted(headers, pack):
    markup = "".join(f"<p>{number**3} <img src=/{number}.jpg alt='picture {number}'>" for number in range(200))
    rows, dropped = read(page(pack(markup.encode()), headers=headers))
    assert rows == []
    assert dropped == Counter({Reason.DAMAGED_RECORD: 1})


SHORT = b"<img src=a.jpg alt='a dog'>"


@pytest.mark.parametrize("headers", [[], ["Content-Encoding: gzip"], ["Content-Encoding: identity"]])
@pytest.mark.parametrize(
    ("body", "is_read"),
    [
        (gzip.compress(SHORT, mtime=0), True),
        (zlib.compress(SHORT), True),
        (zlib.compress(SHORT, 0), True),
        (pa.compress(SHORT, "zstd", asbytes=True), True),
        (b"x^2 " + SHORT, True),
        (b"BZh9 " + SHORT, True),
        (b"\x1f\x8b" + SHORT, False),
        (b"\x28\xb5\x2f\xfd" + SHORT, False),
        (bz2.compress(SHORT), False),
        (bz2.compress(b""), False),
        (lzma.compress(SHORT), False),
        (lzma.compress(b""), False),
    ],
    ids=[
        "gzip", "zlib", "zlib stored", "zstd", "text like deflate", "text like bzip2", "no gzip", "no zstd", "bzip2",
        "bzip2 of nothing", "xz", "xz of nothing",
    ],
)  # fmt: skip
def test_a_short_page_in_a_coding_that_no_header_names_is_read_or_counted(headers, body, is_read):
    rows, dropped = read(page(body, headers=headers))
    assert [row[1] for row in rows] == ["a dog"] * is_read
    assert dropped == Counter({Reason.DAMAGED_RECORD: int(not is_read)})


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16le", "utf-16be"])
def test_a_page_in_utf_16_is_text_whatever_its_letters(encoding):
    markup = "\n<html><p>日本語の文字列の例です。<img src=/1.jpg alt='日本語の文字列の例です'></html>" + "一二三" * 200
    rows, _ = read(page(markup.encode(encoding), content_type=f"text/html; charset={encoding}"))
    assert [row[1] for row in rows] == ["日本語の文字列の例です"]


def test_records_that_lack_what_they_are_or_where_are_counted():
    block = http(b"<img src=a.jpg alt=x>")
    rows, dropped = read(record("response", block).replace(b"WARC-Type", b"Warp-Type"), record("response", block, ""))
    assert rows == []
    assert dropped == Counter({Reason.DAMAGED_RECORD: 2})


@pytest.mark.parametrize("content_type", [None, "*/*", "unknown/unknown", "html", "text", "text/", "/html"])
def test_a_page_of_unknown_type_is_known_by_its_start(content_type):
    rows, _ = read(
        page("\n<!DOCTYPE HTML><img src=a.jpg alt=x>", content_type=content_type),
        page("just text <img src=a.jpg alt=y>", content_type=content_type),
    )
    assert [row[1] for row in rows] == ["x"]


def test_texts_that_cannot_be_decoded_are_counted_and_the_others_kept():
    rows, dropped = read(
        page("<meta charset=utf-8><p>犬の写真<img src=a.jpg alt='a @' title='犬'>".encode().replace(b"@", b"\xff")),
        page("<img src=b.jpg alt='caf\ufffd'>"),  # a site that decoded wrongly itself
    )
    assert [row[1] for row in rows] == ["犬"]
    assert dropped == Counter({Reason.UNDECODABLE_TEXT: 2})


def test_queries_are_in_the_encoding_of_their_page():
    markup = "<img src='/é.jpg?q=é#é' alt=x><img src='http://b.example/a?é' alt=x><img src='?a' alt=x>"
    rows, _ = read(page(markup.encode("cp1252"), content_type="text/html; charset=iso-8859-1"), page(markup))
    assert [row[0] for row in rows] == [
        "http://a.example/%C3%A9.jpg?q=%E9",
        "http://b.example/a?%E9",
        "http://a.example/dir/page.html?a",
        "http://a.example/%C3%A9.jpg?q=%C3%A9",
        "http://b.example/a?%C3%A9",
        "http://a.example/dir/page.html?a",
    ]


def test_references_in_queries_of_a_page_of_ascii_are_in_its_encoding():
    image = "<img src='a?q=&eacute;&#9731;' alt=x>"
    for charset, query in (("windows-1252", "%E9%26%239731%3B"), ("utf-8", "%C3%A9%E2%98%83")):
        rows, _ = read(page(f"<meta charset={charset}>" + image))
        assert [row[0] for row in rows] == [f"http://a.example/dir/a?q={query}"]


OPTED_OUT = [
    '<meta name="robots" content="noai, noimageai">',
    "<META CONTENT='NoAI' NAME=Robots>",
    "<meta name=robots content='index, follow; noimageai'>",
    "<meta name=robots content=index><meta name=robots content=noml>",
    "<meta name=robots content=noimageindex>",
    "<meta name=wit-pipeline content=noai>",
    "<meta name=wit-pipeline content='noindex, nofollow'>",
    "<meta name=gptbot content=noai>",
    "<META CONTENT=none NAME=CCBot>",
    "<meta name='Kangaroo Bot' content=noai>",
    "<meta name=robots content='index, gptbot: noindex'>",
    "<meta http-equiv=X-Robots-Tag content=noai>",
    "<meta name='robots, googlebot' content=noai>",
    "<meta name=robots content='noai=1'>",
    "<meta name=tdm-reservation content=1>",
]
NOT_OPTED_OUT = [
    "<meta name=robots content='noindex, nofollow'>",  # said of the page as a search result
    "<meta name=robots content=all>",
    "<meta name=googlebot content=noai>",
    "<meta name=gptbot content='index, follow'>",
    "<meta name=robots content='googlebot: noindex'>",
    "<meta name=description content=noai>",
    "<meta name=tdm-reservation content=0>",
    "<!-- <meta name=robots content=noai> -->",
    "<p>noai</p>",
]


@pytest.mark.parametrize("head", OPTED_OUT)
def test_a_page_opts_its_images_out(head):
    images = "<img src=a.jpg alt=x title=y><img src=b.jpg><img src='data:,' alt=x>"
    raw = gzipped([page(head + images), page("<img src=c.jpg alt=z>")])
    rows, dropped = rows_of(read_warc(io.BytesIO(raw), PairsConfig()))
    assert [row[1] for row in rows] == ["z"]
    assert dropped == Counter({Reason.OPTED_OUT: 2, Reason.NO_CAPTION: 1, Reason.BAD_URL: 1})


@pytest.mark.parametrize("head", NOT_OPTED_OUT)
def test_a_page_that_refuses_something_else(head):
    raw = page(head + "<img src=a.jpg alt=x>")
    rows, dropped = rows_of(read_warc(io.BytesIO(raw), PairsConfig()))
    assert (len(rows), dropped) == (1, Counter())


@pytest.mark.parametrize(
    ("header", "is_opted_out"),
    [
        ("X-Robots-Tag: noai, noimageai", True),
        ("x-robots-tag: all: noai", True),
        ("X-Robots-Tag: otherbot: noai\r\nX-Robots-Tag: noimageai", True),
        ("TDM-Reservation: 1", True),
        ("TDM-Reservation: 0, 1", True),
        ("TDM-Reservation: 0", False),
        ("Content-Usage: search=y\r\nContent-Usage: train-ai=n", True),
        ("Content-Usage: train-ai=y", False),
        ('Content-Usage: note="a, train-ai=n"', False),
        ("content-signal: search=yes, ai-train=no", True),
        ("Content-Signal: search=yes", False),
        ("X-Robots-Tag: noindex", False),
        ("X-Robots-Tag: otherbot: noai", False),
        ("X-Note: noai", False),
    ],
)
def test_the_response_of_a_page_opts_its_images_out(header, is_opted_out):
    rows, dropped = read(page("<img src=a.jpg alt=x>", headers=[header]))
    assert len(rows) == (not is_opted_out)
    assert dropped[Reason.OPTED_OUT] == is_opted_out


def test_an_empty_query_is_part_of_an_address():
    assert urls("<img src='a.jpg?' alt=x><img src='a.jpg' alt=x>") == [
        "http://a.example/dir/a.jpg?",
        "http://a.example/dir/a.jpg",
    ]


def test_damaged_records_cost_one_row_each(monkeypatch):
    monkeypatch.setattr(warc_records, "MAX_BLOCK_BYTES", 5_000)
    monkeypatch.setattr("pipeline.sources.warc.MAX_PAGE_BYTES", 3_000)
    monkeypatch.setattr(html, "_MAX_COMPARISONS", 500)
    good = page("<img src=a.jpg alt=x>")
    rows, dropped = read(
        page("<p>" * 1_500),  # larger than a page may be
        page("<p>" * 3_000),  # larger than a record that is kept whole
        page("x", headers=["Content-Encoding: compress"]),
        b"garbage",
        page(b"<img src=a.jpg alt=x>" + b"<b>" * 600),  # nests too deeply
        record("response", b"x" * 6_000, content_type="image/jpeg"),  # no page: no row
        good,
    )
    assert len(rows) == 2
    assert dropped == Counter({Reason.DAMAGED_RECORD: 5})


def test_batches_are_bounded(monkeypatch):
    monkeypatch.setattr(batch, "_BATCH_ROWS", 10)
    many = page("".join(f"<img src={n} alt=x{n}>" for n in range(25)))
    batches = list(read_warc(io.BytesIO(many + many), PairsConfig()))
    assert [b.candidates.num_rows for b in batches] == [10] * 5
    monkeypatch.setattr(batch, "_BATCH_CHARS", 300)
    assert len(list(read_warc(io.BytesIO(many), PairsConfig()))) > 3


@given(st.binary(max_size=300))
def test_any_bytes_as_a_page_and_the_account_closes(body: bytes):
    for content in (body, b"<img src=a alt='" + body + b"'>", b"<figure><img src='" + body + b"'><figcaption>" + body):
        rows, dropped = read(page(content), page("<img src=a.jpg alt=sentinel>"))
        assert rows[-1][1] == "sentinel"
        assert len(rows) + dropped.total() == 1 + rows_stated(content)


def rows_stated(content: bytes) -> int:
    """Count the rows of a page without a judgement of its images: their texts, and images without any."""
    decoded = decode_page(content, None)
    if decoded is None or content.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd")):  # of which nothing can be read
        return 1
    controls = sum(byte < 32 and byte not in b"\0\t\n\f\r\x1b" for byte in content[:1024])
    is_utf_16 = content.startswith((b"\xff\xfe", b"\xfe\xff")) or content.lstrip(b"\0\t\n\f\r ").startswith(b"<\0")
    if (
        controls > 0.05 * len(content[:1024].replace(b"\0", b""))
        and not is_utf_16
        and not re.search(rb"(?i)<(html|body|img|figure)[\s>/]", content)
    ):
        return 1  # no text
    images = extract_images(decoded.text).images
    return sum(max(1, len(image.texts)) for image in images)


# Real files


def pages_in(path) -> list[tuple[str, int, str]]:
    """Return (URL, status, HTML) of every HTML response of a file."""
    found = []
    with path.open("rb") as stream:
        for item in read_records(stream):
            assert isinstance(item, WarcRecord)
            if item.field("WARC-Type") == "response" and item.field("WARC-Target-URI").startswith("http"):
                response = parse_response(item.block)
                if response.media_type == "text/html":
                    body = decode_body(response, 1 << 24)
                    declared = map_encoding_to_html5(response.charset) if response.charset else None
                    text = bytes_to_str(body, declared or detect_encoding(body, from_html_meta=True))
                    found.append((item.field("WARC-Target-URI"), response.status, text))
    return found


def dom_alts(url: str, text: str) -> list[tuple[str, str]]:
    """Return (address, alt) of the images with an alt in a DOM of the page, spacers and all."""
    nodes = HTMLTree.parse(text).document.get_elements_by_tag_name("img")
    alts = [" ".join(re.sub("[\x00-\x1f\x80-\x9f]", " ", node.getattr("alt", "")).split()) for node in nodes]
    return [(normalize_url(node.getattr("src", ""), url), alt) for node, alt in zip(nodes, alts, strict=True) if alt]


def test_closed_world_has_nearly_every_picture_it_shows(shared_data):
    path = shared_data / "web" / "closed_world_2008.warc.gz"
    with path.open("rb") as stream:
        types = [
            (item.field("WARC-Target-URI"), parse_response(item.block).media_type)
            for item in read_records(stream)
            if item.field("WARC-Type") == "response" and item.field("WARC-Target-URI").startswith("http")
        ]
    pictures = {normalize_url(url) for url, media_type in types if media_type.startswith("image/")}
    alts = [pair for url, _, text in pages_in(path) for pair in dom_alts(url, text)]
    assert (sum(address in pictures for address, _ in alts), len(alts)) == (632, 666)
    with path.open("rb") as stream:
        rows, dropped = rows_of(read_warc(stream, PairsConfig()))
    expected = [set(dom_alts(url, text)) for url, status, text in pages_in(path) if status == 200]
    assert Counter((row[0], row[1]) for row in rows) == Counter(pair for pairs in expected for pair in pairs)
    assert dropped[Reason.REPEATED_TEXT] == 632  # every image is there twice, or has its alt as its title
    assert len(rows) + dropped.total() == 307 + 632 + dropped[Reason.NO_CAPTION]


@pytest.mark.parametrize(
    "name",
    ["wikipedia_2012_a", "wikipedia_2012_b", "wikipedia_2012_c", "cc_main_2020_34", "whirlwind", "books_toscrape"],
)
def test_real_files_give_the_alts_of_their_doms(shared_data, name):
    path = shared_data / "web" / f"{name}.warc.gz"
    with path.open("rb") as stream:
        rows, dropped = rows_of(read_warc(stream, PairsConfig()))
    expected = [set(dom_alts(url, text)) for url, status, text in pages_in(path) if status == 200]
    assert sorted(row[:2] for row in rows if row[2] == "alt") == sorted(pair for pairs in expected for pair in pairs)
    assert set(dropped) <= {Reason.NO_CAPTION, Reason.REPEATED_TEXT}
    assert rows


def test_common_crawl_2014(shared_data):
    with tarfile.open(shared_data / "web" / "cc_main_2014_35_warc_wat_wet.tar.gz") as archive:
        member = next(m for m in archive.getmembers() if m.name.endswith(".warc"))
        rows, dropped = rows_of(read_warc(archive.extractfile(member), PairsConfig()))
    assert len(rows) + dropped.total() == 861
    assert dropped == Counter()


def test_links_a_wat_extractor_must_find(shared_data):
    with tarfile.open(shared_data / "web" / "link_extraction_golden.tar.gz") as archive:
        member = next(m for m in archive.getmembers() if m.name.endswith("/link-extraction-test.warc"))
        rows, dropped = rows_of(read_warc(archive.extractfile(member), PairsConfig()))
    assert [row[:2] for row in rows] == [
        ("http://www.example.com/image.png", "IMG@/src"),
        ("http://www.example.com/image.gif", "IMG@/longdesc"),
        ("http://www.example.com/jackbox/img/thumbs/4.jpg", "responsive lightbox"),
        ("https://img.example.org/view?id=867&res=10x16", 'image URL containing escaped ampersand ("&amp;")'),
    ]
    assert dropped == Counter()
