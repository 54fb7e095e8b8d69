"""Decode the content codings of a response while it arrives, in small pieces, regardless of the compression ratio."""

import zlib
from collections.abc import Iterator

PIECE_BYTES = 256 << 10
MAX_CODINGS = 5  # curl's limit; each coding multiplies the possible size of a byte

_GZIP = frozenset({"gzip", "x-gzip"})
_UNDONE = _GZIP | {"deflate"}
_NOT_UNDONE = frozenset({"br", "zstd", "dcb", "dcz", "compress", "x-compress"})
_GZIP_MAGIC = b"\x1f\x8b"


class UnsupportedCodingError(Exception):
    """A registered coding that is not supported; we send `Accept-Encoding: identity`."""


def codings(header: str) -> list[str]:
    """Return the codings of a Content-Encoding header that must be decoded, the last applied first.

    Values that are not a coding (`utf-8`, `binary`, `image/jpeg`, `aws-chunked` ...) leave the bytes as they are, as in
    browsers (Fetch standard, "handle content codings").

    Raises:
        UnsupportedCodingError: a registered one that is not supported, or too many.
    """
    found = [name for part in reversed(header.split(",")) if (name := part.strip().lower()) in _UNDONE | _NOT_UNDONE]
    for name in found:
        if name in _NOT_UNDONE:
            raise UnsupportedCodingError(name)
    if len(found) > MAX_CODINGS:
        raise UnsupportedCodingError(f"{len(found)} codings")
    return found


class Inflater:
    """Decodes one gzip or deflate coding. `is_whole`: whether the data so far is complete.

    `deflate` means zlib data (RFC 9110 section 8.4.1.2), but some servers send raw deflate data or gzip. gzip data may
    have several members (RFC 1952 section 2.2), with zeros between them; other bytes after the end are ignored.
    """

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._inflater: zlib._Decompress | None = None
        self._head = b""
        self._is_padding = False
        self._members = 0

    @property
    def is_whole(self) -> bool:
        return self._is_padding or (self._inflater is None and self._members > 0)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the decompressed `data`, in pieces of at most `PIECE_BYTES`.

        Raises:
            zlib.error: the data is damaged.
        """
        while data and not self._is_padding:
            if self._inflater is None:
                data = self._head + data
                self._head = b""
                data = data.lstrip(b"\0") if self._members else data
                if len(data) < 2:
                    self._head = data
                    return
                if self._members and not data.startswith(_GZIP_MAGIC):
                    self._is_padding = True
                    return
                self._inflater = zlib.decompressobj(_wbits(self._coding, data))
            yield self._inflater.decompress(data, PIECE_BYTES)
            data = self._inflater.unconsumed_tail
            if self._inflater.eof:
                data = self._inflater.unused_data
                self._inflater = None
                self._members += 1


def _wbits(coding: str, data: bytes) -> int:
    """Return zlib's code for the format of `data`, by its first bytes."""
    if coding in _GZIP or data.startswith(_GZIP_MAGIC):
        return 47  # gzip or zlib
    is_zlib = data[0] & 0x0F == 8 and int.from_bytes(data[:2]) % 31 == 0
    return zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS
