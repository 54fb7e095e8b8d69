"""Extract the images of an HTML page and their texts: `alt`, `title` and the figure's `figcaption`.

The page is parsed as a stream of tags, without a tree. Tree builders need quadratic time or memory for some inputs
(nested lists, unclosed formatting elements: 30 kB of markup can fill a gigabyte), and pages are untrusted.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import cast

from lxml import etree

from pipeline.sources.batch import Image, clean_text
from pipeline.sources.opt_out import Meta

MAX_PAGE_BYTES = 8 << 20  # decoded; Common Crawl truncates at 1 MiB (5 MiB since 2025)
# The parser compares an end tag with every open element until one matches (about 4 ns each), and does not treat wbr and
# source as void elements. So the limit is on depth times end tags, not on depth alone.
_MAX_COMPARISONS = 1_000_000_000

# Attributes in which lazy-loading scripts keep the URL, the most common first.
_LAZY_SOURCES = ("data-src", "data-lazy-src", "data-original", "data-lazy", "data-original-src", "data-actualsrc")
_SOURCE_SETS = ("srcset", "data-srcset", "data-lazy-srcset")
_NO_ADDRESS = ("data:", "about:", "javascript:", "#", "{", "[")  # the last two: scripts keep JSON in data-src
_PLACEHOLDER_NAME = re.compile(
    r"(?:^|[_-])(?:blank|spacer|transparent|pixel|placeholder|loading|loader|lazy|empty|clear|dummy|gr[ae]y|1x1)", re.I
)
_SET_ADDRESS = re.compile(r"[\s,]*+(\S++)")
_SET_DESCRIPTORS = re.compile(r"(?:[^,(]|\([^)]*+\)?)*+")

# Tags inside a figcaption that do not separate words.
_INLINE = {"a", "abbr", "b", "bdi", "bdo", "cite", "code", "em", "font", "i", "mark", "q", "s", "small", "span"}
_INLINE |= {"strong", "sub", "sup", "time", "u", "var"}
_NOT_TEXT = frozenset(("script", "style", "noscript", "template"))


@dataclass(frozen=True)
class Page:
    """The images of a page, with its `meta` elements."""

    base: str | None  # `<base href>` as written
    images: list[Image]  # in page order
    metas: list[Meta]  # those with a content
    is_complete: bool  # False if the page nests too deeply and was only read up to that point


def extract_images(html: str) -> Page:
    """Return every rendered `img` of a page, and those in a `noscript` with a URL or text that no other image has.

    An image's URL is its `src`; if that is missing or a placeholder, the URL in a lazy-loading attribute, or else the
    largest in its `srcset` and its picture's sources. The content of `template` is not part of the page.
    """
    target = _ImageTags(max_depth=_MAX_COMPARISONS // (1 + html.count("</")))
    parser = etree.HTMLParser(target=target)
    try:
        parser.feed(html)
        parser.close()
        is_complete = True
    except _TooDeep:
        is_complete = False
    return Page(target.base, target.images(), target.metas, is_complete)


class _TooDeep(Exception):
    pass


@dataclass(slots=True)
class _Figure:
    images: "list[_Tag]" = field(default_factory=list)
    caption: list[str] = field(default_factory=list)

    def close(self) -> None:
        text = clean_text("".join(self.caption))  # once, even if several images share it
        for image in self.images:
            image.caption = text


@dataclass(slots=True)
class _Tag:
    attributes: dict[str, str]
    picture_sources: list[str]
    in_noscript: bool
    caption: str = ""

    def addresses(self) -> list[str]:
        """Return the URLs that the image may be loaded from, the best first."""
        get = self.attributes.get
        source = get("src", "").strip()
        lazy = [value for name in _LAZY_SOURCES if (value := get(name, "").strip()) and not _is_placeholder(value)]
        sets = [get(name, "") for name in _SOURCE_SETS] + self.picture_sources
        largest = largest_source(sets)
        others = lazy + ([largest] if largest else [])
        if not source:
            return others
        return [*others, source] if _is_placeholder(source) else [source, *others]

    def texts(self) -> list[tuple[str, str]]:
        texts = [(name, clean_text(self.attributes.get(name, ""))) for name in ("alt", "title")]
        return [(name, text) for name, text in (*texts, ("figcaption", self.caption)) if text]


class _ImageTags:
    """The parser's target: tracks figures, pictures and noscripts, and collects every `img`."""

    def __init__(self, max_depth: int) -> None:
        self.base: str | None = None
        self.metas: list[Meta] = []
        self._max_depth = max_depth
        self._tags: list[_Tag] = []
        self._depth = 0
        self._noscripts = 0
        self._templates = 0
        self._muted = 0  # open elements whose text is not displayed
        self._figures: list[_Figure] = []
        self._captions: list[_Figure] = []  # figures whose figcaption is open
        self._pictures = 0
        self._picture_sources: list[str] = []  # for the next image: a picture has one

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > self._max_depth:
            raise _TooDeep
        if tag == "img":
            self._image(attributes)
        elif tag == "source" and self._pictures:
            self._picture_sources.append(attributes.get("srcset") or attributes.get("data-srcset") or "")
        elif tag == "picture":
            self._pictures += 1
        elif tag == "figure":
            self._figures.append(_Figure())
        elif tag == "figcaption" and self._figures:
            self._captions.append(self._figures[-1])
        elif tag == "meta":
            name = next((attributes[key] for key in ("name", "http-equiv", "property") if attributes.get(key)), "")
            if name and attributes.get("content"):
                self.metas.append(Meta(name, attributes["content"]))
        elif tag == "base":
            self.base = self.base if self.base is not None else attributes.get("href")
        elif tag in _NOT_TEXT:
            self._muted += 1
            self._noscripts += tag == "noscript"
            self._templates += tag == "template"
        if self._captions and tag not in _INLINE:
            self._captions[-1].caption.append(" ")

    def end(self, tag: str) -> None:
        self._depth -= 1
        if tag == "figure" and self._figures:
            self._figures.pop().close()
        elif tag == "figcaption" and self._captions:
            self._captions.pop()
        elif tag == "picture":
            self._pictures -= 1
            self._picture_sources = []
        elif tag in _NOT_TEXT:
            self._muted -= 1
            self._noscripts -= tag == "noscript"
            self._templates -= tag == "template"
        if self._captions and tag not in _INLINE:
            self._captions[-1].caption.append(" ")

    def data(self, text: str) -> None:
        if self._captions and not self._muted:
            self._captions[-1].caption.append(text)

    def close(self) -> None:
        pass

    def _image(self, attributes: dict[str, str]) -> None:
        if self._templates:
            return
        image = _Tag(dict(attributes), self._picture_sources, self._noscripts > 0)
        self._picture_sources = []
        self._tags.append(image)
        if self._figures:
            self._figures[-1].images.append(image)

    def images(self) -> list[Image]:
        while self._figures:
            self._figures.pop().close()
        images = [(tag.in_noscript, tag.addresses(), tag.texts()) for tag in self._tags]
        loaded: dict[str, set[str]] = {}  # the texts of each URL that is loaded outside of any noscript
        for in_noscript, addresses, texts in images:
            for address in () if in_noscript else addresses:
                loaded.setdefault(address, set()).update(text for _, text in texts)
        found = []
        for in_noscript, addresses, texts in images:
            address = addresses[0] if addresses else ""
            is_twin = in_noscript and address in loaded
            news = [(name, text) for name, text in texts if text not in loaded[address]] if is_twin else texts
            if news or not is_twin:
                found.append(Image(address, news))
        return found


