"""Responses recorded in WARC files, found by URL.

The index is one SQLite file, built in one pass over the archives: the blake2b-128 of each normalised URL, and the
offset of its record. Of several captures of a URL the first with status 200 counts, else the first. Files that are not
compressed record by record cannot be read from the middle; they are decompressed next to the index first. Damaged parts
are left out, and logged.
"""

import fcntl
import gzip
import hashlib
import logging
import shutil
import sqlite3
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import fsspec
from multidict import CIMultiDict

from pipeline.engine.units import digest
from pipeline.errors import UserError
from pipeline.fetching.local_faults import local_fault
from pipeline.fetching.outcome import FetchFailure
from pipeline.private_folder import private_folder
from pipeline.records import Reason
from pipeline.web.http_payload import decode_body, parse_response
from pipeline.web.urls import normalize_url
from pipeline.web.warc_records import MAX_BLOCK_BYTES, WarcRecord, read_records

logger = logging.getLogger(__name__)

# Statuses that describe a URL; others (429, 5xx) describe a moment of the crawl, and are not in the index.
_TELLING = frozenset({200, 203, 301, 302, 303, 307, 308, 401, 403, 404, 410, 451})
_ROWS_PER_COMMIT = 10_000

INDEX_FORMAT = 4
"""Raise it when an index of an older version can no longer be read, or lacks responses."""

_SCHEMA = """
create table files (id integer primary key, path text not null, is_unpacked integer not null);
create table responses (url blob primary key, status integer, file integer, offset integer) without rowid;
"""
_KEEP_BEST = """
insert into responses values (?, ?, ?, ?) on conflict (url) do update
set status = excluded.status, file = excluded.file, offset = excluded.offset
where excluded.status = 200 and responses.status != 200
"""


WantsBody = Callable[[int, CIMultiDict[str]], bool]


@dataclass(frozen=True, slots=True)
class RecordedResponse:
    """A response from an archive; its body is decoded, or None if it was not wanted."""

    status: int
    headers: CIMultiDict[str]
    body: bytes | None


def build_archive_index(paths: Sequence[str], destination: Path) -> None:
    """Index the responses in WARC files (local paths or fsspec URLs) in a new folder, which may be moved afterwards.

    Raises:
        UserError: a file cannot be read, or has no records.
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
                _insert(database, _responses(number, str(unpacked) if is_unpacked else path, path))
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


def _responses(file: int, path: str, name: str) -> Iterator[tuple[bytes, int, int, int]]:
    records = left_out = 0
    with fsspec.open(path, "rb") as stream:
        for record in read_records(stream):
            if isinstance(record, Reason) or record.offset is None:
                left_out += 1
                continue
            records += 1
            url = _response_url(record)
            status = _status(record) if url is not None else None
            if url is not None and status in _TELLING:
                yield _key(url), status, file, record.offset
    if left_out and not records:
        raise ValueError("not a WARC file: no records found")
    if left_out:
        logger.warning("%s: %d records or more are left out: damaged, or inside a larger gzip member", name, left_out)


def _response_url(record: WarcRecord) -> str | None:
    if (record.field("WARC-Type") or "").lower() != "response":
        return None
    return normalize_url(record.field("WARC-Target-URI") or "")


def _status(record: WarcRecord) -> int | None:
    try:
        return parse_response(record.block).status
    except OSError:  # it has no valid head
        return None


def _is_enterable(path: str) -> bool:
    """Return whether records can be read from the middle of a file: plain, or compressed record by record."""
    with fsspec.open(path, "rb") as stream:
        first = (record for record in read_records(stream) if isinstance(record, WarcRecord))
        return all(record.offset is not None for record in islice(first, 2))


def _unpack(path: str, destination: Path) -> None:
    """Unpack a file that is one gzip member, as far as it goes."""
    with fsspec.open(path, "rb") as stream, gzip.open(stream) as plain, destination.open("wb") as copy:
        try:
            shutil.copyfileobj(plain, copy)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            logger.warning("%s: the rest is left out: %s", path, error)


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

    def get(self, url: str, max_bytes: int, wants_body: WantsBody) -> RecordedResponse | None:
        """Return the recorded response to a normalised URL, or None.

        `wants_body` sees the status and headers first and may raise, as with a response from the network.

        Raises:
            FetchFailure: TRUNCATED or TOO_LARGE, or PROTOCOL_ERROR for a record that cannot be read (again).
        """
        with self._lock:
            row = self._database.execute("select file, offset from responses where url = ?", (_key(url),)).fetchone()
        if row is None:
            return None
        file, offset = row
        try:
            return self._read(self._paths[file], offset, url, max_bytes, wants_body)
        except OSError as error:
            if (fault := local_fault(error)) is not None:
                raise fault from error
            raise FetchFailure(Reason.PROTOCOL_ERROR, f"archive record: {type(error).__name__}") from error

    def _read(self, path: str, offset: int, url: str, max_bytes: int, wants_body: WantsBody) -> RecordedResponse:
        with fsspec.open(path, "rb") as stream:
            stream.seek(offset)
            record = next(read_records(stream, offset), None)
        if not isinstance(record, WarcRecord) or _response_url(record) != url:
            raise FetchFailure(Reason.PROTOCOL_ERROR, "archive record: changed or damaged since it was indexed")
        response = parse_response(record.block)
        status, headers = response.status, response.headers
        if not wants_body(status, headers):
            return RecordedResponse(status, headers, None)
        if not record.is_whole:
            raise FetchFailure(Reason.TOO_LARGE, f"more than {MAX_BLOCK_BYTES} bytes", http_status=status)
        if record.field("WARC-Truncated"):
            raise FetchFailure(Reason.TRUNCATED, "truncated by the crawler that recorded it", http_status=status)
        body = decode_body(response, max_bytes)
        if body is None:
            raise FetchFailure(Reason.PROTOCOL_ERROR, "unknown content coding", http_status=status)
        if max(len(body), len(response.body)) > max_bytes:
            raise FetchFailure(Reason.TOO_LARGE, f"more than {max_bytes} bytes", http_status=status)
        if not any(response.codings) and len(body) < _announced_bytes(headers):
            raise FetchFailure(Reason.TRUNCATED, "shorter than announced", http_status=status)
        return RecordedResponse(status, headers, body)


def _announced_bytes(headers: CIMultiDict[str]) -> int:
    """Return the `Content-Length`, 0 if it is missing or invalid."""
    announced = headers.get("Content-Length", "").strip()
    return int(announced) if announced.isdecimal() and len(announced) < 19 else 0


def index_folder(archives: Sequence[str], version: str) -> Path:
    """Return the folder with the index of these archives, created by the first process of this machine that needs it.

    It is in the temporary folder, so that the processes of a machine, and later runs, share it until the system cleans
    up. Archives that are not compressed record by record are decompressed next to it.
    """
    key = digest(INDEX_FORMAT, archives, version)  # the index contains the paths of the files, so paths matter too
    try:
        shared = private_folder("wit-archives")
    except PermissionError as error:
        raise UserError(f"{error}; set TMPDIR to a folder of your own") from None
    folder = shared / key
    with (shared / f"{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the system releases it, even if its holder is killed
        if not folder.exists():
            with tempfile.TemporaryDirectory(prefix="making-", dir=shared) as scratch:
                made = Path(scratch) / "index"
                build_archive_index(archives, made)
                made.rename(folder)
    return folder
