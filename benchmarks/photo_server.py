"""The web servers of `benchmarks.fetch`, in a process of their own, whose CPU time is not counted."""

import asyncio
import json
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa
import uvloop

SERVERS = 20
SLOW_S = 2.0
STRIDE = 7919  # a prime: neighbours in the list are not neighbours among the photos


class KeepAliveProtocol(asyncio.Protocol):
    """A minimal HTTP server that keeps connections open. Subclasses have `answer`, for requests without a body."""

    _transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # of a stream
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            request, self._received = self._received[:end], self._received[end + 4 :]
            self.answer(request)

    def answer(self, request: bytes) -> None:
        """Write the response to a request, whose lines are without the last line end."""
        raise NotImplementedError


class _Photos(KeepAliveProtocol):
    """/N.jpg is a photo, everything else is not found."""

    answers: list[bytes]

    def answer(self, request: bytes) -> None:
        name = request.split(b" ", 2)[1].removeprefix(b"/").removesuffix(b".jpg")
        not_found = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
        known = name.isdigit()
        self._send(self.answers[int(name) * STRIDE % len(self.answers)] if known else not_found)
        if b"onnection: close" in request:
            self._close()

    def _send(self, answer: bytes) -> None:
        self._transport.write(answer)

    def _close(self) -> None:
        self._transport.close()


class _SlowPhotos(_Photos):
    """The same, but each photo takes its time."""

    def _send(self, answer: bytes) -> None:
        asyncio.get_running_loop().call_later(SLOW_S, self._transport.write, answer)

    def _close(self) -> None:
        asyncio.get_running_loop().call_later(SLOW_S, self._transport.close)


def serve(folder: str) -> None:
    """Serve the photos in `folder`/photos.arrow; write the ports to `folder`/ports.

    They are those of the servers that respond, then of the slow one, then of the one that refuses connections.
    """
    with pa.ipc.open_file(pa.memory_map(f"{folder}/photos.arrow")) as file:
        photos = file.read_all()["photo"].to_pylist()
    head = "HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {}\r\n\r\n"
    _Photos.answers = [head.format(len(photo)).encode() + photo for photo in photos]
    refuses = socket.socket()
    refuses.bind(("127.0.0.1", 0))  # without `listen`

    async def run() -> None:
        loop = asyncio.get_running_loop()
        kinds = [_Photos] * (SERVERS - 1) + [_SlowPhotos]
        servers = [await loop.create_server(kind, "127.0.0.1", 0, backlog=1_024) for kind in kinds]
        ports = [server.sockets[0].getsockname()[1] for server in servers] + [refuses.getsockname()[1]]
        Path(folder, "ports.tmp").write_text(json.dumps(ports))
        Path(folder, "ports.tmp").rename(Path(folder, "ports"))
        await asyncio.gather(*(server.serve_forever() for server in servers))

    uvloop.run(run())


@contextmanager
def serving(photos: list[bytes], folder: Path) -> Iterator[list[int]]:
    """Serve photos from another process; yield the ports."""
    table = pa.table({"photo": photos})
    with pa.ipc.new_file(str(folder / "photos.arrow"), table.schema) as file:
        file.write_table(table)
    process = get_context("spawn").Process(target=serve, args=(str(folder),))
    process.start()
    while not (folder / "ports").exists():
        if not process.is_alive():
            sys.exit("benchmarks.photo_server: the web server did not start")
        time.sleep(0.05)
    try:
        yield json.loads((folder / "ports").read_text())
    finally:
        process.terminate()
        process.join()
