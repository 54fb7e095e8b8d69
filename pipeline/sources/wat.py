"""WAT files: Common Crawl's metadata records, whose JSON lists the links of every page.

    {"Envelope": {"Payload-Metadata": {"HTTP-Response-Metadata": {"HTML-Metadata": {"Links": [
        {"path": "IMG@/src", "url": "../a.jpg", "alt": "A dog &amp; a cat"}, {"path": "A@/href", ...

Most of a record is other links, so image links are cut out of the JSON text, and only they are parsed.
"""

import html
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, BinaryIO

import orjson

from pipeline.config import PairsConfig
from pipeline.records import Reason
from pipeline.sources.batch import BatchBuilder, SourceBatch, clean_text
from pipeline.sources.opt_out import USUAL_POLICY, Meta, PagePolicy, is_opted_out
from pipeline.web.warc_records import WarcRecord, read_records

_IMAGE_LINK = b'"path":"IMG@/src"'  # in a JSON string the quotes would be escaped, so this is a key and its value
_IMAGE = b'"IMG@/src"'  # the value alone, if the JSON has spaces
_TO_VALUE = len(_IMAGE_LINK) - len(_IMAGE)
_LINKS, _WARC_HEADER = b'"Links":[', b'"WARC-Header-Metadata"'
_BASE, _RESPONSE = b'"Base":"', b'"Response-Message":{'
_SOME_HEAD, _HEADS, _METAS = b'"Head', (b'"Head"', b'"Headers"'), b'"metas"'
_LONG_ARRAYS, _ARRAY_END = (b'"Link":[{', b'"Scripts":[{'), b"}]"  # of a page's head
_OBJECT_END, _BRACE = b'"}', b"{"[0]
_LOWER_CASE, _HYPHENS = bytes(range(256)).lower(), b"-_"
# In lower case, without hyphens and underscores.
_REFUSING_NAMES = (b"tdmreservation", b"contentusage", b"contentsignal")
_REFUSALS_AFTER_NO = (b"ai", b"image", b"ml", b"index", b"ne")  # noai, noimageai, noimageindex, ...
_OK = "200"
_STATUS = re.compile(rb'"Response-Message":\{[^{}]*?"Status":"(\d*)"')
_DATE = re.compile(rb'"WARC-Date"\s*:\s*"([^"]{1,40})')
_REFERENCE = re.compile(r"&(?:#\d{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")


@dataclass(frozen=True)
class _Page:
    links: list[dict[str, Any]]  # the image links that may have a text
    without_text: int  # how many others there are
    base: str | None
    is_opted_out: bool = False
    status: str = _OK


def read_wat(stream: BinaryIO, limits: PairsConfig, policy: PagePolicy = USUAL_POLICY) -> Iterator[SourceBatch]:
    """Yield the candidates of a WAT file, apart from those of pages that opt out.

    Every `IMG@/src` link of a page answered with 200 counts: one row for each of its texts (alt, title), or one
    `no_caption` row.
    """
    builder = BatchBuilder(limits)
    for record in read_records(stream):
        if isinstance(record, Reason):
            builder.dropped[record] += 1
        elif (place := record.block.find(_IMAGE)) >= 0:
            yield from _add_record(builder, record, place, policy)
        if builder.is_full:
            yield builder.take()
    yield from builder.finish()


def _add_record(builder: BatchBuilder, record: WarcRecord, place: int, policy: PagePolicy) -> Iterator[SourceBatch]:
    """Add the images of a record; `place` is the offset of the first `_IMAGE`."""
    block = record.block
    first = place - _TO_VALUE if block.startswith(_IMAGE_LINK, place - _TO_VALUE) else block.find(_IMAGE_LINK)
    status = _STATUS.search(block, max(0, block.find(_RESPONSE)))
    if status and status[1] != _OK.encode():
        return
    page = None
    if record.is_whole:
        page = (_cut_out(block, first, policy) if status else None) or _parse(block, policy)
    if page is None:
        builder.dropped[Reason.DAMAGED_RECORD] += 1
        return
    if page.status != _OK:
        return
    builder.dropped[Reason.NO_CAPTION] += page.without_text
    target = record.field("WARC-Target-URI") or ""
    yield from builder.add_page(
        _images(page.links),
        target,
        page.base,
        is_opted_out=page.is_opted_out,
        captured=_captured(block) if page.links else None,
        offset=record.offset,
    )


def _captured(block: bytes) -> str | None:
    """Return when the page was crawled; the header of the WAT record says when its metadata were extracted."""
    found = _DATE.search(block, max(0, block.find(_WARC_HEADER)))  # of the page's record: Common Crawl puts it first
    return found[1].decode("ascii", "replace") if found else None


def _may_refuse(around: bytes, policy: PagePolicy) -> bool:
    """Say whether words of a page's headers and head, `around` its links, could opt the images out: few records do."""
    joined = around.translate(_LOWER_CASE, _HYPHENS)
    if any(name in joined for name in _REFUSING_NAMES):
        return True
    if not any(rest.startswith(_REFUSALS_AFTER_NO) for rest in joined.split(b"no")[1:]):
        return False
    if b"robots" in joined:
        return True
    start = joined.find(_METAS)
    return start >= 0 and _names_of(policy.directives.agents).search(joined, start) is not None


