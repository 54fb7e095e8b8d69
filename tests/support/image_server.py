"""A web of pictures on 127.0.0.1 that counts what it is asked for; `fetch.gateway` sends every request to it."""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

from support.http_server import QuietServer, serving


class ImageServer:
    """Answers for `images` (URL -> bytes), with 404 for anything else; `pause_s` before each answer."""

    def __init__(self, images: Mapping[str, bytes]) -> None:
        self.pause_s = 0.0
        self.unavailable: set[str] = set()  # URLs that get 503
        self.requests: Counter[str] = Counter()
        self.headers: list[dict[str, str]] = []  # of each request
        self._images = images
        self._lock = threading.Lock()
        self._http = QuietServer(self._handler())

    @property
    def gateway(self) -> str:
        return self._http.url

    def answer(self, url: str) -> bytes | None:
        with self._lock:
            self.requests[url] += 1
        time.sleep(self.pause_s)
        return self._images.get(url)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                url = f"http://{self.headers['Host']}{self.path}"
                server.headers.append(dict(self.headers))
                body = server.answer(url)
                if url in server.unavailable:
                    body = None
                status = 503 if url in server.unavailable else 404 if body is None else 200
                self.send_response(status)
                self.send_header("Content-Type", "text/plain" if body is None else "image/jpeg")
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, *args: object) -> None:
                pass

        return Handler


@contextmanager
def serve_images(images: Mapping[str, bytes]) -> Iterator[ImageServer]:
    """Serve until the block ends."""
    server = ImageServer(images)
    with serving(server._http):
        yield server
