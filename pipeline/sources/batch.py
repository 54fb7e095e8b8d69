"""What every source yields: batches of candidates, and the account of the rows that are none.

A row is judged by one chain of checks, and the first that fails names its reason:

    no text -> no_caption, no address -> no_url, not http(s) or too long -> bad_url, caption_too_long, repeated_text
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from pipeline.config import PairsConfig
from pipeline.records import PAIRS, Reason
from pipeline.urls import normalize_url

CANDIDATES = pa.schema([PAIRS.field(name) for name in ("url", "caption", "text_field", "page_url")])

_BATCH_ROWS = 16_384
_BATCH_CHARS = 1 << 24  # a page can repeat a long caption on many images: batches are bounded in size as well
_INVISIBLE = re.compile("[\x00-\x1f\x7f-\x9f\u200b\ufeff]")  # controls, zero-width space, byte order mark


@dataclass(frozen=True)
class SourceBatch:
    """Some rows of one source file, in file order.

    Rows seen = `candidates.num_rows + dropped.total()`, here and summed over a file.
    """

    candidates: pa.RecordBatch  # columns of CANDIDATES
    dropped: Counter[Reason]


@dataclass(frozen=True, slots=True)
class Image:
    """One image as a page or a WAT record states it."""

    url: str  # as written; "" where it names none
    texts: tuple[tuple[str, str], ...]  # (field, text as written)


class BatchBuilder:
    """Judges rows one by one, and hands them out in batches of bounded size."""

    def __init__(self, limits: PairsConfig) -> None:
        self._limits = limits
        self._start()

    def _start(self) -> None:
        self._urls: list[str] = []
        self._captions: list[str] = []
        self._fields: list[str] = []
        self._pages: list[str] = []
        self._chars = 0
        self.dropped: Counter[Reason] = Counter()

    @property
    def is_full(self) -> bool:
        return len(self._urls) >= _BATCH_ROWS or self._chars >= _BATCH_CHARS

    def take(self) -> SourceBatch:
        """Return what was added since the last call."""
        columns = [pa.array(c, pa.string()) for c in (self._urls, self._captions, self._fields, self._pages)]
        batch = SourceBatch(pa.RecordBatch.from_arrays(columns, schema=CANDIDATES), self.dropped)
        self._start()
        return batch

    def finish(self) -> Iterator[SourceBatch]:
        """Yield the last batch, if there is anything in it."""
        if self._urls or self.dropped:
            yield self.take()

    def add_row(self, raw_url: str | None, text: str | None, raw_page_url: str | None) -> None:
        """Judge one row of a table."""
        page_url = self._shown(normalize_url(raw_page_url)) if raw_page_url else ""
        caption = clean_text(text) if text else ""
        if len(caption) < self._limits.min_caption_chars:
            self.dropped[Reason.NO_CAPTION] += 1
        else:
            self._judge(self._address(raw_url, None), caption, "caption", page_url)

    def add_page(self, images: Iterable[Image], address: str, base: str | None) -> Iterator[SourceBatch]:
        """Judge the images of one page; yield the batches that fill up meanwhile.

        `address` is the page's own, `base` its `<base href>` as written. An image counts one row for each of its texts,
        or one `no_caption` row where it has none.
        """
        page_url = normalize_url(address)
        start = (normalize_url(base, page_url) if base else None) or page_url
        shown, shortest = self._shown(page_url), self._limits.min_caption_chars
        # Hashes, not strings: a page of 400,000 short tags below one long base would fill gigabytes with its addresses.
        seen: set[int] = set()
        for image in images:
            captions = [(field, caption) for field, text in image.texts if len(caption := clean_text(text)) >= shortest]
            if not captions:
                self.dropped[Reason.NO_CAPTION] += 1
                continue
            url = self._address(image.url, start)
            for field, caption in captions:
                self._judge(url, caption, field, shown, seen)
            if self.is_full:
                yield self.take()

    def _shown(self, page_url: str | None) -> str:
        """Return the page URL to note beside a candidate, "" where it is no address or too long."""
        return page_url if page_url and len(page_url) <= self._limits.max_url_chars else ""

    def _address(self, raw: str | None, base: str | None) -> str | Reason:
        if not raw or raw.isspace():
            return Reason.NO_URL
        url = normalize_url(raw, base)
        return url if url is not None and len(url) <= self._limits.max_url_chars else Reason.BAD_URL

    def _judge(self, url: str | Reason, caption: str, field: str, page_url: str, seen: set[int] | None = None) -> None:
        if isinstance(url, Reason):
            self.dropped[url] += 1
        elif len(caption) > self._limits.max_caption_chars:
            self.dropped[Reason.CAPTION_TOO_LONG] += 1
        elif seen is not None and _seen_before(hash((url, caption)), seen):
            self.dropped[Reason.REPEATED_TEXT] += 1
        else:
            self._urls.append(url)
            self._captions.append(caption)
            self._fields.append(field)
            self._pages.append(page_url)
            self._chars += len(url) + len(caption) + len(page_url)


def _seen_before(key: int, seen: set[int]) -> bool:
    """Add `key`; return whether it was there."""
    size = len(seen)
    seen.add(key)
    return len(seen) == size


def clean_text(text: str) -> str:
    """Return `text` with every run of white space and control characters as one space, none at the ends.

    Lone surrogates (half an emoji, cut by a script) become U+FFFD, so that the text can be encoded.
    """
    caption = " ".join(text.split())
    if caption.isprintable():
        return caption
    caption = caption.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return " ".join(_INVISIBLE.sub(" ", caption).split())
