"""Recognise an error page, or the start of one, that was written over the end of an image's data."""

import re

_TAIL_BYTES = 1 << 16  # that are searched
_NO_TEXT = re.compile(rb"[\0-\x08\x0e-\x1f\x7f]")
# Shorter tags are found in dark pictures.
_START = re.compile(
    rb"<!doctype |</?(?:html|head|body|title|center|script|style|table)[ >]|<(?:meta|link|\?xml) |"
    rb'HTTP/1\.[01] [1-5]\d\d|\{\s?"[a-z_]{3,20}"\s?:\s?["\[{\dtfn]',
    re.IGNORECASE,
)
_SENTENCE = re.compile(rb"(?:[A-Za-z]{2,16}[,.:;]?[ \n/-]){5}[A-Za-z]{2}")
_LETTERS = re.compile(rb"[A-Za-z ]")
_MIN_LETTERS, _MIN_LETTERS_SHARE = 8, 0.8  # different ones: a striped picture has few


def text_at_end(data: bytes, start: int, end: int) -> int:
    """Return where the text begins that goes on to `end`; `end` if the last byte is not text."""
    tail = data[max(start, end - _TAIL_BYTES) : end]
    other = _NO_TEXT.search(tail[::-1])
    return end - (len(tail) if other is None else other.start())


def ends_in_page(data: bytes, start: int, end: int) -> bool:
    """Return whether `data[start:end]` is text from some place on, with a tag, a status line, JSON or a sentence."""
    text = data[text_at_end(data, start, end) : end]
    return _START.search(text) is not None or _is_prose(text)


def _is_prose(text: bytes) -> bool:
    found = _SENTENCE.search(text)
    if found is None:
        return False
    letters = _LETTERS.findall(text, found.start())
    return len(set(letters)) >= _MIN_LETTERS and len(letters) >= _MIN_LETTERS_SHARE * (len(text) - found.start())
