"""Decode the bytes of a page to text.

Declared encodings are often wrong. Text in another encoding is practically never valid UTF-8 by chance, so bytes that
are valid UTF-8 are decoded as such, regardless of the declaration. Then the encodings of the HTTP header, the XML
declaration and the `meta` element are tried, which may fail at a few bytes; then the statistics of the bytes and the
page's language decide.
"""

import codecs
import re
from collections.abc import Iterator
from typing import NamedTuple

from turbohtml.detect import Detection, detect

from pipeline.web.encodings import REPLACEMENT, decode, find_encoding

_BYTE_ORDER_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16le"), (codecs.BOM_UTF16_BE, "utf-16be"))
_UTF16_STARTS = ((b"<\0", "utf-16le"), (b"\0<", "utf-16be"))
_ESCAPE = b"\x1b"
_SHIFTS = (_ESCAPE, b"~{")  # of the ISO-2022 encodings and HZ, whose bytes are all ASCII, so valid UTF-8
_WESTERN, _JAPANESE_MAIL = "windows-1252", "iso-2022-jp"
_HIGH_BYTES = bytes(range(0x80, 0x100))
_MAX_DAMAGED_SHARE = 0.05  # a UTF-8 page with a few bytes of something else is still a UTF-8 page
_HEAD_BYTES = 1 << 14  # searched for the declaration; browsers search 1 KiB, and restart if they find it later
_SAMPLE_BYTES = 1 << 17  # input of the statistics
_MIN_STATISTICS = 4  # bytes above 0x7F; with fewer, one accented letter would decide between Europe's alphabets
# Encodings in which two characters can be valid UTF-8 by chance, where the first bytes are 0xC2 to 0xDF.
_LIKE_UTF8 = frozenset({"euc-kr", "gbk", "gb18030", "big5", "euc-jp", "shift_jis", "windows-874"})
_MIN_UTF8_CHARACTERS = 4

_STRAY_BYTES = 4

_SURROGATE = re.compile(rb"\xed[\xa0-\xbf][\x80-\xbf]")
_HIGH_OR_ESCAPE = re.compile(rb"[\x80-\xff\x1b]")
_LONG_CHARACTER = re.compile(rb"[\xe0-\xf4]")
_COMMENT = re.compile(rb"<!--.*?-->", re.S)
_META = re.compile(rb"<meta[\s/][^<>]*+", re.I)
_CHARSET = re.compile(rb"charset\s*=\s*[\"']?\s*([^\s\"'/>;]+)", re.I)
_XML_DECLARATION = re.compile(rb"\s*<\?xml[^<>]*?\sencoding\s*=\s*[\"']([^\"'<>]+)")
_LANGUAGE = re.compile(rb"<html\s[^<>]*?\b(?:xml:)?lang\s*=\s*[\"']?\s*([a-z]{2,3})\b", re.I)

# The default encoding of pages by language (HTML standard, "determining the character encoding").
_ENCODINGS_OF_LANGUAGES = (
    dict.fromkeys(("ar", "fa", "ur"), "windows-1256")
    | dict.fromkeys(("ba", "be", "bg", "kk", "ky", "mk", "ru", "sah", "sr", "tg", "tt", "uk"), "windows-1251")
    | dict.fromkeys(("cs", "hu", "pl", "sk", "sl", "hr", "bs"), "windows-1250")
    | dict.fromkeys(("et", "lt", "lv"), "windows-1257")
    | dict.fromkeys(("az", "ku", "tr"), "windows-1254")
    | {"el": "windows-1253", "he": "windows-1255", "iw": "windows-1255", "ja": "shift_jis", "ko": "euc-kr"}
    | {"th": "windows-874", "vi": "windows-1258", "zh": "gbk"}
)
_LANGUAGES_OF_STATISTICS = {
    "windows-1251": "Russian",
    "windows-1253": "Greek",
    "windows-1254": "Turkish",
    "windows-1255": "Hebrew",
    "windows-1256": "Arabic",
    "windows-1258": "Vietnamese",
    "windows-874": "Thai",
    "shift_jis": "Japanese",
    "euc-kr": "Korean",
    "gbk": "Chinese",
}


class DecodedPage(NamedTuple):
    """The text of a page, and the name of its encoding."""

    text: str
    encoding: str


def decode_page(page: bytes, http_charset: str | None) -> DecodedPage | None:
    """Return the text of a page, with U+FFFD for undecodable bytes; None if browsers do not support its encoding.

    `http_charset` is the charset in the Content-Type header, as written, or None.
    """
    for mark, encoding in _BYTE_ORDER_MARKS:
        if page.startswith(mark):
            return DecodedPage(decode(page[len(mark) :], encoding), encoding)
    for start, encoding in _UTF16_STARTS:
        if page.startswith(start):
            return DecodedPage(decode(page, encoding), encoding)
    if not any(shift in page for shift in _SHIFTS):
        try:
            text = codecs.utf_8_decode(page, "strict", False)[0]  # not final: a page may be cut within a character
        except UnicodeDecodeError:
            return _decode_legacy(page, http_charset)
        if page.isascii():
            return DecodedPage(text, _encoding_of_ascii(page, http_charset))
        if len(page) - len(text) < _MIN_UTF8_CHARACTERS and not _LONG_CHARACTER.search(page):
            return _decode_short(page, text, http_charset)
        return DecodedPage(text, "utf-8")
    return _decode_legacy(page, http_charset)


