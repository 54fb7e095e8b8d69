"""The character encodings of the web (WHATWG Encoding standard), under the labels that pages use.

Labels mean what they mean to browsers: `euc-kr` is windows-949, `shift_jis` is windows-31j, `iso-8859-1` is
windows-1252 with a character for every byte. Python's codecs of the same names are other encodings.
"""

import re
from functools import cache
from urllib.parse import quote_from_bytes

import turbohtml.detect  # noqa: F401  # registers the "whatwg-" codecs
from webencodings.labels import LABELS

REPLACEMENT = "replacement"
"""ISO-2022-KR, ISO-2022-CN and HZ: browsers never decode them, because they can hide markup."""

_WRITTEN_AS_UTF8 = frozenset({"utf-8", "utf-16le", "utf-16be", REPLACEMENT})
_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
_IN_QUERIES = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in "\"#'<>")
# Lead bytes an encoder may write: not the Hong Kong supplement of Big5, nor the NEC copies of IBM's kanji (step
# "index Shift_JIS pointer", "index Big5 pointer").
_LEADS = {
    "gbk": range(0x81, 0xFF),
    "gb18030": range(0x81, 0xFF),
    "big5": range(0xA1, 0xFF),
    "euc-jp": range(0xA1, 0xFF),
    "euc-kr": range(0x81, 0xFF),
    "shift_jis": (*range(0x81, 0xED), *range(0xEF, 0xFD)),
}


def find_encoding(label: str) -> str | None:
    """Return the encoding of a label, in lower case; None for an unknown label."""
    return LABELS.get(label.strip("\t\n\f\r ").lower())


def decode(data: bytes, encoding: str) -> str:
    """Return the text of `data`; `encoding` is a name from `find_encoding`. Malformed bytes become U+FFFD."""
    return data.decode("utf-8", "replace") if encoding == "utf-8" else data.decode(f"whatwg-{encoding}")


def encode_query(query: str, encoding: str) -> str:
    """Percent-encode the non-ASCII characters in the query of a URL, in the encoding of the document with the URL.

    URL standard, "percent-encode after encoding": a character that the encoding lacks becomes a character reference.
    """
    return _NOT_ASCII.sub(lambda run: quote_from_bytes(_encode(run[0], encoding), safe=_IN_QUERIES), query)


def _encode(text: str, encoding: str) -> bytes:
    if encoding in _WRITTEN_AS_UTF8:
        return text.encode("utf-8", "replace")
    if encoding == "iso-2022-jp":
        return text.encode("iso2022_jp", "xmlcharrefreplace").replace(b"&#", b"%26%23").replace(b";", b"%3B")
    table = _table(encoding)
    return b"".join(table.get(character) or _missing(character, encoding) for character in text)


def _missing(character: str, encoding: str) -> bytes:
    if encoding == "gb18030":
        return character.encode("gb18030", "replace")  # the four-byte sequences reach every character
    return f"%26%23{ord(character)}%3B".encode()


@cache
def _table(encoding: str) -> dict[str, bytes]:
    """Return the bytes of each non-ASCII character: of several, the first in the order of the index."""
    first_single = 0x81 if encoding == "gb18030" else 0x80  # 0x80 is the euro sign of GBK alone
    sequences = [bytes([byte]) for byte in range(first_single, 0x100)]
    sequences += [bytes([lead, trail]) for lead in _LEADS.get(encoding, ()) for trail in range(0x40, 0xFF)]
    found: dict[str, bytes] = {}
    for sequence in sequences:
        character = decode(sequence, encoding)
        if len(character) == 1 and character != "\ufffd":
            found.setdefault(character, sequence)
    return found
