"""Path patterns as in robots.txt (RFC 9309 section 2.2.2 and 2.2.3), for the other rules that use them.

A pattern matches the start of a path; `*` matches anything, `$` at the end means the end. Matching takes linear time in
the path for each piece between stars.
"""

import re
from dataclasses import dataclass
from urllib.parse import quote

_AFTER_HOST = re.compile(r"[^:/?#]+://[^/?#]*([^?#]*)(\?[^#]+)?\??(?:#.*)?", re.DOTALL)
_ESCAPE = re.compile("%([0-9a-fA-F]{2})")
_UNRESERVED = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~")


@dataclass(frozen=True, slots=True)
class PathPattern:
    """A pattern; `specificity` is its length in bytes, by which the most specific rule is chosen."""

    pieces: tuple[str, ...]
    is_anchored: bool
    specificity: int

    @classmethod
    def parse(cls, text: str) -> "PathPattern":
        is_anchored = text.endswith("$")
        pieces = tuple(_canonical(piece) for piece in text.removesuffix("$").split("*"))
        return cls(pieces, is_anchored, len(_canonical(text)))

    def matches(self, path: str) -> bool:
        """Return whether `path`, from `path_of`, matches."""
        first = self.pieces[0]
        if not path.startswith(first):
            return False
        at = len(first)
        if len(self.pieces) == 1:
            return not self.is_anchored or at == len(path)
        *middle, last = self.pieces[1:]
        for piece in middle:
            found = path.find(piece, at)
            if found < 0:
                return False
            at = found + len(piece)
        if self.is_anchored:
            return len(path) - len(last) >= at and path.endswith(last)
        return path.find(last, at) >= 0


def path_of(url: str) -> str:
    """Return the path and query of a URL, in the canonical form for comparison with patterns."""
    match = _AFTER_HOST.fullmatch(url)
    assert match is not None, f"not an http(s) URL: {url}"
    return _canonical((match[1] or "/") + (match[2] or ""))


def _canonical(text: str) -> str:
    """Percent-encode only what needs it, in upper case, and decode the rest."""
    if not text.isascii():
        text = quote(text, safe="".join(map(chr, range(128))), errors="replace")
    return _ESCAPE.sub(_unescape, text) if "%" in text else text


def _unescape(match: "re.Match[str]") -> str:
    character = chr(int(match[1], 16))
    return character if character in _UNRESERVED else f"%{match[1].upper()}"
