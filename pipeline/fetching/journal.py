"""The journal of a part: the outcomes of its URLs so far, on local disk, so that a killed process loses little.

An append-only file of checksummed records: outcomes with their images, robots.txt files, and the images whose decoding
has begun. Each record is written with one system call, so that `kill -9` loses none that is complete; an incomplete end
is truncated when the file is opened again. Records have the URL, not its position in a plan, so a journal is valid for
any part with these URLs. Images stay where they are in the file until the tar is written.
"""

import fcntl
import json
import os
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

import orjson
from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python

from pipeline.consent.policy import Signal
from pipeline.fetching.outcome import Checked, Outcome
from pipeline.fetching.robots_file import RobotRules
from pipeline.records import Reason

_HEAD = struct.Struct("<cII")  # kind, bytes of the payload, CRC-32 of kind and payload
_META = struct.Struct("<I")
_MAX_PAYLOAD_BYTES = 1 << 30
_KEY, _OUTCOME, _ROBOTS, _DECODING, _OPENED = b"K", b"O", b"R", b"D", b"S"
_FORMAT = 1
_RULES = TypeAdapter(RobotRules)
_CHECKED = TypeAdapter(Checked)
_FACTS = [field.name for field in fields(Outcome) if field.name != "image"]


class Journal:
    """An open journal; `outcomes`, `robots` and `suspects` have its content when it was opened. Thread-safe."""

    def __init__(self, file: BinaryIO, key: str) -> None:
        """Read a journal, or clear it if its `key` differs: the settings that its outcomes depend on."""
        self.outcomes: dict[str, Outcome] = {}
        self.checked: dict[str, Checked] = {}
        self.robots: dict[str, tuple[RobotRules, float]] = {}  # by origin, with the time of the fetch (Unix)
        self.suspects: Counter[str] = Counter()  # URL -> how often a process ended while decoding its image
        self.key = key
        self._file = file
        self._lock = threading.Lock()
        self._size_bytes = self._replay(key)
        os.ftruncate(file.fileno(), self._size_bytes)
        if not self._size_bytes:
            self._append(_KEY, _encode(_header(key)))
        self._append(_OPENED)

    @classmethod
    def open(cls, path: Path, key: str, scratch_dir: Path) -> "Journal":
        """Open the journal at `path`; an unnamed one in `scratch_dir` if another process holds it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # another worker has the same unit, or the file system has no locks
            file.close()
            return cls.unnamed(scratch_dir)
        return cls._of(file, key)

    @classmethod
    def unnamed(cls, scratch_dir: Path) -> "Journal":
        """Open a journal that is deleted with the process."""
        return cls._of(TemporaryFile(dir=scratch_dir, buffering=0), "")

    @classmethod
    def _of(cls, file: BinaryIO, key: str) -> "Journal":
        try:
            return cls(file, key)
        except BaseException:  # the disk may be full
            file.close()
            raise

    @property
    def size_bytes(self) -> int:
        """Return where the last complete record ends."""
        return self._size_bytes

    def close(self) -> None:
        """Close the file; an unnamed one is deleted."""
        self._file.close()

    def add_outcome(
        self, url: str, outcome: Outcome, image: bytes | None = None, checked: Checked | None = None
    ) -> Outcome:
        """Record the outcome of a URL; return it with the location of its image."""
        meta = encode_outcome(url, outcome, checked)
        start = self._append(_OUTCOME, _META.pack(len(meta)), meta, image or b"")
        if image is None:
            return outcome
        return replace(outcome, image=(start + _META.size + len(meta), len(image)))

    def add_robots(self, origin: str, rules: RobotRules) -> None:
        """Record the rules of an authority, fetched just now."""
        facts = {"origin": origin, "rules": _RULES.dump_python(rules, mode="json"), "at_s": time.time()}
        self._append(_ROBOTS, _encode(facts))

    def add_decoding(self, url: str) -> None:
        """Record that the decoding of an image starts."""
        self._append(_DECODING, _encode({"url": url}))

    def read(self, span: tuple[int, int]) -> bytes:
        """Return the bytes, an image for instance, at (offset, length)."""
        offset, length = span
        return os.pread(self._file.fileno(), length, offset)

    def _append(self, kind: bytes, *parts: bytes) -> int:
        """Write a record; return where its payload begins."""
        checksum = zlib.crc32(kind)
        for part in parts:
            checksum = zlib.crc32(part, checksum)
        record = b"".join([_HEAD.pack(kind, sum(map(len, parts)), checksum), *parts])
        with self._lock:
            start, left = self._size_bytes, memoryview(record)
            while left:
                written = os.pwrite(self._file.fileno(), left, start + len(record) - len(left))
                left = left[written:]
            self._size_bytes += len(record)  # only now: a partial record is overwritten
        return start + _HEAD.size

    def _replay(self, key: str) -> int:
        """Read all valid records; return the end of the last one, 0 for a file that is not a journal of `key`."""
        end = 0
        decoding: set[str] = set()
        for kind, payload, start in _records(self._file):
            if (end == 0) != (kind == _KEY):
                return 0
            if kind == _KEY and _decode(payload) != _header(key):
                return 0
            if kind == _OUTCOME:
                url = self._replay_outcome(payload, start)
                decoding.discard(url)
            elif kind == _ROBOTS:
                self._replay_robots(_decode(payload))
            elif kind == _DECODING:
                decoding.add(_decode(payload)["url"])
            elif kind == _OPENED:
                self.suspects.update(decoding)
                decoding.clear()
            end = start + len(payload)
        self.suspects.update(decoding)
        return end

    def _replay_outcome(self, payload: bytes, start: int) -> str:
        (size,) = _META.unpack_from(payload)
        url, outcome, checked = decode_outcome(payload[_META.size : _META.size + size])
        if checked is not None:
            self.checked[url] = checked
        offset = _META.size + size
        if len(payload) > offset:
            outcome = replace(outcome, image=(start + offset, len(payload) - offset))
        self.outcomes[url] = outcome
        return url

    def _replay_robots(self, facts: dict[str, Any]) -> None:
        self.robots[facts["origin"]] = _RULES.validate_json(json.dumps(facts["rules"])), facts["at_s"]


def _header(key: str) -> dict[str, Any]:
    """Return what a journal begins with: one of other settings, or of a version that knows other facts, is cleared."""
    return {"format": _FORMAT, "facts": _FACTS, "key": key}


def encode_outcome(url: str, outcome: Outcome, checked: Checked | None) -> bytes:
    """Return what is known of a URL, without its image, as JSON."""
    facts: dict[str, Any] = {"url": url, "checked": checked}
    for name in _FACTS:
        facts[name] = getattr(outcome, name)
    if outcome.pdq is not None:
        facts["pdq"] = outcome.pdq.hex()
    return _encode(facts)


def decode_outcome(encoded: bytes) -> tuple[str, Outcome, Checked | None]:
    """Read what `encode_outcome` made."""
    facts = _decode(encoded)
    url: str = facts.pop("url")
    checked = facts.pop("checked")
    facts["refused_by"] = None if facts["refused_by"] is None else Signal(facts["refused_by"])
    facts["reason"] = None if facts["reason"] is None else Reason(facts["reason"])
    facts["pdq"] = None if facts["pdq"] is None else bytes.fromhex(facts["pdq"])
    return url, Outcome(**facts), None if checked is None else _CHECKED.validate_python(checked)


def _records(file: BinaryIO) -> Iterator[tuple[bytes, bytes, int]]:
    """Yield (kind, payload, where the payload begins) of each record up to the first invalid one."""
    position = 0
    file.seek(0)
    while len(head := _read(file, _HEAD.size)) == _HEAD.size:
        kind, size, checksum = _HEAD.unpack(head)
        payload = _read(file, size) if size <= _MAX_PAYLOAD_BYTES else b""
        if len(payload) < size or zlib.crc32(payload, zlib.crc32(kind)) != checksum:
            return
        yield kind, payload, position + _HEAD.size
        position += _HEAD.size + size


def _read(file: BinaryIO, size: int) -> bytes:
    """Read `size` bytes, fewer at the end: an unbuffered file may return less at a time."""
    parts = []
    while size and (part := file.read(min(size, 1 << 24))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _encode(value: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # a header that is not UTF-8 is in the text
        return json.dumps(value, separators=(",", ":"), default=to_jsonable_python).encode()


def _decode(payload: bytes) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(payload)
    return value
