"""Wikimedia Commons and Openverse on 127.0.0.1, in the JSON that they document: with 429s, errors and malformed pages.

Every query has `hash(query) % 8` images, some of them on several pages. `requests` counts what came, failures included.
"""

import json
import random
import threading
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from support.http_server import QuietServer, serving

TOKEN = "a-token"


def results_of(query: str) -> list[dict[str, str]]:
    """Return what a query finds."""
    number = zlib.crc32(query.encode())
    return [
        {"url": f"http://i.example/{number}/{n}.jpg", "title": f"{query} number {n}", "license": ["by", "cc0"][n % 2]}
        for n in range(number % 8)
    ]


class SearchServer:
    """`faults` is the fraction of requests that fail, in one of several ways; `forced` are done first, one each."""

    def __init__(self, page_size: int = 3, faults: float = 0.0) -> None:
        self.requests = 0
        self.asked: Counter[str] = Counter()  # pages given, by query and page
        self.faults = faults
        self.forced: list[str] = []
        self.agents = set[str]()
        self._page_size = page_size
        self._random = random.Random(0)
        self._lock = threading.Lock()
        self._http = QuietServer(self._handler())

    @property
    def url(self) -> str:
        return self._http.url

    def _handler(server) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server._answer(self)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                server._count(self)
                server._send(self, 200, json.dumps({"access_token": TOKEN, "expires_in": 36_000}))

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def _count(self, request: BaseHTTPRequestHandler) -> str:
        with self._lock:
            self.requests += 1
            self.agents.add(request.headers["User-Agent"])
            if self.forced:
                return self.forced.pop(0)
            kinds = ["429", "500", "malformed", "no json", "maxlag", "hang up"]
            return self._random.choice(kinds) if self._random.random() < self.faults else ""

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        fault = self._count(request)
        given = {name: values[0] for name, values in parse_qs(urlsplit(request.path).query).items()}
        is_commons = request.path.startswith("/w/api.php")
        if fault == "hang up":
            request.close_connection = True
        elif fault.isdigit() or fault.startswith("429 "):
            status, _, wait = fault.partition(" ")
            self._send(request, int(status), "", {"Retry-After": wait or "1"} if status == "429" else {})
        elif fault == "no json":
            self._send(request, 200, "<html>")
        elif fault == "malformed":
            self._send(request, 200, json.dumps({"query": {"pages": [{"index": "x"}]}, "results": [{}]}))
        elif fault == "maxlag" and is_commons:
            self._send(request, 200, json.dumps({"error": {"code": "maxlag", "lag": 7}}), {"Retry-After": "1"})
        elif not is_commons and request.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(request, 401, "{}")
        else:
            self._send(request, 200, json.dumps(self._commons(given) if is_commons else self._openverse(given)))

    def _page(self, query: str, start: int) -> list[dict[str, str]]:
        with self._lock:
            self.asked[f"{query} {start}"] += 1
        return results_of(query)[start : start + self._page_size]

    def _commons(self, given: dict[str, str]) -> dict[str, Any]:
        query, start = given["gsrsearch"].split('"')[1], int(given.get("gsroffset", 0))
        pages = [
            {
                "index": start + n + 1,
                "title": f"File:{one['title']}.jpg",
                "imageinfo": [
                    {
                        "url": one["url"],
                        "descriptionurl": f"{one['url']}.html",
                        "extmetadata": {
                            "ImageDescription": {"value": f"<p>A photo &amp; <b>{one['title']}</b></p>"},
                            "LicenseShortName": {"value": one["license"]},
                            "Artist": {"value": "<a href='x'>Someone</a>"},
                        },
                    }
                ],
            }
            for n, one in enumerate(self._page(query, start))
        ]
        answer: dict[str, Any] = {"batchcomplete": True}
        if pages:
            answer["query"] = {"pages": pages[::-1]}
        if start + self._page_size < len(results_of(query)):
            answer["continue"] = {"gsroffset": start + self._page_size, "continue": "gsroffset||"}
        return answer

    def _openverse(self, given: dict[str, str]) -> dict[str, Any]:
        query, page = given["q"].strip('"'), int(given["page"])
        found = results_of(query)
        return {
            "result_count": len(found),
            "page_count": -(-len(found) // self._page_size),
            "page_size": self._page_size,
            "page": page,
            "results": [
                one | {"creator": "Someone", "license_version": "4.0", "foreign_landing_url": f"{one['url']}.html"}
                for one in self._page(query, (page - 1) * self._page_size)
            ],
        }

    def _send(
        self, request: BaseHTTPRequestHandler, status: int, body: str, headers: dict[str, str] | None = None
    ) -> None:
        request.send_response(status)
        for name, value in (headers or {}).items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(body.encode())))
        request.end_headers()
        request.wfile.write(body.encode())

    @contextmanager
    def running(self) -> Iterator["SearchServer"]:
        with serving(self._http):
            yield self
