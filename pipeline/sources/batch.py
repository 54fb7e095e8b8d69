"""The output of every source: batches of candidates, and the account of the rows that are not candidates.

Each row passes a chain of checks, and the first that fails gives its reason:

    no text -> no_caption, no URL -> no_url, not http(s) or too long -> bad_url, caption_too_long,
    characters lost in decoding -> undecodable_text, repeated_text, its page refuses -> opted_out
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.config import PairsConfig
from pipeline.records import PAIRS, Reason
from pipeline.web.encodings import encode_query
from pipeline.web.urls import normalize_url

CANDIDATES = pa.schema(
    [
        PAIRS.field(name)
        for name in (
            "url",
            "caption",
            "text_field",
            "page_url",
            "captured_at",
            "source_offset",
            "image_bytes",
            "stated_hash",
            "extra",
        )
    ]
)

_BATCH_ROWS = 16_384
_BATCH_CHARS = 1 << 24  # a page can repeat a long caption on many images, so the size of batches is bounded too

# Most URLs are in normal form already, which a pattern detects faster than a parser: a lower-case host name, printable
# ASCII, no dot segments (also not as %2e), no fragment. A test compares the patterns with normalize_url.
_PLAIN_PATH = r"(?:/(?!\.)[A-Za-z0-9_!$&'()*+,;=:@~.-]*+)++(?:\?[A-Za-z0-9_!$&()*+,;=:@~.%/?-]*+)?+"
_PLAIN_URL = re.compile(r"https?://(?:(?!xn--)[a-z0-9-]++\.)++[a-z]{2,}" + _PLAIN_PATH)
_PLAIN_REFERENCE = re.compile("(?!//)" + _PLAIN_PATH)

_CONTENT_NAME = re.compile(r"ni:///sha-256;[A-Za-z0-9_-]{43}")  # of an image in a tar that has no URL (RFC 6920)

_LOST = "\ufffd"  # written by a decoder for a character that it cannot decode, here or on the site itself
_URL_NEVER_HOLDS = re.compile("[\t\n\r]")
_INVISIBLE = re.compile("[\x00-\x1f\x7f-\x9f\u200b\ufeff]")  # controls, zero-width space, byte order mark


@dataclass(frozen=True)
class SourceBatch:
    """Some rows of one source file, in file order.

    Rows seen = `candidates.num_rows + dropped.total()`, here and summed over a file.
    """

    candidates: pa.RecordBatch  # columns of CANDIDATES
    dropped: Counter[Reason]


class Origin(NamedTuple):
    """What a source knows of a row beside its texts; the columns of `CANDIDATES` of these names."""

    captured_at: datetime | None = None
    source_offset: int | None = None
    image_bytes: int | None = None
    stated_hash: str | None = None
    extra: str | None = None


_UNKNOWN = Origin()


class Image(NamedTuple):
    """One image of a page or a WAT record."""

    url: str  # as written; "" if there is none
    texts: Sequence[tuple[str, str]]  # (field, text as `clean_text` returns it)


class BatchBuilder:
    """Checks rows one by one, and returns them in batches of bounded size."""

    def __init__(self, limits: PairsConfig) -> None:
        self._limits = limits
        self._start()

    def _start(self) -> None:
        self._urls: list[str] = []
        self._captions: list[str] = []
        self._fields: list[str] = []
        # Rows of one page follow each other: its URL and origin are held once, with the number of rows up to the last.
        self._pages: list[tuple[str, Origin]] = []
        self._page_ends: list[int] = []
        self._chars = 0
        self.dropped: Counter[Reason] = Counter()

    @property
    def is_full(self) -> bool:
        return len(self._urls) >= _BATCH_ROWS or self._chars >= _BATCH_CHARS

    def take(self) -> SourceBatch:
        """Return what was added since the last call."""
        page_urls, origins = zip(*self._pages, strict=True) if self._pages else ((), ())
        of_pages = [page_urls, *(zip(*origins, strict=True) if origins else [()] * len(Origin._fields))]
        names = ["url", "caption", "text_field", "page_url", *Origin._fields]
        columns = dict(zip(names, [self._urls, self._captions, self._fields, *of_pages], strict=True))
        arrays = [pa.array(columns[field.name], field.type) for field in CANDIDATES]
        if len(page_urls) < len(self._urls):
            page_of_row = pa.array(np.repeat(np.arange(len(page_urls)), np.diff(self._page_ends, prepend=0)))
            arrays[3:] = [array.take(page_of_row) for array in arrays[3:]]
        batch = SourceBatch(pa.RecordBatch.from_arrays(arrays, schema=CANDIDATES), self.dropped)
        self._start()
        return batch

    def finish(self) -> Iterator[SourceBatch]:
        """Yield the last batch, if there is anything in it."""
        if self._urls or self.dropped:
            yield self.take()

    def add_row(
        self,
        raw_url: str | None,
        text: str | None,
        raw_page_url: str | None,
        origin: Origin = _UNKNOWN,
        *,
        field: str = "caption",
    ) -> None:
        """Judge one row of a table; `field` is the name of the text."""
        caption = clean_text(text) if text else ""
        if len(caption) < self._limits.min_caption_chars:
            self.dropped[Reason.NO_CAPTION] += 1
            return
        url = self._address(raw_url, None, None)
        if url is Reason.BAD_URL and raw_url and _CONTENT_NAME.fullmatch(raw_url):
            url = raw_url
        if isinstance(url, Reason):
            self.dropped[url] += 1
        elif len(caption) > self._limits.max_caption_chars:
            self.dropped[Reason.CAPTION_TOO_LONG] += 1
        elif _LOST in caption:
            self.dropped[Reason.UNDECODABLE_TEXT] += 1
        else:
            shown = self._shown(normalize_url(raw_page_url)) if raw_page_url else ""
            self._urls.append(url)
            self._captions.append(caption)
            self._fields.append(field)
            self._chars += len(url) + len(caption) + len(shown) + len(origin.extra or "")
            self._end_page(shown, origin)

    def add_page(
        self,
        images: Iterable[Image | tuple[str, Sequence[tuple[str, str]]]],
        address: str,
        base: str | None,
        *,
        encoding: str = "utf-8",
        is_opted_out: bool = False,
        captured: str | None = None,
        offset: int | None = None,
    ) -> Iterator[SourceBatch]:
        """Check the images of one page; yield the batches that become full.

        `address` is the page's own, `base` its `<base href>` as written, `encoding` what the page is written in,
        `captured` the date of its record (WARC-Date), which is at `offset` of the file. An image counts one row for
        each of its texts, or one `no_caption` row where it has none. Of a page that is opted out, each row that would
        be a candidate is `opted_out`.
        """
        page_url = address if _PLAIN_URL.fullmatch(address) else normalize_url(address)
        start = (normalize_url(base, page_url) if base else None) or page_url
        origin = start[: start.index("/", len("https://"))] if start else None
        shown, shortest, longest = self._shown(page_url), self._limits.min_caption_chars, self._limits.max_caption_chars
        known = Origin(_instant(captured) if captured else None, offset)
        most_url_chars, page_chars = self._limits.max_url_chars, len(shown)
        # Hashes, not strings: a page of 400,000 short tags below one long base would fill gigabytes with its addresses.
        seen: set[int] = set()
        without_text = 0
        urls, captions, fields, chars = self._urls, self._captions, self._fields, self._chars
        for raw_url, texts in images:
            url: str | Reason | None = None
            for field, caption in texts:
                if len(caption) < shortest:
                    continue
                if url is None:
                    if _PLAIN_URL.fullmatch(raw_url) and len(raw_url) <= most_url_chars:
                        url = raw_url
                    else:
                        url = self._address(_with_encoded_query(raw_url, encoding), start, origin)
                if isinstance(url, Reason):
                    self.dropped[url] += 1
                elif len(caption) > longest:
                    self.dropped[Reason.CAPTION_TOO_LONG] += 1
                elif _LOST in caption:
                    self.dropped[Reason.UNDECODABLE_TEXT] += 1
                elif (key := hash((url, caption))) in seen:
                    self.dropped[Reason.REPEATED_TEXT] += 1
                elif is_opted_out:
                    seen.add(key)
                    self.dropped[Reason.OPTED_OUT] += 1
                else:
                    seen.add(key)
                    urls.append(url)
                    captions.append(caption)
                    fields.append(field)
                    chars += len(url) + len(caption) + page_chars
            if url is None:
                without_text += 1
            elif len(urls) >= _BATCH_ROWS or chars >= _BATCH_CHARS:
                self._end_page(shown, known)
                self._count_without_text(without_text)
                yield self.take()
                urls, captions, fields, chars = self._urls, self._captions, self._fields, self._chars
                without_text = 0
        self._chars = chars
        self._end_page(shown, known)
        self._count_without_text(without_text)

    def _count_without_text(self, images: int) -> None:
        if images:
            self.dropped[Reason.NO_CAPTION] += images

    def _end_page(self, page_url: str, origin: Origin) -> None:
        if len(self._urls) > (self._page_ends[-1] if self._page_ends else 0):
            self._pages.append((page_url, origin))
            self._page_ends.append(len(self._urls))

    def _shown(self, page_url: str | None) -> str:
        """Return the page URL to record with a candidate, "" if it is not a URL or too long."""
        return page_url if page_url and len(page_url) <= self._limits.max_url_chars else ""

    def _address(self, raw: str | None, base: str | None, origin: str | None) -> str | Reason:
        """Return an image's URL; `origin` is the part of `base` before the path."""
        if not raw or raw.isspace():
            return Reason.NO_URL
        url: str | None
        if _PLAIN_URL.fullmatch(raw):
            url = raw
        elif origin is None:
            url = normalize_url(raw, base)
        elif _PLAIN_REFERENCE.fullmatch(raw):
            url = origin + raw
        elif raw.startswith("//") and _PLAIN_URL.fullmatch(whole := origin[: origin.index("/")] + raw):
            url = whole
        elif raw.startswith("data:"):
            url = None
        else:
            url = normalize_url(raw, base)
        return url if url and len(url) <= self._limits.max_url_chars else Reason.BAD_URL


