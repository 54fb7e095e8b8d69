"""WARC files: the pages themselves, so lazily loaded images, picture sources and figure captions are seen."""

from collections.abc import Iterator
from typing import BinaryIO

from pipeline.config import PairsConfig
from pipeline.records import Reason
from pipeline.sources.batch import BatchBuilder, SourceBatch
from pipeline.sources.charset import decode_page
from pipeline.sources.html import MAX_PAGE_BYTES, extract_images
from pipeline.web.http_payload import HttpResponse, decode_body, parse_response
from pipeline.web.warc_records import WarcRecord, read_records

_PAGE_TYPES = frozenset(("text/html", "application/xhtml+xml"))


def read_warc(stream: BinaryIO, limits: PairsConfig) -> Iterator[SourceBatch]:
    """Yield the candidates of a WARC file.

    Every image of an HTML page answered with 200 counts: one row for each of its texts (alt, title, figcaption), or one
    `no_caption` row. A page that cannot be decoded, is larger than MAX_PAGE_BYTES, or nests too deeply to be read to
    its end is one `damaged_record` more.
    """
    builder = BatchBuilder(limits)
    for record in read_records(stream):
        if isinstance(record, Reason):
            builder.dropped[record] += 1
        elif (record.field("WARC-Type") or "").lower() == "response":
            yield from _add_response(builder, record)
        if builder.is_full:
            yield builder.take()
    yield from builder.finish()


def _add_response(builder: BatchBuilder, record: WarcRecord) -> Iterator[SourceBatch]:
    target = record.field("WARC-Target-URI") or ""
    if not target.lower().startswith(("http:", "https:")):
        return
    try:
        response = parse_response(record.block)
    except OSError:
        builder.dropped[Reason.DAMAGED_RECORD] += 1
        return
    if response.status != 200 or response.media_type not in _PAGE_TYPES:
        return
    html = _page_text(record, response)
    if html is None:
        builder.dropped[Reason.DAMAGED_RECORD] += 1
        return
    page = extract_images(html)
    if not page.is_complete:
        builder.dropped[Reason.DAMAGED_RECORD] += 1
    yield from builder.add_page(page.images, target, page.base)


def _page_text(record: WarcRecord, response: HttpResponse) -> str | None:
    if not record.is_whole:
        return None
    page = decode_body(response, MAX_PAGE_BYTES)
    if page is None or len(page) > MAX_PAGE_BYTES:
        return None
    return decode_page(page, response.charset)
