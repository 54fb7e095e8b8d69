"""How long wiki markup takes to parse, known before it is parsed: the tokenizer cannot be stopped.

An opening mark ("{{", "<ref>", "[http://x ") counts as one only if something closes it. Where nothing does, the
tokenizer has read to the end of the page, or of the line, in vain, and goes back. So a page of opening marks takes the
square of its length; real pages have a few that nothing closes. Made from the tokenizer of mwparserfromhell 0.7.2.
"""

import re

from mwparserfromhell.definitions import is_parsable, is_single, is_single_only

MAX_STEPS = 100_000_000
"""What one page may take, a few seconds. The most of any page of the wikis this was made with is 2,000,000."""

MAX_CHARS = 16_000_000
"""MediaWiki itself takes no page of more than 2 MB, as it comes."""

_SLOW = 10
"""Inside "<a ", "{{a|" and "{|", a character takes as long as this many elsewhere."""

_NAME = r"""[^\s{}\[\]<>|=&'"\#*;:/\\!-]+"""
_MARK = re.compile(
    rf"<!--|</?{_NAME}|/?>|\{{\{{+|\}}\}}+|\[\[|\]\]|\[(?=[a-z0-9+.-]+:|//)|^\s?\{{\||^\s?\|\}}",
    re.IGNORECASE | re.MULTILINE,
)


def is_too_slow(markup: str) -> bool:
    """Tell markup that takes more than MAX_STEPS: characters read in vain, about 20 ns each."""
    if len(markup) > MAX_CHARS:
        return True
    opening = 2 * markup.count("<") + markup.count("{") + markup.count("[")
    return _SLOW * opening * len(markup) > MAX_STEPS and _Scan(markup).run() > MAX_STEPS


class _Scan:
    """The marks that are open, as (kind, name, position), innermost last; a mark closes only what is innermost."""

    def __init__(self, markup: str) -> None:
        self.markup = markup
        self.lower = markup.replace("İ", "I").lower()  # of the same length
        self.open: list[tuple[str, str, int]] = []
        self.next: dict[str, int] = {}  # where something is found next, from where it was last looked for
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
        """Open or close what a mark does; return where to go on."""
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
            self.open.append((mark[:2], mark[:_MOST_BRACES], start))
        elif _OPENED_BY.get(mark) == innermost:
            self.open.pop()
        return end

    def _fail(self, position: int) -> None:
        """Give up what is innermost, having read from there to `position`."""
        kind, name, opened = self.open.pop()
        if not (kind == "<>" and is_single(name) and position == len(self.markup)):
            self.steps += (position - opened) * (_SLOW if kind in ("<", "{{", "{|") else 1)

    def _skip(self, closing: str, opened: int, end: int) -> int:
        """Return where something closes that holds no markup; where nothing closes it, `end`."""
        found = self._find(closing, end)
        if found < len(self.markup):
            return found + len(closing)
        self.steps += (found - opened) * (1 + self.markup.count("</", end) // _SLOW)
        return end

    def _external_link(self, start: int) -> None:
        line_end, self.bracket = self._find("\n", start), self._find("]", start)
        end = min(line_end, self.bracket)
        if _holds_open_mark(self.markup[start : min(end, start + _LOOK)]):
            self.steps += _SLOW * (len(self.markup) - start)
        elif line_end <= self.bracket:  # both are at the end if there are none
            self.steps += line_end - start

    def _find(self, text: str, position: int) -> int:
        """Return where a text is found from a position on; the end where it is not. No character is read twice."""
        if self.next.get(text, -1) < position:
            found = self.lower.find(text, position)
            self.next[text] = found if found >= 0 else len(self.markup)
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
        """Close arguments, of three braces, and templates, of two; those that begin in a row share a mark."""
        while closing >= 2 and self.open and self.open[-1][0] == "{{":
            kind, braces, opened = self.open.pop()
            left = len(braces)
            while closing >= 2 and left >= 2:
                taken = min(closing, left, 3)
                closing, left = closing - taken, left - taken
            if left >= 2:
                self.open.append((kind, braces[:left], opened))


_MOST_BRACES = 300  # the tokenizer goes no deeper
_LOOK = 1_000
"""Characters looked at to find out whether a link or a tag closes."""

_END_OF_TAG = re.compile(r"\s{0,9}>")
_QUOTED = re.compile(r"""=\s*+(?:"[^"]*+"|'[^']*+')""")
_OPEN_QUOTE = re.compile(r"""=\s*+["']""")


def _has_open_quote(attributes: str) -> bool:
    return _OPEN_QUOTE.search(_QUOTED.sub("", attributes)) is not None


def _holds_open_mark(link: str) -> bool:
    """Tell whether in a link something opens that closes outside it, and may hold the end of the line."""
    return link.count("<") != link.count(">") or link.count("{{") != link.count("}}")


_OPENED_BY = {"]]": "[[", "|}": "{|"}
