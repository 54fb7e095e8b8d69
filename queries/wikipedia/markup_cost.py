"""Estimate how long wiki markup takes to parse before parsing it: the tokenizer cannot be interrupted.

If an opening mark ("{{", "<ref>", "[http://x ") is never closed, the tokenizer reads to the end of the page, or of the
line, and backtracks. So a page of opening marks takes time quadratic in its length; real pages have a few unclosed
marks. Modelled on the tokenizer of mwparserfromhell 0.7.2.
"""

import re

from mwparserfromhell.definitions import is_parsable, is_single, is_single_only

MAX_STEPS = 100_000_000
"""The limit for one page, a few seconds. The maximum over all pages of the wikis used in development is 2,000,000."""

MAX_CHARS = 16_000_000
"""By default MediaWiki itself accepts no page above 2 MB."""

_SLOW = 10
"""Inside "<a ", "{{a|" and "{|", a character costs this many times as much as elsewhere."""

_NAME = r"""[^\s{}\[\]<>|=&'"\#*;:/\\!-]+"""
_MARK = re.compile(
    rf"<!--|</?{_NAME}|/?>|\{{\{{+|\}}\}}+|\[\[|\]\]|\[(?=[a-z0-9+.-]+:|//)|^\s?\{{\||^\s?\|\}}",
    re.IGNORECASE | re.MULTILINE,
)


def is_too_slow(markup: str) -> bool:
    """Return whether markup takes more than MAX_STEPS: characters read before backtracking, about 20 ns each."""
    if len(markup) > MAX_CHARS:
        return True
    opening = 2 * markup.count("<") + markup.count("{") + markup.count("[")
    return _SLOW * opening * len(markup) > MAX_STEPS and _Scan(markup).run() > MAX_STEPS


class _Scan:
    """The open marks, as (kind, name, position), innermost last; a closing mark closes only the innermost."""

    def __init__(self, markup: str) -> None:
        self.markup = markup
        self.lower = markup.replace("İ", "I").lower()  # of the same length
        self.open: list[tuple[str, str, int]] = []
        self.next: dict[str, int] = {}  # text -> where it occurs next, as of the last search
        self.bracket = -1  # the "]" of the last external link
        self.steps = 0

    def run(self) -> int:
        position = 0
        while self.steps <= MAX_STEPS and (mark := _MARK.search(self.markup, position)) is not None:
            position = self._take(mark.group().strip().lower(), mark.start(), mark.end())
        while self.open:
            self._fail(len(self.markup))
        return self.steps

    def _take(self, mark: str, start: int, end: int) -> int:
        """Apply a mark; return the position where the scan continues."""
        innermost = self.open[-1][0] if self.open else ""
        if mark == "<!--":
            return self._skip("-->", start, end)
        if mark == "[":
            self._external_link(start)
        elif mark == "]]" and start == self.bracket:
            return start + 1
        elif mark.startswith("</") and not is_single_only(mark[2:]):
            if self._close_tag(mark[2:], start):
                return self._after_name(end)
        elif mark.startswith("<"):
            self.open.append(("<", mark.lstrip("</"), start))
        elif mark in (">", "/>") and innermost == "<":
            _, name, opened = self.open[-1]
            if _has_open_quote(self.markup[opened : min(start, opened + _LOOK)]):
                return end
            self.open.pop()
            if mark == "/>":
                return end
            if not is_parsable(name):
                return self._skip(f"</{name}", opened, end)
            if not is_single_only(name):
                self.open.append(("<>", name, opened))
        elif mark.startswith("}}"):
            self._close_braces(len(mark))
        elif mark in ("[[", "{|") or mark.startswith("{{"):
            self.open.append((mark[:2], mark[:_MAX_BRACES], start))
        elif _OPENED_BY.get(mark) == innermost:
            self.open.pop()
        return end

    def _fail(self, position: int) -> None:
        """Drop the innermost mark, which the tokenizer has read up to `position` without finding its end."""
        kind, name, opened = self.open.pop()
        if not (kind == "<>" and is_single(name) and position == len(self.markup)):
            self.steps += (position - opened) * (_SLOW if kind in ("<", "{{", "{|") else 1)

    def _skip(self, closing: str, opened: int, end: int) -> int:
        """Return the end of an element without markup inside; `end` if it is not closed."""
        close = self._find(closing, end)
        if close < len(self.markup):
            return close + len(closing)
        self.steps += (close - opened) * (1 + self.markup.count("</", end) // _SLOW)
        return end

    def _external_link(self, start: int) -> None:
        line_end, self.bracket = self._find("\n", start), self._find("]", start)
        end = min(line_end, self.bracket)
        if _holds_open_mark(self.markup[start : min(end, start + _LOOK)]):
            self.steps += _SLOW * (len(self.markup) - start)
        elif line_end <= self.bracket:  # both are at the end if there are none
            self.steps += line_end - start

    def _find(self, text: str, position: int) -> int:
        """Return the first occurrence of a text at or after a position, else the end. Reads no character twice."""
        if self.next.get(text, -1) < position:
            offset = self.lower.find(text, position)
            self.next[text] = offset if offset >= 0 else len(self.markup)
        return self.next[text]

    def _close_tag(self, name: str, position: int) -> bool:
        while self.open and self.open[-1][0] == "<>":
            if self.open[-1][1] == name:
                self.open.pop()
                return True
            self._fail(position)
        return False

    def _after_name(self, position: int) -> int:
        end = _END_OF_TAG.match(self.markup, position)
        return end.end() if end else position

    def _close_braces(self, closing: int) -> None:
        """Close arguments, of three braces, and templates, of two; consecutive opening braces are one mark."""
        while closing >= 2 and self.open and self.open[-1][0] == "{{":
            kind, braces, opened = self.open.pop()
            left = len(braces)
            while closing >= 2 and left >= 2:
                taken = min(closing, left, 3)
                closing, left = closing - taken, left - taken
            if left >= 2:
                self.open.append((kind, braces[:left], opened))


_MAX_BRACES = 300  # the tokenizer's maximum depth
_LOOK = 1_000
"""Characters examined to find out whether a link or a tag closes."""

_END_OF_TAG = re.compile(r"\s{0,9}>")
_QUOTED = re.compile(r"""=\s*+(?:"[^"]*+"|'[^']*+')""")
_OPEN_QUOTE = re.compile(r"""=\s*+["']""")


def _has_open_quote(attributes: str) -> bool:
    return _OPEN_QUOTE.search(_QUOTED.sub("", attributes)) is not None


def _holds_open_mark(link: str) -> bool:
    """Return whether a link contains an opening mark that closes outside it, possibly after the end of the line."""
    return link.count("<") != link.count(">") or link.count("{{") != link.count("}}")


_OPENED_BY = {"]]": "[[", "|}": "{|"}
