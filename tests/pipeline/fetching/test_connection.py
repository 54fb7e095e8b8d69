"""Connections that a server uses wrongly, over raw sockets: late responses, interim floods, heads in pieces."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
from aiohttp.http_exceptions import BadHttpMessage
from hypothesis import given
from hypothesis import strategies as st
from support.fetching import config, fetch, fetch_urls, plan_of
from support.hostile_server import GOOD, picture

from pipeline.fetching.connection import MAX_HEAD_BYTES, MAX_INTERIM, HeadReader
from pipeline.fetching.fetcher import Fetcher

PICTURES = [picture(64, 48, seed=seed) for seed in range(20)]
WRONG = picture(80, 80, seed=99)


def response(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body


Serve = Callable[[socket.socket, str], None]


@contextmanager
def raw_server(serve: Serve) -> Iterator[int]:
    """Accept connections, read requests, and let `serve` write to the socket; robots.txt is 404."""

    def talk(connection: socket.socket) -> None:
        data = b""
        with connection:
            try:
                while True:
                    while b"\r\n\r\n" not in data:
                        if not (received := connection.recv(65_536)):
                            return
                        data += received
                    request, _, data = data.partition(b"\r\n\r\n")
                    path = request.split(b" ")[1].decode()
                    if path == "/robots.txt":
                        connection.sendall(b"HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n")
                    else:
                        serve(connection, path)
            except OSError:
                pass

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def with_late_extra(delay_s: float, extra: bytes) -> Serve:
    def serve(connection: socket.socket, path: str) -> None:
        connection.sendall(response(PICTURES[int(path[1:])]))
        timer = threading.Timer(delay_s, lambda: _send_late(connection, extra))
        timer.daemon = True
        timer.start()

    return serve


def _send_late(connection: socket.socket, extra: bytes) -> None:
    with suppress(OSError):
        connection.sendall(extra)


@pytest.mark.parametrize("with_gateway", [False, True])
@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.1])
@pytest.mark.parametrize("extra", [response(WRONG), response(WRONG)[:7]], ids=["whole", "part"])
def test_bytes_sent_while_idle_never_become_the_next_response(delay_s: float, with_gateway: bool, extra: bytes) -> None:
    with raw_server(with_late_extra(delay_s, extra)) as port:
        host = "pictures.example" if with_gateway else f"127.0.0.1:{port}"
        gateway = f"http://127.0.0.1:{port}" if with_gateway else None
        plan = plan_of([f"http://{host}/{number}" for number in range(8)])
        with Fetcher(config(gateway=gateway, host_interval_s=0.2, host_concurrency=1, timeout_s=5)) as fetcher:
            result = fetch(fetcher, plan)
    assert result.reasons == ["success"] * 8
    assert [row["original_width"] for row in result.table.to_pylist()] == [64] * 8


def test_a_sound_connection_is_used_again() -> None:
    connections: set[object] = set()

    def serve(connection: socket.socket, path: str) -> None:
        connections.add(connection.getpeername())
        connection.sendall(response(GOOD))

    with raw_server(serve) as port:
        result = fetch_urls([f"http://127.0.0.1:{port}/{n}" for n in range(6)], host_concurrency=1, timeout_s=5)
    assert result.reasons == ["success"] * 6
    assert len(connections) == 1


@pytest.mark.parametrize("surplus", [b"\r\n", b"and more", response(WRONG), response(WRONG)[:9]])
def test_what_follows_a_whole_body_is_dropped_with_the_connection(surplus: bytes) -> None:
    def serve(connection: socket.socket, path: str) -> None:
        connection.sendall(response(PICTURES[int(path[1:])]) + surplus)

    with raw_server(serve) as port:
        urls = [f"http://127.0.0.1:{port}/{number}" for number in range(8)]
        result = fetch_urls(urls, host_concurrency=1, timeout_s=5)
    assert result.reasons == ["success"] * 8
    assert [row["original_width"] for row in result.table.to_pylist()] == [64] * 8


@given(st.integers(0, MAX_INTERIM), st.lists(st.integers(1, 400), max_size=20), st.booleans())
def test_a_head_is_the_same_however_it_arrives(interim: int, cuts: list[int], has_cr: bool) -> None:
    end = b"\r\n" if has_cr else b"\n"
    final = end.join([b"HTTP/1.1 200 OK", b"A: b", b"Content-Length: 3", b"", b"abc"])
    sent = end.join([b"HTTP/1.1 103 Early Hints", b"Link: x", b"", b""]) * interim + final
    reader, got, position = HeadReader(), b"", 0
    for cut in [*cuts, len(sent)]:
        piece = sent[position : position + cut]
        got += piece if reader.is_done else reader.feed(piece)
        position += cut
    assert got == final


@pytest.mark.parametrize(
    "sent",
    [
        b"HTTP/1.1 102 Processing\r\n\r\n" * (MAX_INTERIM + 1),
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * MAX_HEAD_BYTES,
        b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * (MAX_HEAD_BYTES // 6),
        b"SSH-2.0",
        b"HTTX",
        b"HTTP/one 200 OK\r\n\r\n",
    ],
)
def test_what_is_not_a_head_fails_at_once(sent: bytes) -> None:
    with pytest.raises(BadHttpMessage):
        HeadReader().feed(sent)


def test_a_head_sent_byte_by_byte_costs_time_in_its_size_only() -> None:
    reader = HeadReader()
    started_s = time.process_time()
    for byte in b"HTTP/1.1 200 OK\r\nX: " + b"a" * 200_000:
        reader.feed(bytes([byte]))
    assert reader.feed(b"\r\n\r\n").endswith(b"a\r\n\r\n")
    assert time.process_time() - started_s < 30  # quadratic work would take minutes


def test_any_bytes_are_a_head_or_an_error() -> None:
    @given(st.binary(max_size=300))
    def check(tail: bytes) -> None:
        with suppress(BadHttpMessage):
            HeadReader().feed(b"HTTP/1.1 200 OK\r\n" + tail)

    check()


@pytest.mark.parametrize("path", ["/a.jpg?", "/a.jpg", "/?", "/a?b?", "/a??", "/%2F?"])
def test_a_url_is_requested_as_it_is(path):
    asked = []

    def serve(connection: socket.socket, asked_for: str) -> None:
        asked.append(asked_for)
        connection.sendall(response(PICTURES[0]))

    with raw_server(serve) as port:
        fetch_urls([f"http://127.0.0.1:{port}{path}"])
    assert asked == [path]
