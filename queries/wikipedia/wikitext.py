"""The text of a wiki page, without its markup.

mwparserfromhell's tokenizer, written in C, does the parsing; its tree of nodes, which costs four times as much, is not
needed. Templates, comments, tables, references, formulas, code, galleries, and links to other namespaces (files,
categories) and languages are left out. The visible text of links is kept.
"""

import html
import re
from collections.abc import Callable, Container
from typing import Any

from mwparserfromhell.parser import ParserError, tokens

from queries.wikipedia.markup_cost import MAX_CHARS, is_too_slow

try:
    from mwparserfromhell.parser._tokenizer import CTokenizer as Tokenizer
except ImportError:  # no wheel for this platform: the same tokenizer, in Python
    from mwparserfromhell.parser.tokenizer import Tokenizer

# Extension tags and HTML elements whose content is not prose.
_SKIPPED_TAGS = frozenset(
    [
        *("ref", "references", "math", "chem", "ce", "hiero", "score", "timeline", "graph", "table", "gallery"),
        *("imagemap", "mapframe", "maplink", "syntaxhighlight", "source", "code", "pre", "style", "script"),
        *("templatestyles", "templatedata", "inputbox", "categorytree", "indicator", "includeonly"),
    ]
)
_LINE_TAGS = frozenset(["br", "hr", "li", "dd", "dt", "p", "div", "blockquote", "h1", "h2", "h3", "h4", "h5", "h6"])

_QUOTED_LINE = re.compile("^.*''.*$", re.MULTILINE)
_QUOTES = re.compile("('{2,})")  # italics, bold, both

_SWITCH = re.compile("__[A-Z]+__")  # __NOTOC__
_TAG_BEFORE_NEWLINE = re.compile(r"<(ref|references|gallery|math|syntaxhighlight|source)\n", re.IGNORECASE)

# Headings have a line of their own anyway, and thousands of "=" on one line overflow the parser's stack.
_HEADING = re.compile("^=", re.MULTILINE)

# Tags that the parser keeps as text because nothing closes them: "<td>1861<td>1919", "</small>".
_LONE_TAG = re.compile(r"</?[a-z][a-z0-9]*(?:\s[^<>\n]*)?/?>", re.IGNORECASE)

_WRITTEN_LESS_THAN = "\x02"
"""`&lt;`, which shows and begins no tag; XML cannot hold this character."""

# [[fr:Chien]]: until 2013 links to other languages were part of the markup.
_LANGUAGE = re.compile(r"(?:[a-z]{2,3}(?:-[a-z]+)*|simple):\S")


def plain_text(markup: str, namespaces: Container[str]) -> str:
    """Return the text of a page; each paragraph, heading and list item is on a separate line.

    `namespaces` are the lower-case names that come before the colon in titles outside the article namespace.

    Raises:
        ValueError: the markup cannot be parsed.
    """
    if len(markup) <= MAX_CHARS:
        markup = _prepared(markup)
    if is_too_slow(markup):
        raise ValueError("markup that takes too long to parse: thousands of unclosed marks")
    try:
        stream = Tokenizer().tokenize(markup, 0, True)
    except ParserError as error:
        raise ValueError(f"markup that cannot be parsed: {error}") from None
    frames = [_Frame(namespaces)]
    for token in stream:
        kind = type(token)
        if kind is tokens.Text:
            frames[-1].add(token.text)
        elif kind in _OPENING:
            frames.append(_OPENING[kind](namespaces))
        elif kind in _CLOSING:
            closed = frames.pop()
            frames[-1].add(closed.shown())
        else:
            frames[-1].mark(kind)
    return _LONE_TAG.sub("\n", frames[0].shown()).replace(_WRITTEN_LESS_THAN, "<")


def _prepared(markup: str) -> str:
    """Remove markup that costs the tokenizer much time and does not change the text."""
    before, end, after = markup.rpartition("-->")
    closed = before + end + after.partition("<!--")[0]  # a comment that does not end hides the rest, as in MediaWiki
    closed = _TAG_BEFORE_NEWLINE.sub(r"<\1 ", _SWITCH.sub("", closed))
    return _HEADING.sub(" =", _QUOTED_LINE.sub(_without_quotes, closed))


