"""Extract the bytes of a page from the block of a WARC response record.

Archives keep messages as they were sent, or decoded but with the original headers, or truncated; so the codings in the
headers are decoded only if the bytes match them, and as far as possible.
"""

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Protocol

from fastwarc.stream_io import BrotliReader, ZstdReader
from multidict import CIMultiDict

_MAX_HEAD_BYTES = 1 << 20
_MAX_INTERIM_RESPONSES = 10
_MAX_GZIP_MEMBERS = 1_024  # of a page of 8 MiB; block gzip writes one for every 64 KiB
_READ_BYTES = 1 << 16

_FIRST_LINE_END = re.compile(rb"\r*\n|\r")
_EMPTY_LINE = re.compile(rb"\n\r*\n")
_EMPTY_LINE_OF_CRS = re.compile(rb"\r\r")
# "HTTP/1.1 200 OK", and other forms that servers and archivers write: http/1.1, HTTP 200, HTTP/1.1<tab>200, ICY 200 OK.
_STATUS_LINE = re.compile(rb"[\r\n \t]*+[a-z]{3,8}(?:[ \t]*/[ \t]*[\d.]{1,8})?[ \t]++(\d{3})(?!\d)", re.I)
_CHARSET = re.compile(r"charset\s*=\s*[\"']?([^\s;,\"']+)", re.I)
_FOLD = re.compile(rb"(?:\r*\n|\r)[ \t]++")  # a line that continues in the next (RFC 9112 section 5.2)
CONTROL_BYTES = bytes({*range(0x20)} - {*b"\t\n\f\r\x1b"})
"""Those that no text has."""
_CONTROL = re.compile(b"[%b]" % re.escape(CONTROL_BYTES))
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\n]*)?\r?\n")


@dataclass(frozen=True)
class HttpResponse:
    """The head of a response and its undecoded body."""

    status: int
    media_type: str  # lower case, without parameters; "" if not declared
    charset: str | None  # as declared
    headers: CIMultiDict[str]  # as sent; bytes that are not UTF-8 as surrogates
    codings: tuple[str, ...]  # in the order in which they must be decoded
    body: bytes


def parse_response(block: bytes) -> HttpResponse:
    """Split a response record's block into head and body; interim responses (100 Continue) before it are skipped.

    Raises:
        OSError: it does not start with a status line, or the head does not end.
    """
    start = 0
    for _ in range(_MAX_INTERIM_RESPONSES):
        status, headers, start = _parse_head(block, start)
        if not (100 <= status < 200 and _STATUS_LINE.match(block, start)):
            break
    content_type = headers.get("Content-Type", "")
    charset = _CHARSET.search(content_type)
    return HttpResponse(
        status=status,
        media_type=re.split(r"[;,\s]", content_type.strip(), maxsplit=1)[0].lower(),
        charset=charset[1] if charset else None,
        headers=headers,
        codings=(*_words(headers.getall("Transfer-Encoding", [])), *_words(headers.getall("Content-Encoding", []))),
        body=block[start:],
    )


def _parse_head(block: bytes, start: int) -> tuple[int, CIMultiDict[str], int]:
    """Return status, headers, and the offset of the body. Lines end in CR LF, LF, CR CR LF, or CR alone."""
    status = _STATUS_LINE.match(block, start)
    if status is None:
        raise OSError("no status line")
    line_end = _FIRST_LINE_END.search(block, status.end())
    is_cr_only = line_end is not None and line_end[0] == b"\r"
    empty_line = _EMPTY_LINE_OF_CRS if is_cr_only else _EMPTY_LINE
    end = empty_line.search(block, status.end(), start + _MAX_HEAD_BYTES)
    if line_end is None or end is None:
        raise OSError("the head does not end")
    headers: CIMultiDict[str] = CIMultiDict()
    lines = _FOLD.sub(b" ", block[line_end.end() : end.start()])
    for line in lines.split(b"\r" if is_cr_only else b"\n"):
        name, _, value = line.decode("utf-8", "surrogateescape").partition(":")
        if name := name.strip():
            headers.add(name, value.strip())
    return int(status[1]), headers, end.end()


def _words(values: list[str]) -> list[str]:
    """Return the codings that headers list, last applied first."""
    return [word.partition(";")[0].strip().lower() for word in reversed(",".join(values).split(","))]


