"""From the block of a WARC response record to the bytes of the page.

Archives keep messages as they were sent, or decoded with the headers left as they were, or cut off in the middle; so
the codings named in the headers are undone where the bytes bear them out, and as far as they go.
"""

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Protocol

from fastwarc.stream_io import BrotliReader, ZstdReader
from fastwarc.warc import HeaderMap as HttpHeaders
from fastwarc.warc import WarcRecord

_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\n]*)?\r?\n")
_READ_BYTES = 1 << 16


@dataclass(frozen=True)
class HttpResponse:
    """The head of a response and its undecoded body."""

    status: int | None
    media_type: str  # lower case, without parameters; "" where none is declared
    charset: str | None  # as declared
    headers: HttpHeaders  # as sent
    codings: tuple[str, ...]  # in the order they are to be undone
    body: bytes


def parse_response(block: bytes) -> HttpResponse:
    """Split a response record's block into head and body.

    Raises:
        OSError: the head does not end.
    """
    record = WarcRecord()
    record.set_bytes_content(block)
    record.is_http = True
    record.parse_http(auto_decode="none", quirks_mode=True)
    headers = record.http_headers
    content_type = headers.get("Content-Type") or ""
    media_type, _, parameters = content_type.partition(";")
    charset = re.search(r"charset\s*=\s*[\"']?([^\s;\"']+)", parameters, re.IGNORECASE)
    return HttpResponse(
        status=headers.status_code,
        media_type=media_type.strip().lower(),
        charset=charset[1] if charset else None,
        headers=headers,
        codings=(*_words(headers.get("Transfer-Encoding")), *_words(headers.get("Content-Encoding"))),
        body=record.reader.read(),
    )


def _words(header: str | None) -> list[str]:
    """Return the codings a header lists, last applied first."""
    return [word.strip().lower() for word in reversed((header or "").split(","))]


def decode_body(response: HttpResponse, max_bytes: int) -> bytes | None:
    """Return the page, at most `max_bytes` + 1 bytes of it, or None where a coding is unknown.

    What can be read of a body that was cut off is returned.
    """
    body = response.body
    for coding in response.codings:
        if coding in _NO_CODING:
            continue
        decode = _DECODERS.get(coding)
        if decode is None:
            return None
        body = decode(body, max_bytes + 1)
    return body[: max_bytes + 1]


def _dechunk(body: bytes, limit: int) -> bytes:
    """Undo chunked coding (RFC 9112 section 7.1), lenient about extensions, line ends and a missing end."""
    parts, position, size = [], 0, 0
    while size < limit and (match := _CHUNK_SIZE.match(body, position)) and (length := int(match[1], 16)):
        part = body[match.end() : match.end() + length]
        parts.append(part)
        size += len(part)
        position = match.end() + length
        position += 2 if body[position : position + 2] == b"\r\n" else body[position : position + 1] == b"\n"
    return b"".join(parts) if position else body


def _gunzip(body: bytes, limit: int) -> bytes:
    return _inflate(body, limit, zlib.MAX_WBITS | 16) if body.startswith(b"\x1f\x8b") else body


def _inflate_either(body: bytes, limit: int) -> bytes:
    """Undo `deflate`, which means zlib data (RFC 9110 section 8.4.1.2) and is often sent without its header."""
    return _inflate(body, limit, zlib.MAX_WBITS) or _inflate(body, limit, -zlib.MAX_WBITS) or body


def _inflate(body: bytes, limit: int, wbits: int) -> bytes:
    inflater = zlib.decompressobj(wbits)
    parts, size = [], 0
    try:
        for start in range(0, len(body), _READ_BYTES):
            part = inflater.decompress(body[start : start + _READ_BYTES], limit - size)
            parts.append(part)
            size += len(part)
            if inflater.eof or size >= limit:
                break
    except zlib.error:
        pass  # cut or damaged: what was read stands
    return b"".join(parts)


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
            pass  # cut or damaged: what was read stands
        return b"".join(parts) or body

    return decode


_NO_CODING = frozenset(("", "identity", "none", "utf-8"))  # the last two are no codings, but servers send them
_DECODERS: dict[str, Callable[[bytes, int], bytes]] = {
    "chunked": _dechunk,
    "gzip": _gunzip,
    "x-gzip": _gunzip,
    "deflate": _inflate_either,
    "br": _read_with(BrotliReader),
    "zstd": _read_with(ZstdReader),
}
