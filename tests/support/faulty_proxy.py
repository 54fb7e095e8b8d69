"""A reverse proxy in front of a store, whose requests fail at times: each at most twice, so that a client that tries
again succeeds."""

import hashlib
import http.client
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from urllib.parse import urlsplit

from support.http_server import KeepAliveHandler, QuietServer, serving

_MOST_FAILURES = 2
_SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message></Error>"
)
_OF_ONE_CONNECTION = {"connection", "keep-alive", "transfer-encoding", "content-length"}


class Fault(StrEnum):
    """What happens to a request."""

    UNAVAILABLE = "503"
    SLOW_DOWN = "503 SlowDown, as S3 words it"
    RESET = "the connection is reset before the request reaches the store"
    LOST = "the store does what it is asked for, and the connection is reset before its response"
    CUT = "the connection is reset in the middle of a body"
    SILENT = "no response comes in time"


class FaultyProxy(QuietServer):
    """Passes requests on to `upstream`, an URL; a share of them fails by one of `faults`, chosen by their hash."""

    def __init__(self, upstream: str, faults: Sequence[Fault], *, share: float = 0.08, silence_s: float = 2.0) -> None:
        super().__init__(_Handler)
        self.upstream = urlsplit(upstream)
        self.faults = list(faults)
        self.share = share
        self.silence_s = silence_s
        self.seen: Counter[str] = Counter()
        self.happened: Counter[Fault] = Counter()
        self._lock = threading.Lock()

    def fault_of(self, request: str) -> Fault | None:
        """Return what happens to a request, by how often it was sent before."""
        with self._lock:
            attempt = self.seen[request]
            self.seen[request] += 1
            if attempt >= _MOST_FAILURES or not self.faults:
                return None
            digest = hashlib.sha256(f"{attempt} {request}".encode()).digest()
            if int.from_bytes(digest[:4]) >= self.share * 2**32:
                return None
            possible = [fault for fault in self.faults if fault is not Fault.CUT or request.startswith("GET ")]
            return possible[digest[4] % len(possible)] if possible else None

    def count(self, fault: Fault) -> None:
        with self._lock:
            self.happened[fault] += 1

    @contextmanager
    def running(self) -> Iterator["FaultyProxy"]:
        with serving(self):
            yield self


class _Handler(KeepAliveHandler):
    server: FaultyProxy

    def _pass_on(self) -> None:
        body = self.read_body()
        fault = self.server.fault_of(f"{self.command} {self.path}")
        if fault in (Fault.UNAVAILABLE, Fault.SLOW_DOWN):
            self.server.count(fault)
            self._answer(503, {}, _SLOW_DOWN if fault is Fault.SLOW_DOWN else b"")
            return
        if fault in (Fault.RESET, Fault.SILENT):
            self.server.count(fault)
            if fault is Fault.SILENT:
                time.sleep(self.server.silence_s)
            self._reset()
            return
        status, headers, content = self._ask(body)
        if fault is Fault.LOST:
            self.server.count(fault)
            self._reset()
        elif fault is Fault.CUT and self.command == "GET" and len(content) > 1:
            self.server.count(fault)
            self._answer(status, headers, content, cut=len(content) // 2)
            self._reset()
        else:
            self._answer(status, headers, content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = _pass_on

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        upstream = self.server.upstream
        connection = http.client.HTTPConnection(upstream.hostname or "", upstream.port, timeout=60)
        headers = {n: v for n, v in self.headers.items() if n.lower() not in _OF_ONE_CONNECTION | {"expect"}}
        try:
            connection.request(self.command, self.path, body or None, headers | {"Content-Length": str(len(body))})
            response = connection.getresponse()
            content = response.read()
            kept = {n: v for n, v in response.getheaders() if n.lower() not in _OF_ONE_CONNECTION}
            length = response.getheader("Content-Length")
        finally:
            connection.close()
        if self.command == "HEAD" and length is not None:
            kept["Content-Length"] = length
        return response.status, kept, content

    def _answer(self, status: int, headers: dict[str, str], content: bytes, cut: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:cut])

    def _reset(self) -> None:
        """Close the connection so that the client gets a reset, not an end."""
        self.close_connection = True
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