def _without_quotes(line: re.Match[str]) -> str:
    """Take the quotes of italics and bold out of a line, but for the apostrophes among them: l'''amour''.

    As `doQuotes` of MediaWiki's parser: four quotes are an apostrophe and bold, of more than five the first are
    apostrophes; and where bold and italics are both odd, one bold is an apostrophe and italics.
    """
    pieces = _QUOTES.split(line[0])
    lengths = [len(quotes) for quotes in pieces[1::2]]
    apostrophes = [1 if n == 4 else max(0, n - 5) for n in lengths]
    bolds, italics = sum(n > 2 for n in lengths), sum(n == 2 or n >= 5 for n in lengths)
    if bolds % 2 and italics % 2:
        before = {i: pieces[2 * i] + "'" * apostrophes[i] for i, n in enumerate(lengths) if n in (3, 4)}
        if before:
            apostrophes[min(before, key=lambda i: (_apostrophe_rank(before[i]), i))] += 1
    kept = [text + "'" * n for text, n in zip(pieces[::2], [*apostrophes, 0], strict=True)]
    return "".join(kept)


def _apostrophe_rank(before: str) -> int:
    """Rank the text before a bold: after a word of one letter an apostrophe is likeliest, after a space least."""
    if before[-1:] == " ":
        return 2
    return 0 if before[-2:-1] == " " else 1


class _Frame:
    """An open element, and its text so far."""

    def __init__(self, namespaces: Container[str]) -> None:
        self.namespaces = namespaces
        self.texts: list[str] = []
        self.before: str | None = None  # of a link, the text before the separator; of a tag, its name

    def add(self, text: str) -> None:
        self.texts.append(text)

    def mark(self, kind: type[Any]) -> None:
        """Note a token inside the element that is not text."""

    def take(self) -> str:
        """Return the text so far, and clear it."""
        text = "".join(self.texts)
        self.texts.clear()
        return text

    def shown(self) -> str:
        """Return the element's visible text."""
        return "".join(self.texts)


class _Hidden(_Frame):
    def shown(self) -> str:
        return ""


class _Wikilink(_Frame):
    def mark(self, kind: type[Any]) -> None:
        if kind is tokens.WikilinkSeparator and self.before is None:
            self.before = self.take()

    def shown(self) -> str:
        text = super().shown()
        title = text if self.before is None else self.before
        prefix, colon, _ = title.partition(":")
        if colon and (
            prefix.replace("_", " ").strip().lower() in self.namespaces
            or (self.before is None and _LANGUAGE.match(title))
        ):
            return ""
        return text.removeprefix(":")  # [[:Category:Dogs]] is a link that shows


class _ExternalLink(_Frame):
    def mark(self, kind: type[Any]) -> None:
        if kind is tokens.ExternalLinkSeparator:
            self.before = self.take()

    def shown(self) -> str:
        return "" if self.before is None else super().shown()  # a bare URL is not prose


class _Tag(_Frame):
    content = ""

    def mark(self, kind: type[Any]) -> None:
        if kind is tokens.TagAttrStart:
            self._end_of_name()
        elif kind is tokens.TagCloseOpen:
            self._end_of_name()
            self.take()  # attributes
        elif kind is tokens.TagOpenClose:
            self.content = self.take()  # what follows is the name again

    def _end_of_name(self) -> None:
        if self.before is None:
            self.before = self.take().strip().lower()

    def shown(self) -> str:
        self._end_of_name()
        if self.before in _SKIPPED_TAGS:
            return ""
        line = "\n" if self.before in _LINE_TAGS else ""
        return f"{line}{self.content}{line}"


class _Entity(_Frame):
    def mark(self, kind: type[Any]) -> None:
        self.add("#" if kind is tokens.HTMLEntityNumeric else "x")

    def shown(self) -> str:
        return html.unescape(f"&{super().shown()};").replace("<", _WRITTEN_LESS_THAN)


_OPENING: dict[type[Any], Callable[[Container[str]], _Frame]] = {
    tokens.TemplateOpen: _Hidden,
    tokens.ArgumentOpen: _Hidden,
    tokens.CommentStart: _Hidden,
    tokens.WikilinkOpen: _Wikilink,
    tokens.ExternalLinkOpen: _ExternalLink,
    tokens.HTMLEntityStart: _Entity,
    tokens.TagOpenOpen: _Tag,
}

_CLOSING = frozenset(
    {
        tokens.TemplateClose,
        tokens.ArgumentClose,
        tokens.CommentEnd,
        tokens.WikilinkClose,
        tokens.ExternalLinkClose,
        tokens.HTMLEntityEnd,
        tokens.TagCloseClose,
        tokens.TagCloseSelfclose,
    }
)
