"""One file of an HTTP server that throttles, read as a stream over one connection at a time.

A connection that breaks is opened again at the byte that comes next (RFC 9110, section 14.2), so no byte is requested
twice. A server that is overloaded or has had enough of us (429, 503 SlowDown, 403) is left alone for longer each time,
up to minutes; the pace quickens again only as requests succeed. Who hammers Common Crawl is blocked.
"""

import random
import time
from collections.abc import Callable
from typing import Any

import requests
import urllib3

_TIMEOUT_S = (20.0, 120.0)  # to connect, between bytes
_MAX_FAILURES = 8  # in a row, without one byte between them
_MAX_RETRY_AFTER_S = 900.0
_SKIP_BYTES = 1 << 18
_FINAL = frozenset({400, 401, 404, 405, 410, 414, 451})
_BROKEN = (requests.RequestException, urllib3.exceptions.HTTPError, OSError)


class SourceUnavailable(Exception):
    """A file cannot be read now; another run may have more luck. The message says why."""


class Pacer:
    """How long to wait before the next request to a server: doubled by each failure, halved by each success."""

    def __init__(
        self, first_s: float = 1.0, longest_s: float = 300.0, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._sleep = sleep
        self.delay_s = 0.0

    def wait(self) -> None:
        """Wait for the turn of the next request."""
        if self.delay_s:
            self._sleep(self.delay_s * random.uniform(0.75, 1.25))  # so that clients do not march in step

    def slow_down(self, at_least_s: float = 0.0) -> None:
        """Note a failure; `at_least_s` is the server's own Retry-After."""
        doubled = min(max(self._first_s, 2 * self.delay_s), self._longest_s)
        self.delay_s = max(doubled, min(at_least_s, _MAX_RETRY_AFTER_S))

    def speed_up(self) -> None:
        """Note a success."""
        self.delay_s = self.delay_s / 2 if self.delay_s > self._first_s else 0.0


class RangeStream:
    """A readable binary stream of the file at `url`; seeking opens the connection again elsewhere."""

    def __init__(self, session: requests.Session, url: str, pacer: Pacer) -> None:
        self._session = session
        self._url = url
        self._pacer = pacer
        self._position = 0
        self._total: int | None = None
        self._tag: str | None = None
        self._failures = 0
        self._response: requests.Response | None = None

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes, all that is left if it is negative; b"" at the end.

        Raises:
            SourceUnavailable: the server does not give them, after all tries.
        """
        if size < 0:
            parts = iter(lambda: self.read(1 << 20), b"")
            return b"".join(parts)
        while size and self._position != self._total:
            try:
                data = self._opened().raw.read(size, decode_content=False)
            except EOFError:
                break
            except _BROKEN as error:
                self._fail(type(error).__name__)
                continue
            if data:
                self._position += len(data)
                self._failures = 0
                return bytes(data)
            if self._total is None or self._position == self._total:
                self._total = self._position
                self.close()
                break
            self._fail(f"the connection ended at byte {self._position:,} of {self._total:,}")
        return b""

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to an offset from the beginning."""
        if whence != 0:
            raise ValueError("can seek from the beginning only")
        if offset != self._position:
            self.close()
            self._position = offset
        return offset

    @property
    def total(self) -> int | None:
        """The size of the file, None where the server has not told it yet."""
        return self._total

    def tell(self) -> int:
        """Return the offset of the next byte."""
        return self._position

    def close(self) -> None:
        """Give the connection up; the stream may be read on, over another one."""
        if self._response is not None:
            self._response.close()
            self._response = None

    def __enter__(self) -> "RangeStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _opened(self) -> requests.Response:
        """Return a response whose next byte is that of the position."""
        while self._response is None and self._position != self._total:
            self._pacer.wait()
            headers = {"Accept-Encoding": "identity"}
            if self._position:
                headers["Range"] = f"bytes={self._position}-"
            response = self._session.get(self._url, headers=headers, stream=True, timeout=_TIMEOUT_S)
            if response.status_code in (200, 206):
                self._accept(response)
            else:
                self._refuse(response)
        if self._response is None:
            raise EOFError
        return self._response

    def _accept(self, response: requests.Response) -> None:
        """Check that a response is of the same file, and of the right bytes."""
        tag = response.headers.get("ETag")
        if self._tag is not None and tag is not None and tag != self._tag:
            response.close()
            raise SourceUnavailable("the file changed while it was read")
        self._tag = self._tag or tag
        length = response.headers.get("Content-Length", "")
        start = self._position if response.status_code == 206 else 0
        if response.status_code == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            response.close()
            raise SourceUnavailable(f"status 206 without the bytes from {start:,} on")
        if length.isascii() and length.isdigit():
            self._total = start + int(length)
        self._response = response
        self._pacer.speed_up()
        left = self._position - start  # of a server that knows no ranges
        while left and (skipped := response.raw.read(min(left, _SKIP_BYTES), decode_content=False)):
            left -= len(skipped)

    def _refuse(self, response: requests.Response) -> None:
        """Note a status that is a failure.

        Raises:
            SourceUnavailable: it is final.
        """
        status = response.status_code
        wait = response.headers.get("Retry-After", "")
        response.close()
        if status == 416:
            if response.headers.get("Content-Range") != f"bytes */{self._position}":
                raise SourceUnavailable(f"the file ends before byte {self._position:,}")
            self._total = self._position
            return
        if status in _FINAL:
            raise SourceUnavailable(f"HTTP status {status}")
        self._fail(f"HTTP status {status}", float(wait) if wait.isascii() and wait.isdigit() else 0.0)

    def _fail(self, cause: str, retry_after_s: float = 0.0) -> None:
        """Note a failed try.

        Raises:
            SourceUnavailable: it was the last one.
        """
        self.close()
        self._failures += 1
        self._pacer.slow_down(retry_after_s)
        if self._failures >= _MAX_FAILURES:
            raise SourceUnavailable(f"{cause}, after {self._failures} tries")


def read_whole(session: requests.Session, url: str, pacer: Pacer, max_bytes: int) -> bytes:
    """Return a small file.

    Raises:
        SourceUnavailable: it cannot be read, or is larger than `max_bytes`.
    """
    parts: list[Any] = []
    size = 0
    with RangeStream(session, url, pacer) as stream:
        while part := stream.read(1 << 16):
            parts.append(part)
            size += len(part)
            if size > max_bytes:
                raise SourceUnavailable(f"it is larger than {max_bytes:,} bytes")
    return b"".join(parts)
