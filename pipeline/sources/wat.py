"""WAT files: Common Crawl's metadata records, whose JSON lists the links of every page.

    {"Envelope": {"Payload-Metadata": {"HTTP-Response-Metadata": {"HTML-Metadata": {"Links": [
        {"path": "IMG@/src", "url": "../a.jpg", "alt": "A dog &amp; a cat"}, {"path": "A@/href", ...

Most of a record is other links, so image links are cut out of the JSON text, and only those with a text are parsed.
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
from pipeline.sources.batch import BatchBuilder, Image, SourceBatch, clean_text
from pipeline.sources.opt_out import USUAL_POLICY, Meta, PagePolicy, is_opted_out
from pipeline.web.warc_records import WarcRecord, read_records

_IMAGE_LINK = b'"path":"IMG@/src"'  # in a JSON string the quotes would be escaped, so this is a key and its value
_IMAGE = b'"IMG@/src"'  # the value alone, if the JSON has spaces
_LINKS, _WARC_HEADER, _DATE = b'"Links":[', b'"WARC-Header-Metadata":{', b'"WARC-Date":"'
_ALT, _TITLE, _BASE = b'"alt":"', b'"title":"', b'"Base":"'
_ARRAY_END, _OUTSIDE = b"}]", (b'"Metas"', b'"Head"', b'"Headers"')
_BACKSLASH, _BRACE = b"\\{"
_BEFORE_STRINGS = frozenset(b":,{[ \t\r\n")
_OPENS_STRING = (b'":', b'",', b"},", b"],", b"{", b"[")
# In lower case, without hyphens and underscores.
_REFUSING_WORDS = (b"noai", b"imageai", b"imageindex", b"noml", b"noindex", b"none")
_METAS = b'"metas"'
_REFUSING_NAMES = (b"tdmreservation", b"contentusage", b"contentsignal")
_STATUS = re.compile(rb'"Response-Message":\{[^{}]*?"Status":"(\d*)"')
_REFERENCE = re.compile(r"&(?:#\d{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")


@dataclass(frozen=True)
class _Page:
    links: list[dict[str, Any]]  # the image links that may have a text
    without_text: int  # how many others there are
    base: str | None
    is_opted_out: bool = False


def read_wat(stream: BinaryIO, limits: PairsConfig, policy: PagePolicy = USUAL_POLICY) -> Iterator[SourceBatch]:
    """Yield the candidates of a WAT file, apart from those of pages that opt out.

    Every `IMG@/src` link of a page answered with 200 counts: one row for each of its texts (alt, title), or one
    `no_caption` row.
    """
    builder = BatchBuilder(limits)
    for record in read_records(stream):
        if isinstance(record, Reason):
            builder.dropped[record] += 1
        else:
            yield from _add_record(builder, record, policy)
        if builder.is_full:
            yield builder.take()
    yield from builder.finish()


def _add_record(builder: BatchBuilder, record: WarcRecord, policy: PagePolicy) -> Iterator[SourceBatch]:
    block = record.block
    if (first := block.find(_IMAGE_LINK)) < 0 and _IMAGE not in block:
        return
    status = _STATUS.search(block)
    if status and status[1] != b"200":
        return
    page = None
    if record.is_whole:
        page = _cut_out(block, first, policy) or _parse(block, policy)
    if page is None:
        builder.dropped[Reason.DAMAGED_RECORD] += 1
        return
    builder.dropped[Reason.NO_CAPTION] += page.without_text
    target = record.field("WARC-Target-URI") or ""
    yield from builder.add_page(
        map(_image, page.links),
        target,
        page.base,
        is_opted_out=page.is_opted_out,
        captured=_captured(block) if page.links else None,
        offset=record.offset,
    )


def _captured(block: bytes) -> str | None:
    """Return when the page was crawled; the header of the WAT record says when its metadata were extracted."""
    header = block.find(_WARC_HEADER)  # of the page's record: Common Crawl puts it first
    start = block.find(_DATE, header) if header >= 0 else block.rfind(_DATE)
    return block[start + len(_DATE) : start + len(_DATE) + 20].decode("ascii", "replace") if start >= 0 else None


def _may_refuse(beside: bytes, head_bytes: int, policy: PagePolicy) -> bool:
    """Say whether words outside of the image links could opt the images out: so few records have some. `head_bytes` of
    them come before the links.
    """
    lower = beside.lower()
    joined = lower.translate(None, b"-_")
    if any(name in joined for name in _REFUSING_NAMES):
        return True
    if b"robots" in joined and any(word in joined for word in _REFUSING_WORDS):
        return True
    start = lower.find(_METAS)
    end = head_bytes if start < head_bytes else len(lower)
    return start >= 0 and _names_of(policy.directives.agents).search(lower, start, end) is not None


@cache
def _names_of(agents: frozenset[str]) -> re.Pattern[bytes]:
    """Return the pattern of an agent's name as the name of a meta element, in lower case."""
    names = b"|".join(re.escape(agent.encode()) for agent in sorted(agents))
    return re.compile(rb'"(?:name|property|http-equiv)"\s*:\s*"\s*(?:%b)\s*"' % names)


