"""A web server on 127.0.0.1 with every way to answer badly, in a thread of its own. It counts what it is asked.

Routes are functions of a `Request` that write whatever bytes they like. `server.url("/path")` is for direct requests;
as a gateway the same server plays every host.
"""

import asyncio
import contextlib
import gzip
import io
import ssl
import threading
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from PIL import Image

from pipeline.records import Reason


@dataclass
class Request:
    """One request; handlers write to `writer`."""

    path: str
    host: str
    headers: dict[str, str]
    writer: asyncio.StreamWriter
    server: "HostileServer"

    async def send(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Send an ordinary response; underscores in header names stand for hyphens."""
        named = {"Content-Length": str(len(body))} | {name.replace("_", "-"): value for name, value in headers.items()}
        await self.raw(head(status, named) + body)

    async def raw(self, content: bytes) -> None:
        self.writer.write(content)
        await self.writer.drain()


Route = Callable[[Request], Awaitable[None]]


def head(status: int, headers: dict[str, str]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} X\r\n{lines}\r\n".encode("latin-1")


def picture(width: int = 64, height: int = 48, *, seed: int = 0, image_format: str = "JPEG") -> bytes:
    """Return an image file with smooth random content."""
    small = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(file, image_format)
    return file.getvalue()


@dataclass
class HostileServer:
    """See the module. `hosts` overrides routes for one host name: {(host, path): route}."""

    routes: dict[str, Route]
    hosts: dict[tuple[str, str], Route] = field(default_factory=dict)
    hits: Counter[str] = field(default_factory=Counter)  # by "host/path"
    started_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))  # by host
    active: Counter[str] = field(default_factory=Counter)
    most_active: Counter[str] = field(default_factory=Counter)
    seen: list[dict[str, str]] = field(default_factory=list)  # request headers
    port: int = 0

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    @property
    def gateway(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while lines := (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n"):
                headers = dict(line.split(": ", 1) for line in lines[1:] if line)
                request = Request(lines[0].split(" ")[1], headers["Host"], headers, writer, self)
                await self._answer(request)
                if writer.is_closing() or headers.get("Connection") == "close":
                    break
        writer.close()

    async def _answer(self, request: Request) -> None:
        host = request.host
        self.hits[host + request.path] += 1
        self.seen.append(request.headers)
        self.started_s[host].append(time.monotonic())
        self.active[host] += 1
        self.most_active[host] = max(self.most_active[host], self.active[host])
        try:
            path = request.path.partition("?")[0]
            route = self.hosts.get((host, path)) or self.routes.get(path) or _not_found
            await route(request)
        finally:
            self.active[host] -= 1

    @contextlib.contextmanager
    def running(self, tls: ssl.SSLContext | None = None) -> Iterator["HostileServer"]:
        """Serve until the block ends."""
        with running_server(self._serve, tls) as self.port:
            yield self


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.contextmanager
def running_server(serve: Serve, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Serve connections on 127.0.0.1 until the block ends; yield the port."""
    loop = asyncio.new_event_loop()
    opened = set[asyncio.StreamWriter]()

    async def serve_and_note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.add(writer)
        await serve(reader, writer)
        if writer.is_closing():
            opened.discard(writer)

    server = loop.run_until_complete(asyncio.start_server(serve_and_note, "127.0.0.1", 0, ssl=tls))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        asyncio.run_coroutine_threadsafe(_stop(server, opened), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


_ROUNDS = 5
"""Of a loop, in which an accepted connection gets its transport, its protocol and the task that serves it."""


async def _stop(server: asyncio.Server, opened: Iterable[asyncio.StreamWriter]) -> None:
    """End all tasks and connections; those of clients that do not read, too."""
    server.close()
    for _ in range(_ROUNDS):  # what was just accepted: a task that is cancelled before it runs leaves its socket open
        await asyncio.sleep(0)
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for writer in list(opened):
        writer.transport.abort()
    for _ in range(_ROUNDS):
        await asyncio.sleep(0)  # transports close in the next round of the loop


async def _not_found(request: Request) -> None:
    await request.send(404)


def fixed(status: int, body: bytes = b"", **headers: str) -> Route:
    """Return a route that always answers the same."""

    async def route(request: Request) -> None:
        await request.send(status, body, **headers)

    return route


def raw(content: bytes, later: bytes = b"", *, then_close: bool = True) -> Route:
    """Return a route that sends these bytes, in a packet of their own those that come later, and closes."""

    async def route(request: Request) -> None:
        await request.raw(content)
        if later:
            await asyncio.sleep(0.05)
            await request.raw(later)
        if then_close:
            request.writer.close()

    return route


def first_then(first: list[Route], then: Route) -> Route:
    """Return a route that plays `first` one by one, then always `then`."""
    left = list(first)

    async def route(request: Request) -> None:
        await (left.pop(0) if left else then)(request)

    return route


async def hang(request: Request) -> None:
    """Never answer."""
    await asyncio.sleep(3600)


async def slow_headers(request: Request) -> None:
    """Send the headers a byte at a time."""
    for byte in head(200, {"Content-Length": "10"}):
        await request.raw(bytes([byte]))
        await asyncio.sleep(0.05)


async def drip(request: Request) -> None:
    """Send the body a byte at a time, for ever."""
    await request.raw(head(200, {"Content-Type": "image/jpeg"}))
    while True:
        await request.raw(b"x")
        await asyncio.sleep(0.02)


async def endless(request: Request) -> None:
    """Send a body without end, as fast as it goes."""
    await request.raw(head(200, {"Content-Type": "image/jpeg"}))
    while True:
        await request.raw(b"\xff\xd8\xff" + bytes(1 << 16))


async def gzip_of_nothing(request: Request) -> None:
    """Send empty gzip blocks without end: they unpack to nothing."""
    await request.raw(head(200, {"Content-Encoding": "gzip"}) + gzip.compress(b"")[:10])
    while True:
        await request.raw(b"\0\0\0\xff\xff" * 10_000)


async def gzip_and_more(request: Request) -> None:
    """Send a whole gzip body, and other bytes after it without end."""
    await request.raw(head(200, {"Content-Encoding": "gzip"}) + gzip.compress(GOOD))
    while True:
        await request.raw(bytes(1 << 16))


async def reset(request: Request) -> None:
    """Break the connection instead of answering."""
    request.writer.transport.abort()


async def reset_in_body(request: Request) -> None:
    """Break the connection in the middle of the body."""
    await request.raw(head(200, {"Content-Length": "100000"}) + bytes(1000))
    await asyncio.sleep(0.05)
    request.writer.transport.abort()


def raw_deflate(content: bytes) -> bytes:
    """Return deflate data without the zlib header."""
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(content) + packer.flush()


def good_after(head_lines: str, *, status_line: str = "HTTP/1.1 200 OK") -> Route:
    """Return a route that sends these head lines and a good picture, and closes."""
    return raw(f"{status_line}\r\n{head_lines}\r\n".encode("latin-1") + GOOD)


async def interim_flood(request: Request) -> None:
    """Send interim responses without end, as fast as it goes."""
    while True:
        await request.raw(b"HTTP/1.1 102 Processing\r\n\r\n" * 5_000)


async def endless_headers(request: Request) -> None:
    """Send header lines without end."""
    await request.raw(b"HTTP/1.1 200 OK\r\n")
    while True:
        await request.raw(b"X-Filler: abc\r\n" * 1_000)


async def endless_trailers(request: Request) -> None:
    """Send a chunked body and then trailers without end."""
    await request.raw(head(200, {"Transfer-Encoding": "chunked"}) + b"%x\r\n" % len(GOOD) + GOOD + b"\r\n0\r\n")
    while True:
        await request.raw(b"X-Filler: abc\r\n" * 1_000)


async def tiny_chunks(request: Request) -> None:
    """Send a body in chunks of one byte without end."""
    await request.raw(head(200, {"Transfer-Encoding": "chunked"}))
    while True:
        await request.raw(b"1\r\nx\r\n" * 10_000)


def png_header(width: int, height: int) -> bytes:
    """Return the beginning of a PNG that announces this size."""
    header = b"IHDR" + width.to_bytes(4) + height.to_bytes(4) + bytes([8, 2, 0, 0, 0])
    data = b"IDAT" + zlib.compress(bytes(1_000))
    chunks = [len(chunk[4:]).to_bytes(4) + chunk + zlib.crc32(chunk).to_bytes(4) for chunk in (header, data, b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


GOOD = picture()
N = len(GOOD)
GZIP_BOMB = gzip.compress(bytes(200 << 20), 9)


DISALLOW_ALL = b"User-agent: *\nDisallow: /\n"
HUGE = DISALLOW_ALL + b"# filler\n" * 500_000


def default_routes() -> dict[str, Route]:
    chunked = head(200, {"Transfer-Encoding": "chunked", "Content-Type": "image/jpeg"})
    return {
        "/robots.txt": fixed(404),
        "/ok.jpg": fixed(200, GOOD),
        "/ok.png": fixed(200, picture(image_format="PNG")),
        "/203.jpg": fixed(203, GOOD),
        "/gzip.jpg": fixed(200, gzip.compress(GOOD), Content_Encoding="gzip"),
        "/chunked.jpg": raw(chunked + b"%x\r\n" % len(GOOD) + GOOD + b"\r\n0\r\n\r\n", then_close=False),
        "/no-length.jpg": raw(head(200, {"Content-Type": "image/jpeg"}) + GOOD),
        "/redirect": fixed(302, Location="/ok.jpg"),
        "/redirect2": fixed(301, Location="redirect"),
        "/loop": fixed(307, Location="/loop"),
        "/to-file": fixed(302, Location="file:///etc/passwd"),
        "/to-data": fixed(302, Location="data:image/png;base64,AAAA"),
        "/to-private": fixed(302, Location="http://10.0.0.1/secret.jpg"),
        "/to-localhost": fixed(302, Location="http://2130706433:8/secret.jpg"),
        "/to-nowhere": fixed(302),
        "/slow-headers": slow_headers,
        "/drip": drip,
        "/hang": hang,
        "/reset": reset,
        "/reset-in-body": reset_in_body,
        "/endless": endless,
        "/announced-huge": raw(head(200, {"Content-Length": str(1 << 40)})),
        "/truncated": raw(head(200, {"Content-Length": str(len(GOOD) + 1000)}) + GOOD),
        "/too-short-length": raw(head(200, {"Content-Length": str(len(GOOD) // 2)}), GOOD),
        "/half.jpg": fixed(200, GOOD[: len(GOOD) // 2]),
        "/gzip-bomb": fixed(200, GZIP_BOMB, Content_Encoding="gzip"),
        "/gzip-of-nothing": gzip_of_nothing,
        "/gzip-and-more": gzip_and_more,
        "/gzip-padded.jpg": fixed(200, gzip.compress(GOOD) + bytes(512), Content_Encoding="gzip"),
        "/gzip-garbage": fixed(200, b"not gzip at all", Content_Encoding="gzip"),
        "/gzip-cut": fixed(200, gzip.compress(GOOD)[:-20], Content_Encoding="gzip"),
        "/br": fixed(200, GOOD, Content_Encoding="br"),
        "/chunked-garbage": raw(chunked, b"zz\r\nwhat\r\n"),
        "/chunked-cut": raw(chunked + b"ffff\r\nabc"),
        "/not-http": raw(b"SSH-2.0-OpenSSH_9.0\r\n\r\n"),
        "/huge-header": raw(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 300_000 + b"\r\n\r\n"),
        "/raw-deflate.jpg": fixed(200, raw_deflate(GOOD), Content_Encoding="deflate"),
        "/zlib.jpg": fixed(200, zlib.compress(GOOD), Content_Encoding="deflate"),
        "/gzip-as-deflate.jpg": fixed(200, gzip.compress(GOOD), Content_Encoding="deflate"),
        "/gzip-members.jpg": fixed(200, gzip.compress(GOOD[:99]) + gzip.compress(GOOD[99:]), Content_Encoding="gzip"),
        "/gzip-twice.jpg": fixed(200, gzip.compress(gzip.compress(GOOD)), Content_Encoding="gzip, gzip"),
        "/deflate-gzip.jpg": fixed(200, gzip.compress(zlib.compress(GOOD)), Content_Encoding="deflate, gzip"),
        "/identity-gzip.jpg": fixed(200, gzip.compress(GOOD), Content_Encoding="identity, GZIP"),
        "/gzip-many": fixed(200, GOOD, Content_Encoding="gzip, " * 9 + "gzip"),
        "/coding-utf-8.jpg": fixed(200, GOOD, Content_Encoding="UTF-8"),
        "/coding-binary.jpg": fixed(200, GOOD, Content_Encoding="binary"),
        "/coding-type.jpg": fixed(200, GOOD, Content_Encoding="image/jpeg"),
        "/coding-aws.jpg": fixed(200, GOOD, Content_Encoding="aws-chunked"),
        "/coding-empty.jpg": fixed(200, GOOD, Content_Encoding=""),
        "/zstd": fixed(200, GOOD, Content_Encoding="zstd"),
        "/length-twice.jpg": good_after(f"Content-Length: {N}\r\nContent-Length: {N}\r\n"),
        "/length-list.jpg": good_after(f"content-length: {N}, {N}\r\n"),
        "/length-differs": good_after(f"Content-Length: {N}\r\nContent-Length: {N - 1}\r\n"),
        "/length-negative": good_after("Content-Length: -5\r\n"),
        "/length-no-number": good_after("Content-Length: many\r\n"),
        "/length-and-chunked.jpg": raw(
            head(200, {"Content-Length": "7", "Transfer-Encoding": "chunked"}) + b"%x\r\n" % N + GOOD + b"\r\n0\r\n\r\n"
        ),
        "/lower-case.jpg": good_after(f"Content-Length: {N}\r\n", status_line="http/1.1 200 ok"),
        "/no-reason.jpg": good_after(f"Content-Length: {N}\r\n", status_line="HTTP/1.1 200"),
        "/http-1.0.jpg": good_after("", status_line="HTTP/1.0 200 OK"),
        "/bare-newlines.jpg": raw(b"HTTP/1.1 200 OK\nContent-Length: %d\n\n" % N + GOOD),
        "/surplus.jpg": raw(head(200, {"Content-Length": str(N)}) + GOOD + b"\r\nand more", then_close=False),
        "/blank-line-first.jpg": raw(b"\r\n" + head(200, {"Content-Length": str(N)}) + GOOD),
        "/http-0.9": raw(GOOD),
        "/http-2.jpg": good_after("", status_line="HTTP/2 200"),
        "/http-1.2.jpg": good_after(f"Content-Length: {N}\r\n", status_line="HTTP/1.2 200 OK"),
        "/two-spaces.jpg": good_after(f"Content-Length: {N}\r\n", status_line="HTTP/1.1  200  OK"),
        "/tabs.jpg": good_after(f"Content-Length: {N}\r\n", status_line="HTTP/1.1\t200\tOK"),
        "/status-only": raw(b"HTTP/1.1 200 OK\r\n"),
        "/status-1000": good_after("", status_line="HTTP/1.1 1000 OK"),
        "/status-word": good_after("", status_line="HTTP/1.1 OK"),
        "/nothing": raw(b""),
        "/nul-in-header": good_after("X: a\0b\r\n"),
        "/space-in-name.jpg": good_after("X y: a\r\n"),
        "/no-colon.jpg": good_after(f"nonsense\r\nContent-Length: {N}\r\n: b\r\n"),
        "/folded.jpg": good_after(f"X: a\r\n b: c\r\nContent-Length: {N}\r\n"),
        "/header-9k.jpg": good_after(f"X: {'a' * 9_000}\r\nContent-Length: {N}\r\n"),
        "/header-200k.jpg": good_after(f"X: {'a' * 200_000}\r\nContent-Length: {N}\r\n"),
        "/headers-1000.jpg": good_after("X: a\r\n" * 1_000 + f"Content-Length: {N}\r\n"),
        "/endless-headers": endless_headers,
        "/endless-trailers": endless_trailers,
        "/tiny-chunks": tiny_chunks,
        "/early-hints.jpg": raw(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 10 + head(200, {}) + GOOD),
        "/continue-slowly.jpg": raw(b"HTTP/1.1 100 Continue\r\n\r\n", head(200, {}) + GOOD),
        "/interim-11": raw(b"HTTP/1.1 102 Processing\r\n\r\n" * 11 + head(200, {}) + GOOD),
        "/interim-flood": interim_flood,
        "/101": fixed(101),
        "/html.jpg": fixed(200, b"<!DOCTYPE html><html><body>gone</body></html>"),
        "/empty.jpg": fixed(200),
        "/204": fixed(204),
        "/206": fixed(206, GOOD),
        "/304": fixed(304),
        "/401": fixed(401),
        "/403": fixed(403),
        "/404": fixed(404, b"not here", X_Robots_Tag="noindex"),
        "/410": fixed(410),
        "/418": fixed(418),
        "/451": fixed(451),
        "/429": fixed(429),
        "/429-long": fixed(429, Retry_After="3000"),
        "/500": fixed(500),
        "/500-then-ok": first_then([fixed(500)], fixed(200, GOOD)),
        "/503-then-ok": first_then([fixed(503, Retry_After="1")], fixed(200, GOOD)),
        "/reset-then-ok": first_then([reset, reset], fixed(200, GOOD)),
        "/elsewhere.txt": fixed(200, DISALLOW_ALL),
        "/303": fixed(303, Location="/ok.jpg"),
        "/308": fixed(308, Location="ok.png"),
        "/to-latin-1": raw(b"HTTP/1.1 302 X\r\nLocation: /caf\xe9.jpg\r\nContent-Length: 0\r\n\r\n"),
        "/caf%E9.jpg": fixed(200, GOOD),
        "/to-ftp": fixed(302, Location="ftp://a.example/ok.jpg"),
        "/to-password": fixed(302, Location="http://user:secret@a.example/ok.jpg"),
        "/to-smtp": fixed(302, Location="http://a.example:25/ok.jpg"),
        "/to-empty": fixed(302, Location=""),
        "/402": fixed(402),
        "/600": fixed(600),
        "/svg": fixed(200, b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        "/zeros": fixed(200, bytes(1_000)),
        "/half.png": fixed(200, picture(image_format="PNG")[:300]),
        "/tiny.png": fixed(200, picture(8, 8, image_format="PNG")),
        "/wide.png": fixed(200, picture(900, 40, image_format="PNG")),
        "/bomb.png": fixed(200, png_header(60_000, 60_000)),
        "/noindex": fixed(200, GOOD, X_Robots_Tag="noindex"),
        "/none": fixed(200, GOOD, X_Robots_Tag="none"),
        "/noimageai": fixed(200, GOOD, X_Robots_Tag="NoImageAI"),
        "/tdm": fixed(200, GOOD, TDM_Reservation="1"),
        "/noai": fixed(200, GOOD, X_Robots_Tag="noai, max-image-preview:large"),
        "/other-bot": fixed(200, GOOD, X_Robots_Tag="otherbot: noindex"),
        "/redirect-noai": fixed(302, Location="/ok.jpg", X_Robots_Tag="noai"),
    }


RESPONSES: dict[str, str] = {
    "/ok.jpg": "success",
    "/ok.png": "success",
    "/203.jpg": "success",
    "/gzip.jpg": "success",
    "/gzip-padded.jpg": "success",
    "/chunked.jpg": "success",
    "/no-length.jpg": "success",
    "/redirect": "success",
    "/redirect2": "success",
    "/other-bot": "success",
    "/loop": Reason.TOO_MANY_REDIRECTS,
    "/to-file": Reason.BAD_REDIRECT,
    "/to-data": Reason.BAD_REDIRECT,
    "/to-nowhere": Reason.BAD_REDIRECT,
    "/slow-headers": Reason.TIMEOUT,
    "/drip": Reason.TIMEOUT,
    "/hang": Reason.TIMEOUT,
    "/reset": Reason.PROTOCOL_ERROR,
    "/reset-in-body": Reason.TRUNCATED,
    "/endless": Reason.TOO_LARGE,
    "/announced-huge": Reason.TOO_LARGE,
    "/truncated": Reason.TRUNCATED,
    "/too-short-length": Reason.BROKEN_IMAGE,
    "/half.jpg": Reason.BROKEN_IMAGE,
    "/gzip-bomb": Reason.TOO_LARGE,
    "/gzip-of-nothing": Reason.TOO_LARGE,
    "/gzip-and-more": Reason.TOO_LARGE,
    "/gzip-garbage": Reason.TRUNCATED,
    "/gzip-cut": Reason.TRUNCATED,
    "/br": Reason.PROTOCOL_ERROR,
    "/zstd": Reason.PROTOCOL_ERROR,
    "/raw-deflate.jpg": "success",
    "/zlib.jpg": "success",
    "/gzip-as-deflate.jpg": "success",
    "/gzip-members.jpg": "success",
    "/gzip-twice.jpg": "success",
    "/deflate-gzip.jpg": "success",
    "/identity-gzip.jpg": "success",
    "/gzip-many": Reason.PROTOCOL_ERROR,
    "/coding-utf-8.jpg": "success",
    "/coding-binary.jpg": "success",
    "/coding-type.jpg": "success",
    "/coding-aws.jpg": "success",
    "/coding-empty.jpg": "success",
    "/length-twice.jpg": "success",
    "/length-list.jpg": "success",
    "/length-differs": Reason.PROTOCOL_ERROR,
    "/length-negative": Reason.PROTOCOL_ERROR,
    "/length-no-number": Reason.PROTOCOL_ERROR,
    "/length-and-chunked.jpg": "success",
    "/lower-case.jpg": "success",
    "/no-reason.jpg": "success",
    "/http-1.0.jpg": "success",
    "/http-2.jpg": "success",
    "/http-1.2.jpg": "success",
    "/two-spaces.jpg": "success",
    "/tabs.jpg": "success",
    "/bare-newlines.jpg": "success",
    "/blank-line-first.jpg": "success",
    "/surplus.jpg": "success",
    "/http-0.9": Reason.PROTOCOL_ERROR,
    "/status-only": Reason.PROTOCOL_ERROR,
    "/status-1000": Reason.PROTOCOL_ERROR,
    "/status-word": Reason.PROTOCOL_ERROR,
    "/nothing": Reason.PROTOCOL_ERROR,
    "/nul-in-header": Reason.PROTOCOL_ERROR,
    "/space-in-name.jpg": "success",
    "/no-colon.jpg": "success",
    "/folded.jpg": "success",
    "/header-9k.jpg": "success",
    "/header-200k.jpg": "success",
    "/headers-1000.jpg": "success",
    "/endless-headers": Reason.PROTOCOL_ERROR,
    "/early-hints.jpg": "success",
    "/continue-slowly.jpg": "success",
    "/interim-11": Reason.PROTOCOL_ERROR,
    "/interim-flood": Reason.PROTOCOL_ERROR,
    "/101": Reason.HTTP_UNEXPECTED,
    "/chunked-cut": Reason.TRUNCATED,
    "/not-http": Reason.PROTOCOL_ERROR,
    "/huge-header": Reason.PROTOCOL_ERROR,
    "/html.jpg": Reason.NOT_AN_IMAGE,
    "/empty.jpg": Reason.NOT_AN_IMAGE,
    "/204": Reason.HTTP_UNEXPECTED,
    "/206": Reason.HTTP_UNEXPECTED,
    "/304": Reason.HTTP_UNEXPECTED,
    "/401": Reason.HTTP_FORBIDDEN,
    "/403": Reason.HTTP_FORBIDDEN,
    "/404": Reason.HTTP_NOT_FOUND,
    "/410": Reason.HTTP_NOT_FOUND,
    "/418": Reason.HTTP_CLIENT_ERROR,
    "/451": Reason.HTTP_FORBIDDEN,
    "/429": Reason.HTTP_TOO_MANY_REQUESTS,
    "/500": Reason.HTTP_SERVER_ERROR,
    "/500-then-ok": Reason.HTTP_SERVER_ERROR,
    "/noai": Reason.OPTED_OUT,
    "/redirect-noai": Reason.OPTED_OUT,
    "/303": "success",
    "/308": "success",
    "/to-latin-1": "success",
    "/to-ftp": Reason.BAD_REDIRECT,
    "/to-password": Reason.BAD_REDIRECT,
    "/to-smtp": Reason.BAD_REDIRECT,
    "/to-empty": Reason.BAD_REDIRECT,
    "/600": Reason.HTTP_UNEXPECTED,
    "/svg": Reason.UNSUPPORTED_FORMAT,
    "/zeros": Reason.NOT_AN_IMAGE,
    "/half.png": Reason.BROKEN_IMAGE,
    "/tiny.png": Reason.IMAGE_TOO_SMALL,
    "/wide.png": Reason.ASPECT_RATIO,
    "/bomb.png": Reason.TOO_MANY_PIXELS,
    "/noindex": Reason.OPTED_OUT,
    "/none": Reason.OPTED_OUT,
    "/noimageai": Reason.OPTED_OUT,
    "/tdm": Reason.OPTED_OUT,
}
"""The outcome of each path of `default_routes`, without retries."""

ROBOTS_RESPONSES: dict[str, tuple[Route, str]] = {
    "allows": (fixed(200, b"User-agent: *\nAllow: /\n"), "success"),
    "disallows": (fixed(200, DISALLOW_ALL), Reason.ROBOTS_DISALLOWED),
    "huge": (fixed(200, HUGE), Reason.ROBOTS_DISALLOWED),
    "redirected": (fixed(302, Location="/elsewhere.txt"), Reason.ROBOTS_DISALLOWED),
    "redirected-for-ever": (fixed(302, Location="/robots.txt"), "success"),
    "redirected-to-file": (fixed(302, Location="file:///etc/passwd"), Reason.ROBOTS_UNREACHABLE),
    "not-found": (fixed(404), "success"),
    "forbidden": (fixed(403), "success"),
    "too-many": (fixed(429), Reason.ROBOTS_UNREACHABLE),
    "server-error": (fixed(500), Reason.ROBOTS_UNREACHABLE),
    "hang": (hang, Reason.ROBOTS_UNREACHABLE),
    "drip": (drip, Reason.ROBOTS_UNREACHABLE),
    "reset": (reset, Reason.ROBOTS_UNREACHABLE),
    "garbage": (raw(b"hello\r\n\r\n"), Reason.ROBOTS_UNREACHABLE),
    "binary": (fixed(200, bytes(range(256)) * 10), "success"),
}
"""By host name: a response for robots.txt, and the outcome of a good image there."""


@pytest.fixture
def server() -> Iterator[HostileServer]:
    with HostileServer(default_routes()).running() as running:
        yield running
