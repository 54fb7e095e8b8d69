"""HTTP messages as archives keep them: coded, already decoded, and cut off."""

import contextlib
import gzip
import zlib

import brotli
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.warc_files import http

from pipeline.web.http_payload import decode_body, parse_response

PAGE = b"<html><img src=a.jpg alt='A dog'>" + b"<p>text</p>" * 500
LIMIT = 1 << 20


def chunked(body: bytes, size: int = 700, end: bytes = b"0\r\n\r\n") -> bytes:
    parts = [body[n : n + size] for n in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + end


def raw_deflate(body: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-15)
    return deflater.compress(body) + deflater.flush()


def decoded(body: bytes, *headers: str) -> bytes | None:
    return decode_body(parse_response(http(body, headers=headers)), LIMIT)


def test_the_head_of_a_response():
    response = parse_response(
        http(b"x", "404 Not Found", 'Text/HTML; a=b; Charset="UTF-8"', ["Content-Encoding: gzip, br"])
    )
    assert (response.status, response.media_type, response.charset) == (404, "text/html", "UTF-8")
    assert [coding for coding in response.codings if coding] == ["br", "gzip"]
    assert response.body == b"x"


@pytest.mark.parametrize(
    "status_line",
    [
        "http/1.1 200 OK",
        "HTTP/1.1  200 OK",
        "HTTP/1.1\t200",
        "HTTP/2 200",
        "HTTP 200 OK",
        "HTTP / 1.1 200 OK",
        "ICY 200 OK",
        "HTTP/1.0 200OK",
        "Http/1.1 200 ",
        " HTTP/1.1 200 OK",
        "\r\nHTTP/1.1 200 OK",
        "HTTP/1.1 200 Ångström",
    ],
)
@pytest.mark.parametrize("eol", ["\r\n", "\n", "\r", "\r\r\n"])
def test_status_lines_in_any_spelling_and_with_any_line_ends(status_line, eol):
    head = eol.join([status_line, "content-type : text/html;charset=utf-8", "X-Folded: a", "  b", "", ""])
    response = parse_response(head.encode() + b"\n\nx\r\ry")
    assert (response.status, response.media_type, response.charset) == (200, "text/html", "utf-8")
    assert response.headers["x-folded"] == "a b"
    assert response.body == b"\n\nx\r\ry"


def test_heads_that_are_not_as_they_should_be():
    assert parse_response(b"HTTP/1.1 200\nContent-Type: text/html\n\nx").body == b"x"
    assert parse_response(b"HTTP/1.1 200 OK\r\n\r\nx").body == b"x"
    assert parse_response(b"HTTP/1.1 100 Continue\r\n\r\n" + http(b"x", "404 Not Found")).status == 404
    assert parse_response(http(b"x", content_type=None)).media_type == ""
    assert parse_response(http(b"x", content_type="text/html,charset=x")).charset == "x"
    for block in (b"garbage\r\n\r\n", b"HTTP/1.1 2000 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nA: b\r\n", b"<html>"):
        with pytest.raises(OSError, match=r"head|status line"):
            parse_response(block)


def test_a_head_of_many_lines_costs_what_its_bytes_cost():
    for line in (b"a: b\r\n", b" folded\r\n", b"\r\r"):
        with contextlib.suppress(OSError):
            parse_response(b"HTTP/1.1 200 OK\r\n" + line * 120_000 + b"\r\nx")


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("Content-Encoding: gzip", gzip.compress(PAGE, mtime=0)),
        ("Content-Encoding: x-gzip", gzip.compress(PAGE, mtime=0)),
        ("Content-Encoding: GZIP", gzip.compress(PAGE, mtime=0)),
        ("Content-Encoding: deflate", zlib.compress(PAGE)),
        ("Content-Encoding: deflate", raw_deflate(PAGE)),
        ("Content-Encoding: br", brotli.compress(PAGE)),
        ("Content-Encoding: gzip, br", brotli.compress(gzip.compress(PAGE, mtime=0))),
        ("Content-Encoding: identity", PAGE),
        ("Content-Encoding: gzip", gzip.compress(PAGE[:99], mtime=0) + gzip.compress(PAGE[99:], mtime=0)),
        ("Content-Encoding: gzip", b"".join(gzip.compress(PAGE[n : n + 9], mtime=0) for n in range(0, len(PAGE), 9))),
        ("Content-Encoding: gzip", gzip.compress(PAGE, mtime=0) + b"\r\nwhat follows"),
        ("Content-Encoding: gzip;q=1.0", gzip.compress(PAGE, mtime=0)),
        ("Content-Encoding: aws-chunked, gzip", gzip.compress(PAGE, mtime=0)),
        ("Content-Encoding: gzip", gzip.compress(PAGE[:9], mtime=0) + bytes(7) + gzip.compress(PAGE[9:], mtime=0)),
        ("Content-Encoding: utf-8", PAGE),
        ("Content-Encoding: binary", PAGE),
        ("Content-Encoding: text/html", PAGE),
        ("Transfer-Encoding: chunked", chunked(PAGE)),
        ("Transfer-Encoding: gzip, chunked", chunked(gzip.compress(PAGE, mtime=0))),
        ("Transfer-Encoding: chunked", b"5;ext=1\r\n<html\r\n" + chunked(PAGE[5:])),
        ("Transfer-Encoding: chunked", b"5\n<html\n" + chunked(PAGE[5:], end=b"0\r\nTrailer: x\r\n\r\n")),
    ],
)  # fmt: skip
def test_codings(coding, body):
    assert decoded(body, coding) == PAGE