def _is_placeholder(address: str) -> bool:
    """Return whether a URL looks like a placeholder; only called if there is another URL."""
    if address[:11].lower().startswith(_NO_ADDRESS):
        return True
    return _PLACEHOLDER_NAME.search(address.partition("?")[0].rpartition("/")[2]) is not None


def largest_source(source_sets: Iterable[str]) -> str | None:
    """Return the URL with the largest width descriptor of some `srcset` values, or else the largest density.

    >>> largest_source(["a.jpg 320w, b.jpg 640w", "c.jpg 2x"])
    'b.jpg'
    """
    best, best_size = None, (-1.0, -1.0)
    for source_set in source_sets:
        for address, size in _parse_source_set(source_set):
            if size > best_size and not _is_placeholder(address):
                best, best_size = address, size
    return best


def _parse_source_set(source_set: str) -> Iterator[tuple[str, tuple[float, float]]]:
    """Yield (URL, size) of each candidate (HTML standard, "parse a srcset attribute")."""
    position = 0
    while match := _SET_ADDRESS.match(source_set, position):
        position, address = match.end(), match[1].rstrip(",")
        if address == match[1]:  # the URL does not end in a comma, so descriptors may follow
            descriptors = cast(re.Match[str], _SET_DESCRIPTORS.match(source_set, position))
            position = descriptors.end()
            yield address, _size(descriptors[0])
        elif address:
            yield address, _size("")


def _size(descriptors: str) -> tuple[float, float]:
    """Return (width in pixels, density); missing or invalid values count as width 0, density 1."""
    width, density = 0.0, 1.0
    for word in descriptors.split():
        try:
            value = float(word[:-1])
        except ValueError:
            continue
        if word[-1] == "w":
            width = value
        elif word[-1] == "x":
            density = value
    return width, density