def _instant(text: str) -> datetime | None:
    """Return a WARC-Date (ISO 8601, UTC) in whole seconds, None where it is not one."""
    try:
        return datetime.fromisoformat(text.strip()).astimezone(UTC).replace(microsecond=0)
    except (ValueError, OverflowError):
        return None


def _with_encoded_query(address: str, encoding: str) -> str:
    """Return a URL of a page with the query in the page's encoding, as browsers send it (URL standard, 4.4)."""
    if encoding == "utf-8" or address.isascii():
        return address
    start, mark, rest = address.partition("?")
    query, fragment_mark, fragment = rest.partition("#")
    if not mark or "#" in start:
        return address
    return f"{start}?{encode_query(_URL_NEVER_HOLDS.sub('', query), encoding)}{fragment_mark}{fragment}"


def clean_text(text: str) -> str:
    """Return `text` with every run of white space and control characters as one space, none at the ends.

    Lone surrogates (half an emoji, cut by a script) are left out.
    """
    if text.isprintable() and "  " not in text and text.strip() == text:
        return text  # most are clean; of white space only the space is printable
    caption = " ".join(text.split())
    if caption.isprintable():
        return caption
    caption = caption.encode("utf-16", "surrogatepass").decode("utf-16", "ignore")
    return " ".join(_INVISIBLE.sub(" ", caption).split())
