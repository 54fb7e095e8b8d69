"""One client connection: the server's bytes are checked before aiohttp parses them.

- Bytes that arrive while no response is due end the connection: they would become the response to the next request.
  Bytes beyond the Content-Length of a response are dropped, and the connection is not used again.
- The head of a response may have 256 KiB, as in browsers, and at most 10 interim (1xx) heads come before it.
- Spellings that browsers read and llhttp refuses are rewritten: a Content-Length repeated with one value (RFC 9110
  section 8.6), Content-Length beside Transfer-Encoding (RFC 9112 section 6.3), a status line in lower case, with other
  blanks or another version, lines that are not header fields.
"""

import asyncio
import re
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import BadHttpMessage

MAX_HEAD_BYTES = 256 << 10
MAX_HEADERS = 4_096
MAX_INTERIM = 10

_HEAD_END = re.compile(rb"\n\r?\n")
_STATUS_LINE = re.compile(rb"http/(\d(?:\.\d)?)[ \t]+(\d{3})(?=[ \t\r\n])", re.IGNORECASE)
_NOT_A_FIELD = re.compile(rb"\n(?![!#$%&'*+.^_`|~0-9A-Za-z-]+[ \t]*:|[ \t]|\r?\n|\Z)[^\n]*")  # folded lines are fields
_FRAMING = re.compile(rb"\n(content-length|transfer-encoding)[ \t]*:([^\r\n]*)(?=\r?\n)", re.IGNORECASE)


@dataclass(slots=True)
class Progress:
    """The progress of one request."""

    is_proxied: bool = False
    is_connected: bool = False  # TCP; a TLS handshake may follow
    is_sent: bool = False  # or about to be
    is_reused: bool = False  # on a connection that served an earlier request
    is_in_body: bool = False
    http_status: int | None = None


PROGRESS: ContextVar[Progress] = ContextVar("progress")
"""The request of the current task; aiohttp makes connections, and starts responses, in the task of their request."""


class HeadReader:
    """Extracts the head of one final response from the incoming bytes; holds at most `MAX_HEAD_BYTES`."""

    def __init__(self) -> None:
        self.is_done = False
        self.missing_bytes: int | None = None  # of the body, if the head states it
        self._buffer = bytearray()
        self._searched = 0
        self._interim = 0

    def feed(self, data: bytes) -> bytes:
        """Return the bytes for the parser: nothing until the final head is complete, then the head and the bytes after
        it.

        Raises:
            BadHttpMessage: not the head of a response, or over a limit.
        """
        self._buffer += data
        while (end := self._head_end()) is not None:
            head = bytes(self._buffer[:end])
            status = _STATUS_LINE.match(head)
            if status is None:
                raise BadHttpMessage("not an HTTP/1 status line")
            if status[2] == b"101" or not status[2].startswith(b"1"):
                rest = bytes(self._buffer[end:])
                self.is_done, self._buffer = True, bytearray()
                head, length = _normalised(head)
                self.missing_bytes = 0 if status[2] in (b"204", b"304") else length
                return head + self.cut(rest)
            self._interim += 1
            if self._interim > MAX_INTERIM:
                raise BadHttpMessage(f"more than {MAX_INTERIM} interim responses")
            del self._buffer[:end]
            self._searched = 0
        return b""

    def cut(self, body: bytes) -> bytes:
        """Return `body` without the bytes beyond the length of the response; `missing_bytes` is then negative."""
        if self.missing_bytes is None:
            return body
        kept = body[: max(self.missing_bytes, 0)]
        self.missing_bytes -= len(body)
        return kept

    def _head_end(self) -> int | None:
        blank = 0
        while blank < len(self._buffer) and self._buffer[blank] in b"\r\n":
            blank += 1
        if blank:  # an empty line before the status line, which parsers should skip
            del self._buffer[:blank]
            self._searched = 0
        if self._buffer[:5].upper() != b"HTTP/"[: len(self._buffer)]:
            raise BadHttpMessage("not an HTTP/1 status line")
        match = _HEAD_END.search(self._buffer, max(0, self._searched - 2))
        self._searched = len(self._buffer)
        end = len(self._buffer) if match is None else match.end()
        if end > MAX_HEAD_BYTES:
            raise BadHttpMessage(f"headers exceed {MAX_HEAD_BYTES} bytes")
        return None if match is None else end


def _normalised(head: bytes) -> tuple[bytes, int | None]:
    """Return a head with one Content-Length, or none beside Transfer-Encoding; and that length, if unambiguous."""
    status = _STATUS_LINE.match(head)
    assert status is not None
    version = b"1.0" if status[1] in (b"0.9", b"1.0") else b"1.1"
    after = head[status.end() :].lstrip(b" \t")
    head = _NOT_A_FIELD.sub(b"", b"HTTP/" + version + b" " + status[2] + b" " + after)
    framing = [(name.lower(), value) for name, value in _FRAMING.findall(head)]
    lengths = [one.strip() for name, value in framing if name == b"content-length" for one in value.split(b",")]
    is_coded = any(name == b"transfer-encoding" for name, _ in framing)
    is_unclear = not is_coded and len(set(lengths)) > 1
    is_number = not is_coded and not is_unclear and bool(lengths) and re.fullmatch(rb"[0-9]{1,18}", lengths[0])
    length = int(lengths[0]) if is_number else None
    if len(lengths) + is_coded < 2 or is_unclear:  # the parser rejects ambiguous heads
        return head, length
    kept = [line for line in head.split(b"\n") if not line.lower().startswith(b"content-length")]
    if not is_coded:
        kept.insert(1, b"Content-Length: " + lengths[0] + b"\r")
    return b"\n".join(kept), length


class Connection(ResponseHandler):
    """aiohttp's protocol of one connection, with a `HeadReader` before its parser."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._head: HeadReader | None = None  # None while no response is expected
        self._requests = 0
        if (progress := PROGRESS.get(None)) is not None:
            progress.is_connected = True  # aiohttp creates the protocol when the TCP connection is established

    def set_response_params(self, **params: Any) -> None:
        """Prepare for the response to a request that is about to be sent."""
        self._head = HeadReader()
        self._requests += 1
        if (progress := PROGRESS.get(None)) is not None:
            progress.is_connected = progress.is_sent = True
            progress.is_reused = self._requests > 1
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        """Pass on the bytes of the expected response."""
        if not data:  # aiohttp resumes a paused parser in this way
            super().data_received(data)
            return
        if self._head is None:
            self._end()
            return
        if not self._head.is_done:
            try:
                data = self._head.feed(data)
            except BadHttpMessage as error:
                self.set_exception(error)
                self._end()
                return
            if not data:
                return
        else:
            data = self._head.cut(data)
        if self._head.missing_bytes is not None and self._head.missing_bytes < 0:
            self.force_close()
        super().data_received(data)
        if self._payload is not None and self._payload.is_eof():
            self._head = None

    def _end(self) -> None:
        self.force_close()
        self._parser = None
        if self.transport is not None:
            self.transport.abort()