def decode_body(response: HttpResponse, max_bytes: int) -> bytes | None:
    """Return the page, at most `max_bytes` + 1 bytes of it; None if it cannot be decoded. Of a truncated body, the
    readable part is returned. Unregistered codings ("utf-8", "binary") are ignored, as in browsers (Fetch standard,
    "handle content codings").
    """
    body = response.body
    for coding in response.codings:
        if coding in _UNSUPPORTED:
            return None
        decode = _DECODERS.get(coding)
        decoded = decode(body, max_bytes + 1) if decode else body
        if decoded is None:
            return None
        body = decoded
    return body[: max_bytes + 1]


def _dechunk(body: bytes, limit: int) -> bytes:
    """Decode chunked coding (RFC 9112 section 7.1), tolerating extensions, other line ends and a missing end."""
    parts, position, size = [], 0, 0
    while size < limit and (match := _CHUNK_SIZE.match(body, position)) and (length := int(match[1], 16)):
        part = body[match.end() : match.end() + length]
        parts.append(part)
        size += len(part)
        position = match.end() + length
        position += 2 if body[position : position + 2] == b"\r\n" else body[position : position + 1] == b"\n"
    return b"".join(parts) if position else body


def _gunzip(body: bytes, limit: int) -> bytes | None:
    """Decode `gzip`, all its members (RFC 1952 section 2.2); None if nothing is readable, or there are too many
    members. Zeros between members, and other bytes after the last one, are ignored.
    """
    parts: list[bytes] = []
    position: int | None = 0
    size = 0
    while position is not None and size < limit and body.startswith(_GZIP_MAGIC, position):
        if len(parts) == _MAX_GZIP_MEMBERS:
            return None
        part, position = _inflate(body, position, limit - size, zlib.MAX_WBITS | 16)
        parts.append(part)
        size += len(part)
        if position is not None and (padding := _PADDING.match(body, position)):
            position = padding.end()
    if not parts:
        return body
    return b"".join(parts) if size or position is not None else None


def _inflate_either(body: bytes, limit: int) -> bytes:
    """Decode `deflate`, which means zlib data (RFC 9110 section 8.4.1.2) and is often sent without its header.

    A short text, decoded before it was archived, can be such data by chance; it has no control characters.
    """
    for wbits in (zlib.MAX_WBITS, -zlib.MAX_WBITS):
        data, end = _inflate(body, 0, limit, wbits)
        if data and (_CONTROL.search(body, 0, 1_024) or (end == len(body) and not body.isascii())):
            return data
    return body


def _inflate(body: bytes, start: int, limit: int, wbits: int) -> tuple[bytes, int | None]:
    """Return the data of the stream at `start`, and its end: None if truncated, damaged or too long."""
    inflater = zlib.decompressobj(wbits)
    parts, size = [], 0
    try:
        for position in range(start, len(body), _READ_BYTES):
            part = inflater.decompress(body[position : position + _READ_BYTES], limit - size)
            parts.append(part)
            size += len(part)
            if inflater.eof:
                return b"".join(parts), min(position + _READ_BYTES, len(body)) - len(inflater.unused_data)
            if size >= limit:
                break
    except zlib.error:
        pass  # the data read so far is kept
    return b"".join(parts), None


class _Reader(Protocol):
    def read(self, size: int = ...) -> bytes: ...


def _read_with(reader_type: Callable[[BytesIO], _Reader]) -> Callable[[bytes, int], bytes]:
    def decode(body: bytes, limit: int) -> bytes:
        reader, parts, size = reader_type(BytesIO(body)), [], 0
        try:
            while size < limit and (part := reader.read(min(_READ_BYTES, limit - size))):
                parts.append(part)
                size += len(part)
        except OSError:
            pass  # truncated or damaged: the data read so far is kept
        return b"".join(parts) or body

    return decode


_GZIP_MAGIC = b"\x1f\x8b"
_PADDING = re.compile(rb"\0+(?=\x1f\x8b)")
# Registered (IANA, HTTP content codings), but not decoded here.
_UNSUPPORTED = frozenset(
    {"compress", "x-compress", "exi", "pack200-gzip", "aes128gcm", "dcb", "dcz", "sdch", "bzip2", "lzma", "xz"}
)
_DECODERS: dict[str, Callable[[bytes, int], bytes | None]] = {
    "chunked": _dechunk,
    "gzip": _gunzip,
    "x-gzip": _gunzip,
    "deflate": _inflate_either,
    "br": _read_with(BrotliReader),
    "zstd": _read_with(ZstdReader),
}
