"""WARC files: they contain the pages, so lazy-loaded images, picture sources and figure captions are included."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import BinaryIO

from pipeline.config import PairsConfig
from pipeline.records import Reason
from pipeline.sources.batch import BatchBuilder, SourceBatch
from pipeline.sources.charset import decode_page
from pipeline.sources.html import MAX_PAGE_BYTES, extract_images
from pipeline.sources.opt_out import USUAL_POLICY, PagePolicy, is_opted_out
from pipeline.web.http_payload import CONTROL_BYTES, HttpResponse, decode_body, parse_response
from pipeline.web.warc_records import WarcRecord, read_records

_PAGE_TYPES = frozenset(("text/html", "application/xhtml+xml"))
_UNKNOWN_TYPES = frozenset(("", "unknown/unknown", "application/unknown", "*/*"))
# What browsers recognise as HTML if the type is unknown (MIME Sniffing standard, section 7.1).
_HTML_START = re.compile(
    rb"[\t\n\f\r ]*+<(?:!doctype html|html|head|script|iframe|h1|div|font|table|a|style|title|b|body|br|p|!--)[ >]",
    re.IGNORECASE,
)
_HTTP_OR_HTML = re.compile("http|html", re.IGNORECASE)  # in the type of a record
_TYPE = re.compile(r"[^\s/]+/[^\s/]+")  # browsers treat others as unknown
# Codings that the headers no longer mention, by the first bytes; zlib's second byte makes both a multiple of 31.
# Browsers do not decode bzip2 and xz.
_UNSAID_CODINGS = {
    "gzip": re.compile(rb"\x1f\x8b"),
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd"),
    "deflate": re.compile(rb"\x78[\x01\x5e\x9c\xda]"),
    "bzip2": re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"),
    "xz": re.compile(rb"\xfd7zXZ\0"),
}
_SURE_CODINGS = _UNSAID_CODINGS.keys() - {"deflate"}  # a text may begin with "x^"
_TAG = re.compile(rb"<(?:html|body|img|figure)[\s>/]", re.IGNORECASE)  # text in spite of many control bytes
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_MAX_CONTROL_SHARE = 0.05  # a tenth of compressed data is control bytes


def read_warc(stream: BinaryIO, limits: PairsConfig, policy: PagePolicy = USUAL_POLICY) -> Iterator[SourceBatch]:
    """Yield the candidates of a WARC file, apart from those of pages that opt out.

    Every image of an HTML page with status 200 counts: one row for each of its texts (alt, title, figcaption), or one
    `no_caption` row. A response that is not HTTP, and a page that cannot be decoded, is larger than MAX_PAGE_BYTES, or
    nests too deeply to be read to its end is one `damaged_record` more.
    """
    builder = BatchBuilder(limits)
    for record in read_records(stream):
        if isinstance(record, Reason):
            builder.dropped[record] += 1
        elif (kind := record.field("WARC-Type")) is None:
            builder.dropped[Reason.DAMAGED_RECORD] += 1
        elif kind.lower() == "response":
            yield from _add_response(builder, record, policy)
        if builder.is_full:
            yield builder.take()
    yield from builder.finish()


def _add_response(builder: BatchBuilder, record: WarcRecord, policy: PagePolicy) -> Iterator[SourceBatch]:
    target = record.field("WARC-Target-URI") or ""
    if target and not target.lower().startswith(("http:", "https:")):
        return
    try:
        response = parse_response(record.block)
    except OSError:
        if _HTTP_OR_HTML.search(record.field("Content-Type") or "http"):
            builder.dropped[Reason.DAMAGED_RECORD] += 1
        return
    is_unknown = response.media_type in _UNKNOWN_TYPES or not _TYPE.fullmatch(response.media_type)
    if response.status != 200 or not (response.media_type in _PAGE_TYPES or is_unknown):
        return
    body = _page_bytes(record, response)
    if is_unknown and (body is None or not _HTML_START.match(body)):
        return
    page = decode_page(body, response.charset) if body is not None and target else None
    if page is None:
        builder.dropped[Reason.DAMAGED_RECORD] += 1
        return
    extracted = extract_images(page.text)
    if not extracted.is_complete:
        builder.dropped[Reason.DAMAGED_RECORD] += 1
    opted_out = is_opted_out(extracted.metas, lambda name: response.headers.getall(name, []), policy)
    yield from builder.add_page(
        extracted.images,
        target,
        extracted.base,
        encoding=page.encoding,
        is_opted_out=opted_out,
        captured=record.field("WARC-Date"),
        offset=record.offset,
    )


def _page_bytes(record: WarcRecord, response: HttpResponse) -> bytes | None:
    if not record.is_whole:
        return None
    page = decode_body(response, MAX_PAGE_BYTES)
    if page is not None and (unsaid := _unsaid_coding(page)):
        page = decode_body(replace(response, codings=(unsaid,), body=page), MAX_PAGE_BYTES)
        if page is not None and _unsaid_coding(page) in _SURE_CODINGS:
            return None
    if (
        page is None
        or len(page) > MAX_PAGE_BYTES
        or (_is_binary(page) and (any(response.codings) or not _TAG.search(page)))
    ):
        return None
    return page


def _unsaid_coding(page: bytes) -> str | None:
    return next((coding for coding, start in _UNSAID_CODINGS.items() if start.match(page)), None)


def _is_binary(page: bytes) -> bool:
    """Return whether a page is still compressed, or no text: an image, an archive. UTF-16 is text."""
    sample = page[:1_024]
    if sample.startswith(_UTF_16_MARKS) or sample.lstrip(b"\0\t\n\f\r ").startswith(b"<\0"):
        return False
    sample = sample.replace(b"\0", b"")
    return len(sample) - len(sample.translate(None, CONTROL_BYTES)) > len(sample) * _MAX_CONTROL_SHARE
