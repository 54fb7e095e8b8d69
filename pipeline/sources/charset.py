"""Which characters the bytes of a page are.

Declared encodings lie. Text in another encoding is practically never valid UTF-8 by chance, so bytes that are UTF-8 are
read as such whatever is declared; then the HTTP header, the `meta` element and the statistics of the bytes are asked.
"""

import codecs
from collections.abc import Iterator

from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

_BYTE_ORDER_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_ESCAPE = b"\x1b"  # the shifts of ISO-2022-JP and ISO-2022-KR, whose bytes are all ASCII, so valid UTF-8
_HIGH_BYTES = bytes(range(0x80, 0x100))
_MAX_DAMAGED_SHARE = 0.05  # a UTF-8 page with a few bytes of something else is still a UTF-8 page


def decode_page(page: bytes, http_charset: str | None) -> str:
    """Return the text of a page; undecodable bytes become U+FFFD.

    `http_charset` is what the Content-Type header declares, as written, or None.
    """
    for mark, encoding in _BYTE_ORDER_MARKS:
        if page.startswith(mark):
            return page[len(mark) :].decode(encoding, "replace")
    if _ESCAPE not in page and b"\0" not in page[:64]:
        try:
            return codecs.utf_8_decode(page, "strict", False)[0]  # not final: a page may be cut within a character
        except UnicodeDecodeError:
            text = page.decode("utf-8", "replace")
            high_bytes = len(page) - len(page.translate(None, _HIGH_BYTES))
            if text.count("\ufffd") <= high_bytes * _MAX_DAMAGED_SHARE:
                return text
    for encoding in _declared(page, http_charset):
        if encoding.startswith("utf-16") and b"\0" not in page[:64]:
            continue
        try:
            return page.decode(encoding)
        except UnicodeDecodeError:
            continue
    return page.decode(detect_encoding(page) or "utf-8", "replace")


def _declared(page: bytes, http_charset: str | None) -> Iterator[str]:
    header = map_encoding_to_html5(http_charset.strip("\"' "), fallback_utf8=False) if http_charset else None
    if header:
        yield header
    yield detect_encoding(page, from_html_meta=True)