def _encoding_of_ascii(page: bytes, http_charset: str | None) -> str:
    """Return the encoding of a page of ASCII: its character references in queries of URLs are written in it."""
    declared = next(_declared(page, http_charset), None)
    return "utf-8" if declared == REPLACEMENT else declared or _usual_encoding(page)


def _decode_short(page: bytes, text: str, http_charset: str | None) -> DecodedPage:
    """Decode a page that may be valid UTF-8 by chance: it has few characters of two bytes, and no longer ones."""
    declared = next(_declared(page, http_charset), None)
    if declared in _LIKE_UTF8 and "\ufffd" not in (other := decode(page, declared)):
        return DecodedPage(other, declared)
    return DecodedPage(text, "utf-8")


def _decode_legacy(page: bytes, http_charset: str | None) -> DecodedPage | None:
    declared = list(dict.fromkeys(_declared(page, http_charset)))
    high_bytes = len(page) - len(page.translate(None, _HIGH_BYTES))
    if "utf-8" in declared and _SURROGATE.search(page) and (text := _without_surrogates(page)) is not None:
        return DecodedPage(text, "utf-8")
    utf8 = page.decode("utf-8", "replace")
    damaged = utf8.count("\ufffd")
    characters = len(utf8) - (len(page) - high_bytes) - damaged  # those of several bytes
    if high_bytes and (damaged <= high_bytes * _MAX_DAMAGED_SHARE or ("utf-8" in declared and characters >= damaged)):
        return DecodedPage(utf8, "utf-8")
    if REPLACEMENT in declared:
        return None
    if not high_bytes and _ESCAPE in page and _statistics(page, None) == _JAPANESE_MAIL:
        return DecodedPage(decode(page, _JAPANESE_MAIL), _JAPANESE_MAIL)
    for encoding in declared:
        if (encoding.startswith("utf-16") and b"\0" not in page[:64]) or (encoding == "utf-8" and high_bytes):
            continue  # not what it is
        text = decode(page, encoding)
        if _is_mostly_sound(text):
            return DecodedPage(text, encoding)
    return _guess(page, high_bytes)


def _without_surrogates(page: bytes) -> str | None:
    """Return the text of a page that is UTF-8 apart from surrogates, as which some databases store emoji; else None."""
    try:
        return codecs.utf_8_decode(_SURROGATE.sub("\ufffd".encode(), page), "strict", False)[0]
    except UnicodeDecodeError:
        return None


def _is_mostly_sound(text: str) -> bool:
    """Return whether at most a third of the non-ASCII characters are undecodable; of a short text, not most of them."""
    damaged = text.count("\ufffd")
    characters = len(text) - len(text.encode("ascii", "ignore"))
    return not damaged or 3 * damaged <= characters or (damaged <= _STRAY_BYTES and 2 * damaged < characters)


def _guess(page: bytes, high_bytes: int) -> DecodedPage:
    """Decode a page whose declaration is missing or wrong."""
    usual = _usual_encoding(page)
    if not high_bytes or high_bytes >= _MIN_STATISTICS:
        found = _statistics(page, _LANGUAGES_OF_STATISTICS.get(usual))
        if found:
            return DecodedPage(decode(page, found), found)
    text = decode(page, usual)
    return DecodedPage(text, usual) if _is_mostly_sound(text) else DecodedPage(decode(page, _WESTERN), _WESTERN)


def _usual_encoding(page: bytes) -> str:
    """Return the default encoding of the page's language."""
    language = _LANGUAGE.search(page, 0, _HEAD_BYTES)
    return _ENCODINGS_OF_LANGUAGES.get(language[1].decode().lower(), _WESTERN) if language else _WESTERN


def _statistics(page: bytes, language: str | None) -> str | None:
    """Return the most likely encoding of the bytes, None if there is no evidence; `language` decides close cases."""
    first = _HIGH_OR_ESCAPE.search(page)
    start = max(0, first.start() - 1_024) if first else 0
    sample = _CHARSET.sub(b"", page[start : start + _SAMPLE_BYTES])  # or it would use the declaration
    match = detect(sample, Detection(language=language))
    found = find_encoding(match.encoding) if match.encoding and match.confidence > 0 else None
    return None if found == REPLACEMENT else found


def _declared(page: bytes, http_charset: str | None) -> Iterator[str]:
    """Yield the declared encodings of a page, in the precedence of browsers."""
    if http_charset and (found := find_encoding(http_charset.strip("\"' "))):
        yield found
    head = page[:_HEAD_BYTES]
    if (xml := _XML_DECLARATION.match(head)) and (found := find_encoding(xml[1].decode("latin-1"))):
        yield _of_markup(found)
    for meta in _META.finditer(_COMMENT.sub(b"", head)):
        if (label := _CHARSET.search(meta[0])) and (found := find_encoding(label[1].decode("latin-1"))):
            yield _of_markup(found)
            return


def _of_markup(encoding: str) -> str:
    """Return the encoding that browsers use for a declaration in markup, an ASCII-compatible one (HTML, "prescan")."""
    return {"utf-16le": "utf-8", "utf-16be": "utf-8", "x-user-defined": "windows-1252"}.get(encoding, encoding)
