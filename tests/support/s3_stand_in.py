"""What S3 does for somebody who reads objects: HEAD and GET with ranges, of requests signed for one region."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

from support.http_server import QuietServer, serving

_SCOPE = re.compile(r"AWS4-HMAC-SHA256 Credential=test/\d{8}/([a-z0-9-]+)/s3/aws4_request")


class S3StandIn:
    """Has objects by their name, BUCKET/KEY. `regions` are those that requests were signed for, "" without a signature;
    only those signed for us-east-1 are answered. `denied` are names that get 403."""

    def __init__(self, objects: Mapping[str, bytes]) -> None:
        self.objects = objects
        self.regions: list[str] = []
        self.denied: set[str] = set()
        self._http = QuietServer(self._handler())

    @property
    def url(self) -> str:
        return self._http.url

    def _handler(s3) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                s3._answer(self, has_body=False)

            def do_GET(self) -> None:
                s3._answer(self, has_body=True)

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def _answer(self, request: BaseHTTPRequestHandler, *, has_body: bool) -> None:
        signed = _SCOPE.match(request.headers.get("Authorization", ""))
        self.regions.append(signed[1] if signed else "")
        name = request.path.partition("?")[0].lstrip("/")
        content = self.objects.get(name)
        status = 403 if self.regions[-1] != "us-east-1" or name in self.denied else 404 if content is None else 200
        body = b"" if content is None or status != 200 else content
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
        if wanted and body:
            first, last = int(wanted[1]), min(int(wanted[2]), len(body) - 1)
            status, total, body = 206, len(body), body[first : last + 1]
        request.send_response(status)
        if status == 206:
            request.send_header("Content-Range", f"bytes {first}-{last}/{total}")
        request.send_header("Content-Length", str(len(body)))
        request.send_header("ETag", '"1"')
        request.send_header("Last-Modified", "Fri, 31 May 2024 01:17:49 GMT")
        request.end_headers()
        if has_body:
            request.wfile.write(body)

    @contextmanager
    def running(self) -> Iterator["S3StandIn"]:
        with serving(self._http):
            yield self
