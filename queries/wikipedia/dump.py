"""Read a MediaWiki XML dump (`pages-articles`): its wiki and its pages, in bounded memory.

A multistream dump, a sequence of bz2 streams of 100 pages, can be read in parts that start at any byte; its index file
is not needed. Any other file (one bz2 stream, gz, plain XML) is one part.
"""

import bz2
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, cast
from urllib.parse import urlsplit
from xml.etree import ElementTree

import fsspec

from queries.errors import InputError
from queries.files import reading

# English names, which wikis of all languages accept.
_CANONICAL_NAMESPACES = (
    *("media", "special", "talk", "user", "project", "wikipedia", "file", "image", "timedtext", "mediawiki"),
    *("template", "module", "help", "category", "portal", "draft"),
)

_READ_BYTES = 1 << 20
_HEAD_BYTES = 1 << 16
_STREAM_START = re.compile(rb"BZh[1-9]1AY&SY")  # header of a bz2 stream, and of its first block
_STREAM_START_BYTES = 10
# A page has at most a few megabytes and 20 elements, a stream 100 pages.
_MAX_PAGE_BYTES = 64 << 20
_MAX_STREAM_BYTES = 256 << 20
_MAX_ELEMENTS = 1_000_000


@dataclass(frozen=True)
class Site:
    """The wiki of a dump."""

    name: str  # "enwiki"
    project: str  # "en.wikipedia": its name in page-view files
    namespaces: frozenset[str]  # lower-case title prefixes of pages that are not articles


@dataclass(frozen=True)
class DumpPart:
    """The streams of a file that start in [start, end); with `end` None, the whole file."""

    path: str
    start: int = 0
    end: int | None = None


@dataclass(frozen=True)
class Page:
    """A page; `namespace` 0 holds the articles."""

    title: str
    namespace: int
    is_redirect: bool
    markup: str


def read_site(path: str) -> Site:
    """Return the wiki of a dump.

    Raises:
        InputError: the file is missing, damaged, or not a MediaWiki dump.
    """
    with reading(path) as stream:
        head = stream.read(_HEAD_BYTES)
    if b"<mediawiki" not in head[:1_000]:
        raise InputError(f"{path}: not a MediaWiki XML dump; it begins with {head[:40]!r}")
    info = _site_info(path, head)
    if info is None:
        raise InputError(f"{path}: not a MediaWiki XML dump; it does not begin with a <siteinfo>")
    values = {_name(element): element.text or "" for element in info}
    names = [element.text or "" for element in info.iter() if element.get("key", "0") != "0"]
    try:
        host = urlsplit(values.get("base", "")).hostname or ""
    except ValueError as error:
        raise InputError(f"{path}: its <base>, {values['base']!r}, is not a URL ({error})") from None
    return Site(
        values.get("dbname") or host,
        host.removesuffix(".org").removeprefix("www."),
        frozenset(name.lower() for name in (*names, *_CANONICAL_NAMESPACES) if name),
    )


def _site_info(path: str, head: bytes) -> ElementTree.Element | None:
    parser: ElementTree.XMLPullParser[ElementTree.Element] = ElementTree.XMLPullParser(["end"])
    try:
        with _known_encoding(path):
            parser.feed(head)
        for _, element in cast(Iterator[tuple[str, ElementTree.Element]], parser.read_events()):
            if _name(element) == "siteinfo":
                return element
    except ElementTree.ParseError:
        pass
    return None


@contextmanager
def _known_encoding(path: str) -> Iterator[None]:
    try:
        yield
    except (LookupError, ValueError) as error:  # the parser does not know the encoding
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: unsupported XML encoding ({error}); dumps are UTF-8") from None


def split_dump(path: str, part_bytes: int) -> list[DumpPart]:
    """Split a multistream dump into parts of about `part_bytes` compressed bytes; any other file is one part."""
    if not _is_multistream(path):
        return [DumpPart(path)]
    filesystem, name = fsspec.core.url_to_fs(path)
    size = int(filesystem.size(name))
    return [DumpPart(path, start, min(start + part_bytes, size)) for start in range(0, size, part_bytes)]


def _is_multistream(path: str) -> bool:
    """Return whether streams begin with a page. A parallel compressor also writes streams, but cuts anywhere."""
    if not path.endswith(".bz2"):
        return False
    with reading(path, compression=None) as file:
        head = file.read(4 * _READ_BYTES)
        first, second = bz2.BZ2Decompressor(), bz2.BZ2Decompressor()
        first.decompress(head, _MAX_PAGE_BYTES)
        if not first.unused_data:
            return False
        return second.decompress(first.unused_data, 1_000).lstrip().startswith(b"<page>")


