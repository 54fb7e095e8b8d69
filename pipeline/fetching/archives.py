"""Answers recorded in WARC files, found by URL.

The index is one SQLite file, built in one pass over the archives: the blake2b-128 of each normalised URL, and where its
record begins. Of several captures of a URL the first with status 200 counts, else the first. Files that are not
compressed record by record cannot be entered in the middle; they are unpacked beside the index first.
"""

import gzip
import hashlib
import logging
import shutil
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import fsspec
from fastwarc.warc import ArchiveIterator, WarcRecordType
from multidict import CIMultiDict

from pipeline.errors import UserError
from pipeline.fetching.outcome import FetchFailure
from pipeline.records import Reason
from pipeline.sources.http_payload import HttpResponse, decode_body
from pipeline.urls import normalize_url

logger = logging.getLogger(__name__)

# Statuses that tell what became of a URL; others (429, 5xx) tell of the day of the crawl, and are not in the index.
_TELLING = frozenset({200, 203, 301, 302, 303, 307, 308, 401, 403, 404, 410, 451})
_ROWS_PER_COMMIT = 10_000
_GZIP_MAGIC = b"\x1f\x8b"

INDEX_FORMAT = 2
"""Raised when an index that an older version made can no longer be read."""

_SCHEMA = """
create table files (id integer primary key, path text not null, is_unpacked integer not null);
create table responses (url blob primary key, status integer, file integer, offset integer) without rowid;
"""
_KEEP_BEST = """
insert into responses values (?, ?, ?, ?) on conflict (url) do update
set status = excluded.status, file = excluded.file, offset = excluded.offset
where excluded.status = 200 and responses.status != 200
"""


@dataclass(frozen=True, slots=True)
class RecordedAnswer:
    """A response from an archive, codings undone."""

    status: int
    headers: CIMultiDict[str]
    body: bytes


def build_archive_index(paths: Sequence[str], destination: Path) -> None:
    """Index the responses in WARC files (local paths or fsspec URLs) in a new folder, which may be moved afterwards.

    Raises:
        UserError: a file cannot be read, or is no WARC file.
    """
    destination.mkdir(parents=True)
    with sqlite3.connect(destination / "index.sqlite", isolation_level=None) as database:
        database.executescript(_SCHEMA)
        for number, path in enumerate(paths):
            try:
                unpacked = destination / f"{number}.warc"
                is_unpacked = not _is_enterable(path)
                if is_unpacked:
                    _unpack(path, unpacked)
                _insert(database, _responses(number, str(unpacked) if is_unpacked else path))
                entry = (number, unpacked.name if is_unpacked else path, is_unpacked)
                database.execute("insert into files values (?, ?, ?)", entry)
            except (OSError, EOFError, ValueError) as error:
                raise UserError(f"fetch.archives: {path}: {error or type(error).__name__}") from error
    database.close()


def _insert(database: sqlite3.Connection, rows: Iterable[tuple[bytes, int, int, int]]) -> None:
    database.execute("begin")
    for count, row in enumerate(rows, 1):
        database.execute(_KEEP_BEST, row)
        if count % _ROWS_PER_COMMIT == 0:
            database.execute("commit")
            database.execute("begin")
    database.execute("commit")


def _responses(file: int, path: str) -> Iterator[tuple[bytes, int, int, int]]:
    with fsspec.open(path, "rb") as stream:
        for record in ArchiveIterator(stream, record_types=WarcRecordType.response, parse_http=True):
            url = normalize_url((record.headers.get("WARC-Target-URI") or "").strip("<>"))
            status = record.http_headers.status_code if record.http_headers is not None else None
            if url is not None and status in _TELLING:
                yield _key(url), status, file, record.stream_pos


def _is_enterable(path: str) -> bool:
    """Return whether records can be read from the middle of a file: plain, or compressed record by record."""
    with fsspec.open(path, "rb") as stream:
        if stream.read(2) != _GZIP_MAGIC:
            return True
        stream.seek(0)
        positions = [record.stream_pos for record in islice(ArchiveIterator(stream, parse_http=False), 2)]
        if len(positions) < 2:
            return True
        stream.seek(positions[1])
        return positions[1] > 0 and stream.read(2) == _GZIP_MAGIC


def _unpack(path: str, destination: Path) -> None:
    with fsspec.open(path, "rb") as stream, gzip.open(stream) as plain, destination.open("wb") as copy:
        shutil.copyfileobj(plain, copy)


def _key(url: str) -> bytes:
    return hashlib.blake2b(url.encode(), digest_size=16).digest()


class ArchiveIndex:
    """Look-ups in an index that `build_archive_index` made; may be used from several threads."""

    def __init__(self, folder: Path) -> None:
        uri = f"file:{folder / 'index.sqlite'}?mode=ro&immutable=1"
        self._database = sqlite3.connect(uri, uri=True, check_same_thread=False)
        rows = self._database.execute("select id, path, is_unpacked from files")
        self._paths = {number: str(folder / path) if is_unpacked else path for number, path, is_unpacked in rows}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the index."""
        self._database.close()

    def get(self, url: str, max_bytes: int) -> RecordedAnswer | None:
        """Return the recorded answer to a normalised URL, or None where there is none.

        Raises:
            FetchFailure: TRUNCATED or TOO_LARGE, or PROTOCOL_ERROR for a record that cannot be read (again).
        """
        with self._lock:
            row = self._database.execute("select file, offset from responses where url = ?", (_key(url),)).fetchone()
        if row is None:
            return None
        file, offset = row
        try:
            return self._read(self._paths[file], offset, max_bytes)
        except (OSError, EOFError, StopIteration, ValueError) as error:
            raise FetchFailure(Reason.PROTOCOL_ERROR, f"archive record: {type(error).__name__}") from error

    def _read(self, path: str, offset: int, max_bytes: int) -> RecordedAnswer:
        with fsspec.open(path, "rb") as stream:
            stream.seek(offset)
            record = next(iter(ArchiveIterator(stream, record_types=WarcRecordType.response, parse_http=True)))
            headers = CIMultiDict(record.http_headers.astuples())
            status = record.http_headers.status_code or 0
            raw = record.reader.read(max_bytes + 1)
        if record.headers.get("WARC-Truncated"):
            raise FetchFailure(Reason.TRUNCATED, "cut by the crawler that recorded it", http_status=status)
        codings = [
            word.strip().lower()
            for name in ("Transfer-Encoding", "Content-Encoding")
            for word in reversed(headers.get(name, "").split(","))
        ]
        body = decode_body(HttpResponse(status, "", None, tuple(codings), raw), max_bytes)
        if body is None:
            raise FetchFailure(Reason.PROTOCOL_ERROR, "unknown content coding", http_status=status)
        if max(len(body), len(raw)) > max_bytes:
            raise FetchFailure(Reason.TOO_LARGE, f"more than {max_bytes} bytes", http_status=status)
        return RecordedAnswer(status, headers, body)