def test_both_kinds_of_coding():
    assert (
        decoded(chunked(gzip.compress(PAGE, mtime=0)), "Transfer-Encoding: chunked", "Content-Encoding: gzip") == PAGE
    )


@pytest.mark.parametrize(
    "header",
    [
        "Content-Encoding: gzip",
        "Content-Encoding: deflate",
        "Content-Encoding: br",
        "Content-Encoding: zstd",
        "Transfer-Encoding: chunked",
    ],
)
def test_bodies_that_are_decoded_already(header):
    assert decoded(PAGE, header) == PAGE
    assert decoded(b"", header) == b""


@pytest.mark.parametrize(
    ("header", "body"),
    [
        ("Content-Encoding: gzip", gzip.compress(PAGE, 0, mtime=0)),
        ("Content-Encoding: deflate", zlib.compress(PAGE, 0)),
        ("Transfer-Encoding: chunked", chunked(PAGE)),
    ],
)
def test_what_can_be_read_of_a_body_cut_off_is_read(header, body):
    page = decoded(body[: len(body) // 2], header)
    assert len(page) > len(PAGE) // 3
    assert PAGE.startswith(page)


@pytest.mark.parametrize("coding", ["compress", "X-Compress", "dcz", "gzip, exi"])
def test_codings_that_are_known_and_not_undone(coding):
    assert decoded(PAGE, f"Content-Encoding: {coding}") is None


def test_a_body_of_which_nothing_can_be_read():
    assert decoded(gzip.compress(PAGE, mtime=0)[:10], "Content-Encoding: gzip") is None
    assert decoded(gzip.compress(b"", mtime=0), "Content-Encoding: gzip") == b""


def test_countless_members_are_not_unpacked():
    assert decoded(gzip.compress(b"", mtime=0) * 100_000, "Content-Encoding: gzip") is None
    members = gzip.compress(PAGE, mtime=0) * 1_000
    assert decoded(members, "Content-Encoding: gzip") == (PAGE * 1_000)[: LIMIT + 1]


def test_a_bomb_is_not_unpacked():
    bomb = gzip.compress(bytes(50_000_000))
    assert len(decoded(bomb, "Content-Encoding: gzip")) == LIMIT + 1
    assert len(decoded(brotli.compress(bytes(5_000_000)), "Content-Encoding: br")) == LIMIT + 1


@pytest.mark.parametrize("text", [b"[\n <img src=a.jpg alt='A dog'>\n", b"x^2", b"\nhello", b"+x^\nx^hellohello<html>"])
def test_a_short_text_that_was_decoded_before_is_kept(text: bytes):
    assert decoded(text, "Content-Encoding: deflate") == text
    for stream in (zlib.compress(text), raw_deflate(text), zlib.compress(PAGE)[:-7], raw_deflate(PAGE)[:-2]):
        assert decoded(stream, "Content-Encoding: deflate").startswith((text, PAGE[:300]))


@given(st.text(st.sampled_from("<>x^ab \n'=+[c"), max_size=60))
def test_any_text_is_no_deflate_data(text: str):
    assert decoded(text.encode(), "Content-Encoding: deflate") == text.encode()


@given(st.binary(max_size=200), st.sampled_from(["gzip", "deflate", "br", "zstd", "chunked", "gzip, chunked"]))
def test_any_body_decodes_to_something(body: bytes, coding: str):
    found = decoded(body, f"Content-Encoding: {coding}", f"Transfer-Encoding: {coding}")
    assert found is not None or b"\x1f\x8b" in body


@given(st.binary(max_size=100))
def test_any_block_is_a_response_or_an_error(block: bytes):
    with contextlib.suppress(OSError):
        assert parse_response(block).body in block
