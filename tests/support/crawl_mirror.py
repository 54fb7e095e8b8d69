"""A mirror of Common Crawl on 127.0.0.1 that counts requests, and throttles, resets and truncates on demand."""

import gzip
import json
import re
import socket
import tarfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from support.http_server import QuietServer, serving

from pipeline.web.warc_records import WarcRecord, read_records

CRAWLS = ("CC-MAIN-2024-22", "CC-MAIN-2020-34", "CC-MAIN-2014-35")


def real_files(shared_data: Path) -> dict[str, bytes]:
    """Return path -> content of the real WAT and WARC files of Common Crawl, and of the lists of each crawl."""
    web = shared_data / "web"
    files = {
        _path("CC-MAIN-2024-22", "wat", "CC-MAIN-20240517233122-20240518023122-00000.warc.wat.gz"): web
        / "whirlwind.warc.wat.gz",
        _path("CC-MAIN-2024-22", "warc", "CC-MAIN-20240517233122-20240518023122-00000.warc.gz"): web
        / "whirlwind.warc.gz",
        _path("CC-MAIN-2020-34", "warc", "CC-MAIN-20200803083123-20200803113123-00000.warc.gz"): web
        / "cc_main_2020_34.warc.gz",
    }
    found = {path: file.read_bytes() for path, file in files.items()}
    with tarfile.open(web / "cc_main_2014_35_warc_wat_wet.tar.gz") as archive:
        for member in archive.getmembers():
            if member.name.endswith((".warc", ".wat")):
                kind = "wat" if member.name.endswith("wat") else "warc"
                name = f"{Path(member.name).name}.gz"
                found[_path("CC-MAIN-2014-35", kind, name)] = _in_members(archive.extractfile(member))
    with tarfile.open(web / "wat_damaged_headers.tar.gz") as archive:
        for member in archive.getmembers():
            if member.name.endswith(".wat.gz"):
                found[_path("CC-MAIN-2020-34", "wat", Path(member.name).name)] = archive.extractfile(member).read()  # type: ignore[union-attr]
    return found | lists_of(found)


def _in_members(warc: Any) -> bytes:
    """Return a WARC file with each record in a gzip member, as Common Crawl has them."""
    records = [record for record in read_records(warc) if isinstance(record, WarcRecord)]
    return b"".join(gzip.compress(one.header + one.block + b"\r\n\r\n", mtime=0) for one in records)


def _path(crawl: str, kind: str, name: str) -> str:
    return f"crawl-data/{crawl}/segments/1715971057216.39/{kind}/{name}"


def lists_of(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the list of crawls, and the list of the files of each."""
    lists = {"collinfo.json": json.dumps([{"id": crawl, "name": crawl} for crawl in CRAWLS]).encode()}
    for crawl in CRAWLS:
        for kind in ("wat", "warc"):
            paths = sorted(path for path in files if path.startswith(f"crawl-data/{crawl}/") and f"/{kind}/" in path)
            lists[f"crawl-data/{crawl}/{kind}.paths.gz"] = gzip.compress("".join(f"{p}\n" for p in paths).encode())
    return lists


class CrawlMirror:
    """`faults` are done to the next requests of a path, one each: a status, or "reset" in the middle of the body.

    `bytes_sent` has (start, end) of every body, by path; `most_connections` were open at a time.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        self.faults: dict[str, list[int | str]] = {}
        self.bytes_sent: dict[str, list[tuple[int, int]]] = {}
        self.agents = set[str]()
        self.connections = self.most_connections = 0
        self._lock = threading.Lock()
        self._http = QuietServer(self._handler())

    @property
    def url(self) -> str:
        return self._http.url

    def _handler(mirror) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                with mirror._lock:
                    mirror.connections += 1
                    mirror.most_connections = max(mirror.most_connections, mirror.connections)

            def finish(self) -> None:
                with mirror._lock:
                    mirror.connections -= 1
                super().finish()

            def do_GET(self) -> None:
                mirror._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.lstrip("/")
        with self._lock:
            self.agents.add(request.headers.get("User-Agent", ""))
            faults = self.faults.get(path, [])
            fault = faults.pop(0) if faults else None
        content = self.files.get(path)
        if content is None or isinstance(fault, int):
            request.send_response(fault if isinstance(fault, int) else 404)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        wanted = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        if start >= len(content) > 0:
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(content)}")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        request.send_response(206 if wanted else 200)
        if wanted:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        request.send_header("Content-Length", str(len(content) - start))
        request.send_header("ETag", f'"{hash(content)}"')
        request.end_headers()
        end = (start + len(content)) // 2 if fault == "reset" else len(content)
        request.wfile.write(content[start:end])
        request.wfile.flush()
        with self._lock:
            self.bytes_sent.setdefault(path, []).append((start, end))
        if fault == "reset":
            request.close_connection = True
            request.connection.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def running(self) -> Iterator["CrawlMirror"]:
        with serving(self._http):
            yield self