def _image(link: dict[str, Any]) -> Image:
    texts = []
    for field in ("alt", "title"):
        text = link.get(field)
        if isinstance(text, str) and text:
            texts.append((field, clean_text(_unescape(text))))
    url = link.get("url")
    return Image(_unescape(url) if isinstance(url, str) else "", texts)


def _unescape(text: str) -> str:
    """Decode character references: older WAT files have attributes as written in the page, newer ones decoded. Only
    references that end in ";" are decoded, because a decoded URL may contain "&copy=1".
    """
    return _REFERENCE.sub(lambda match: html.unescape(match[0]), text) if "&" in text else text


def _cut_out(block: bytes, first: int, policy: PagePolicy) -> _Page | None:
    """Parse only the image links with a text; None if the whole JSON must be parsed. `first` is the offset of the first
    image link, -1 if there is none.
    """
    links: list[bytes] = []
    count, end, path = 0, 0, first
    while path >= 0:
        start = path - 1 if block[path - 1] == _BRACE else _object_start(block, end, path)
        end = block.find(b'"}', path + len(_IMAGE_LINK) - 1) + 2
        if start < 0 or end < 2 or block[end - 3] == _BACKSLASH or block.find(b'{"', path, end) >= 0:
            return None
        if block[end - 3] in _BEFORE_STRINGS and block[max(0, end - 10) : end - 2].rstrip().endswith(_OPENS_STRING):
            return None  # the quote starts a string, "}...", and does not end the object
        if block.find(_ALT, start, end) >= 0 or block.find(_TITLE, start, end) >= 0:
            links.append(block[start:end])
        count += 1
        path = block.find(_IMAGE_LINK, end)
    if first < 0:
        return None
    head_bytes = max(block.rfind(_LINKS, 0, first), 0) or first
    beside = block[:head_bytes] + block[_links_end(block, end) :]  # what is not among the links
    if _BASE in beside or _may_refuse(beside, head_bytes, policy):
        return None
    try:
        parsed = orjson.loads(b"[%b]" % b",".join(links))
    except ValueError:
        return None
    return _Page(parsed, count - len(links), None) if len(parsed) == len(links) else None


def _links_end(block: bytes, end: int) -> int:
    """Return an offset after that of the last image link, `end`, up to which there are only other links.

    The array of links ends with the first "}]", unless that is in a text: then some links count as what is beside.
    """
    close = block.find(_ARRAY_END, end - 1)
    is_array = close >= 0 and all(block.find(key, end, close) < 0 for key in _OUTSIDE)
    return close if is_array else end


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
        named = [Meta(_named(meta), str(meta.get("content", ""))) for meta in metas]
        opted_out = is_opted_out(named, lambda name: _header_lines(headers, name), policy)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return _Page(links, 0, base if isinstance(base, str) else None, opted_out)


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
