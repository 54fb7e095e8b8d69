"""The lines of a text table, which may be compressed, damaged, or crafted to exhaust memory."""

import bz2
import codecs
import gzip
import re
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

import pyarrow as pa

from pipeline.records import Reason

MAX_LINE_BYTES = 4 << 20
_READ_BYTES = 1 << 16
_MAX_HELD = 2  # CRs at the end of a piece, before a LF perhaps
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# Text compresses to a twentieth, rarely to a hundredth; a higher ratio is a decompression bomb.
_MAX_RATIO = 500
_FREE_BYTES = 64 << 20

_FIRST_END = re.compile(rb"[^\r\n]*+(\r*\n|\r)")  # CR CR LF is what Windows makes of a CR LF

# Each decoder's `read1`: unlike `read` it returns the data before an error.
COMPRESSIONS: dict[str, Callable[[BinaryIO], Callable[[int], bytes]]] = {
    "gz": lambda stream: gzip.GzipFile(fileobj=stream).read1,
    "bz2": lambda stream: bz2.BZ2File(stream).read1,
    "zst": lambda stream: pa.CompressedInputStream(pa.PythonFile(stream, "r"), "zstd").read1,
}


class Lines:
    """The lines of a file that may be damaged; `take_reasons` returns the damage.

    Lines end in LF or CR LF, or in CR alone where the first one does. With `any_end` each of them ends a line
    everywhere: for csv, whose reader joins quoted fields again.
    """

    def __init__(self, stream: BinaryIO, compression: str | None, *, any_end: bool) -> None:
        self._read_some = COMPRESSIONS[compression](stream) if compression else stream.read
        self._tell = stream.tell if compression else None
        self._unpacked = 0
        self._any_end = any_end
        self._end = b"\n"
        self._reasons: list[Reason] = []
        self._decoder: codecs.IncrementalDecoder | None = None  # of UTF-16, which spreadsheets write
        self.is_cut = False

    def __iter__(self) -> Iterator[bytes]:
        """Yield complete lines with their ends; lines truncated by damage, or above MAX_LINE_BYTES, are left out."""
        parts: list[bytes] = []  # of the unfinished line
        size, is_too_long = 0, False
        for chunk in self._chunks():
            if not parts and not is_too_long and not chunk.strip(b"\r\n"):
                continue  # empty lines are not rows
            *lines, rest = self._split(chunk)
            for line in lines:
                if not is_too_long:
                    yield b"".join([*parts, line]) if parts else line
                parts, size, is_too_long = [], 0, False
            size += len(rest)
            if is_too_long or size > MAX_LINE_BYTES:
                self._reasons += [] if is_too_long else [Reason.DAMAGED_RECORD]
                parts, is_too_long = [], True
            elif rest:
                parts.append(rest)
        if parts and not self.is_cut:
            yield b"".join(parts)

    def _chunks(self) -> Iterator[bytes]:
        """Yield the file in pieces that do not separate a CR from its LF; detect the line ends."""
        piece = self._read()
        while len(piece) < len(_BYTE_ORDER_MARK) and (more := self._read()):
            piece += more
        if piece.startswith(_UTF16_MARKS):
            self._decoder = codecs.getincrementaldecoder("utf-16")("replace")
            piece = self._decoder.decode(piece).encode()
        piece = piece.removeprefix(_BYTE_ORDER_MARK) or self._read()
        held, is_known = b"", False
        while piece:
            chunk = held + piece
            held = chunk[max(len(chunk.rstrip(b"\r")), len(chunk) - _MAX_HELD) :]
            chunk = chunk[: len(chunk) - len(held)]
            if not is_known and (found := _FIRST_END.match(chunk)):
                self._end, is_known = (b"\r" if found[1] == b"\r" else b"\n"), True
            yield chunk
            piece = self._read()
        if held:
            self._end = self._end if is_known else b"\r"
            yield held

    def _split(self, chunk: bytes) -> list[bytes]:
        """Return the lines in a chunk, followed by the remainder, which may be empty."""
        if not self._any_end:
            *lines, rest = chunk.split(self._end)
            return [*(line + self._end for line in lines), rest]
        lines = chunk.splitlines(keepends=True)
        return lines if lines and not lines[-1].endswith((b"\r", b"\n")) else [*lines, b""]

    def take_reasons(self) -> list[Reason]:
        """Return the damage found since the last call."""
        reasons, self._reasons = self._reasons, []
        return reasons

    def _read(self) -> bytes:
        """Return the next piece in UTF-8, empty at the end."""
        while piece := self._read_piece():
            if self._decoder is None:
                return piece
            if text := self._decoder.decode(piece):
                return text.encode()
        return b""

    def _read_piece(self) -> bytes:
        if self.is_cut:
            return b""
        try:
            chunk = self._read_some(_READ_BYTES)
        except (EOFError, zlib.error, pa.ArrowInvalid, OSError) as error:
            raise_if_unreadable(error)
            return self._break_off()
        self._unpacked += len(chunk)
        if self._tell and self._unpacked > _FREE_BYTES and self._unpacked > _MAX_RATIO * self._tell():
            return self._break_off()
        return chunk

    def _break_off(self) -> bytes:
        self._reasons.append(Reason.DAMAGED_FILE)
        self.is_cut = True
        return b""


def raise_if_unreadable(error: Exception) -> None:
    """Raise errors of the system (disk, network); errors of decoders about the content have no error number."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error