def read_pages(part: DumpPart) -> Iterator[Page]:
    """Read the pages of a part, in the order of the dump.

    Raises:
        InputError: the file is missing, damaged or truncated.
    """
    if part.end is not None:
        yield from _pages_of_streams(part, part.end)
        return
    with reading(part.path) as stream, _known_encoding(part.path):
        source = _PageBytes(part.path, stream)
        events = ElementTree.iterparse(source, ["start", "end"])
        _, root = next(events)
        if _name(root) != "mediawiki":
            raise InputError(f"{part.path}: not a MediaWiki dump (its root is <{_name(root)[:40]}>)")
        elements = 0
        for event, element in events:
            elements += 1
            if elements > _MAX_ELEMENTS:
                raise InputError(f"{part.path}: a page of over {_MAX_ELEMENTS:,} elements")
            if event == "end" and _name(element) == "page":
                page = _page(part.path, element)
                root.clear()  # else the tree would grow to the size of the dump
                source.held_bytes = elements = 0
                if page is not None:
                    yield page


class _PageBytes:
    """A dump for reading; `held_bytes` are those since the last page."""

    def __init__(self, path: str, stream: BinaryIO) -> None:
        self._path = path
        self._stream = stream
        self.held_bytes = 0

    def read(self, size: int = -1) -> bytes:
        piece = self._stream.read(size)
        self.held_bytes += len(piece)
        if self.held_bytes > _MAX_PAGE_BYTES:
            raise InputError(f"{self._path}: a page of over {_MAX_PAGE_BYTES:,} bytes")
        return piece


def _pages_of_streams(part: DumpPart, end: int) -> Iterator[Page]:
    with reading(part.path, compression=None) as file:
        for content in _streams(part.path, file, part.start, end):
            if content.count(b"<") > _MAX_ELEMENTS:
                raise InputError(f"{part.path}: a stream of over {_MAX_ELEMENTS:,} elements")
            inner = re.sub(rb"^\s*<mediawiki[^>]*>|</mediawiki>\s*$", b"", content)
            for element in ElementTree.fromstring(b"<pages>" + inner + b"</pages>"):
                page = _page(part.path, element) if _name(element) == "page" else None
                if page is not None:
                    yield page


def _streams(path: str, file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    """Yield the content of every bz2 stream that starts in [start, end), also if the last one ends later."""
    file.seek(start)
    pending = b""
    while (header := _STREAM_START.search(pending)) is None:
        pending = pending[-_STREAM_START_BYTES + 1 :]
        more = file.read(_READ_BYTES)
        if not more or file.tell() - len(more) - len(pending) >= end:
            return
        pending += more
    pending = pending[header.start() :]
    while pending and file.tell() - len(pending) < end:
        decompressor = bz2.BZ2Decompressor()
        pieces = [decompressor.decompress(pending, _MAX_STREAM_BYTES)]
        held_bytes = len(pieces[0])
        while not decompressor.eof:
            more = file.read(_READ_BYTES) if decompressor.needs_input else b""
            if decompressor.needs_input and not more:
                raise EOFError
            pieces.append(decompressor.decompress(more, _MAX_STREAM_BYTES))
            held_bytes += len(pieces[-1])
            if held_bytes > _MAX_STREAM_BYTES:
                raise InputError(f"{path}: a stream of pages of over {_MAX_STREAM_BYTES:,} bytes")
        content = b"".join(pieces)
        yield content
        is_last = content.rstrip().endswith(b"</mediawiki>")
        pending = decompressor.unused_data or file.read(_READ_BYTES)
        while is_last and pending and not (pending := pending.lstrip(b"\0")):  # some copies pad their last block
            pending = file.read(_READ_BYTES)
        if not pending and not is_last:
            raise EOFError


def _page(path: str, element: ElementTree.Element) -> Page | None:
    """Return the Page of an element; None if its text is not wiki markup (style sheets, data)."""
    title, namespace, is_redirect, markup = "", 0, False, ""
    for child in element:
        name = _name(child)
        if name == "title":
            title = child.text or ""
        elif name == "ns":
            try:
                namespace = int(child.text or 0)
            except ValueError:
                problem = f"the namespace of page {title[:80]!r} is {(child.text or '')[:40]!r}, not a number"
                raise InputError(f"{path}: {problem}; download the dump again") from None
        elif name == "redirect":
            is_redirect = True
        elif name == "revision":
            fields = {_name(field): field.text or "" for field in child}
            if fields.get("model", "wikitext") != "wikitext":
                return None
            markup = fields.get("text", "")
    return Page(title, namespace, is_redirect, markup)


def _name(element: ElementTree.Element) -> str:
    """Return an element's name without its XML namespace, which changes with each version of the format."""
    return element.tag.rpartition("}")[2]