def _without_arrays(text: bytes) -> bytes:
    """Leave out what is long and refuses nothing: most of the links in a page's head, and its scripts.

    An array of objects does not end before the first "}]".
    """
    for key in _LONG_ARRAYS:
        start = text.find(key)
        end = text.find(_ARRAY_END, start) if start >= 0 else -1
        if end >= 0:
            text = text[:start] + text[end:]
    return text


@cache
def _names_of(agents: frozenset[str]) -> re.Pattern[bytes]:
    """Return the pattern of an agent's name in the name of a meta element, in lower case, without hyphens; escaped
    white space may be around it.
    """
    plain = sorted(agent.encode().translate(None, _HYPHENS) for agent in agents)
    return re.compile(rb'"(?:name|property|httpequiv)"\s*:\s*"[^"]*?(?:%b)' % b"|".join(map(re.escape, plain)))


def _images(links: list[dict[str, Any]]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield what `Image` has of each link."""
    for link in links:
        texts = []
        if (text := link.get("alt")) and isinstance(text, str):
            texts.append(("alt", clean_text(_unescape(text) if "&" in text else text)))
        if (text := link.get("title")) and isinstance(text, str):
            texts.append(("title", clean_text(_unescape(text) if "&" in text else text)))
        url = link.get("url")
        if not isinstance(url, str):
            url = ""
        yield _unescape(url) if "&" in url else url, texts


def _unescape(text: str) -> str:
    """Decode character references: older WAT files have attributes as written in the page, newer ones decoded. Only
    references that end in ";" are decoded, because a decoded URL may contain "&copy=1".
    """
    return _REFERENCE.sub(lambda match: html.unescape(match[0]), text)


def _cut_out(block: bytes, first: int, policy: PagePolicy) -> _Page | None:
    """Parse only the image links; None if the whole JSON must be parsed. `first` is the offset of the first image link,
    -1 if there is none.

    A link is taken to end with the first string that ends an object. Where that is wrong (in a text, or within a nested
    object), what was cut out is no list of as many objects.
    """
    if first < 0:
        return None
    links: list[bytes] = []
    end, path = 0, first
    while path >= 0:
        start = path - 1 if block[path - 1] == _BRACE else _object_start(block, end, path)
        end = block.find(_OBJECT_END, path + len(_IMAGE_LINK) - 1) + 2
        if start < 0 or end < 2:
            return None
        links.append(block[start:end])
        path = block.find(_IMAGE_LINK, end)
    head = block[_head_start(block, 0) : max(block.rfind(_LINKS, 0, first), 0) or first]
    tail = block[_head_start(block, end) :]
    around = _without_arrays(head) + _without_arrays(tail)
    if _BASE in around or _may_refuse(around, policy):
        return None
    try:
        parsed = orjson.loads(b"[%b]" % b",".join(links))
    except ValueError:
        return None
    if len(parsed) != len(links) or {*map(type, parsed)} != {dict}:
        return None
    with_text = [link for link in parsed if "alt" in link or "title" in link]
    return _Page(with_text, len(parsed) - len(with_text), None)


def _head_start(block: bytes, start: int) -> int:
    """Return where a page's headers or head begin at or after `start`; the end of the record if they do not."""
    place = block.find(_SOME_HEAD, start)
    while place >= 0 and not block.startswith(_HEADS, place):
        place = block.find(_SOME_HEAD, place + 1)
    return place if place >= 0 else len(block)


def _object_start(block: bytes, earliest: int, path: int) -> int:
    """Return the start of the object with the path among its later keys, -1 if it cannot be determined. The brace found
    may end a string ("a{", after which no key starts), or the object may contain another one.
    """
    start = block.rfind(b'{"', earliest, path)
    is_plain = start >= 0 and block[start + 2 : start + 3].isalpha() and block.find(b'"}', start, path) < 0
    return start if is_plain else -1


def _parse(block: bytes, policy: PagePolicy) -> _Page | None:
    """Parse the whole record; None if it is not the JSON of a page."""
    try:
        envelope = _loads(block)["Envelope"]
        response = envelope["Payload-Metadata"]["HTTP-Response-Metadata"]
        metadata = response["HTML-Metadata"]
        links = [link for link in metadata.get("Links", ()) if link.get("path") == "IMG@/src"]
        head = metadata.get("Head", {})
        base, metas, headers = head.get("Base"), head.get("Metas", ()), response.get("Headers", {})
        status = str(response.get("Response-Message", {}).get("Status", _OK))
        named = [Meta(_named(meta), str(meta.get("content", ""))) for meta in metas]
        opted_out = is_opted_out(named, lambda name: _header_lines(headers, name), policy)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return _Page(links, 0, base if isinstance(base, str) else None, opted_out, status)


def _named(meta: dict[str, Any]) -> str:
    return str(meta.get("name") or meta.get("http-equiv") or meta.get("property") or "")


def _header_lines(headers: dict[str, Any], name: str) -> list[str]:
    values = [value for key, value in headers.items() if key.lower() == name]
    return [str(line) for value in values for line in (value if isinstance(value, list) else [value])]


def _loads(block: bytes) -> Any:
    try:
        return orjson.loads(block)
    except ValueError:
        return json.loads(block.decode("utf-8", "replace"))  # accepts unpaired surrogates in a text
