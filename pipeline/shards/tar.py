"""Byte-reproducible tar files: the same members in the same order give the same bytes.

Plain ustar with every changeable header field fixed, as WebDataset readers expect. The standard library makes one
header; those of members differ from it by name, size and checksum only, and are put together here, in a third of its
time.
"""

import tarfile
from typing import BinaryIO, Self

_NAME_BYTES, _MOST_BYTES = 100, 8**11  # what fits in the fields; the standard library knows what to do with the rest
_SIZE, _CHECKSUM = slice(124, 136), slice(148, 155)


class TarWriter:
    """Write members to `stream` one after another, without timestamps, owners or other traces of the machine."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._offset = stream.tell()

    def add(self, name: str, content: bytes) -> int:
        """Append one member; return the offset of its content. `name` comes from a uid, not from untrusted text."""
        header = _header(name, len(content))
        padding = bytes(-len(content) % tarfile.BLOCKSIZE)
        self._stream.write(b"".join((header, content, padding)))
        start = self._offset + len(header)
        self._offset = start + len(content) + len(padding)
        return start

    def close(self) -> None:
        """Write the end-of-archive blocks; the stream stays open."""
        end = self._offset + 2 * tarfile.BLOCKSIZE
        self._stream.write(bytes(end - self._offset + -end % tarfile.RECORDSIZE))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _header(name: str, size: int) -> bytes:
    encoded = name.encode("utf-8", "surrogateescape")
    if len(encoded) > _NAME_BYTES or size >= _MOST_BYTES:
        return _library_header(name, size)
    digits = b"%011o\0" % size
    checksum = b"%06o\0" % (_SUM + sum(encoded) + sum(digits))
    parts = (encoded.ljust(_NAME_BYTES, b"\0"), _BETWEEN, digits, _BEFORE_CHECKSUM, checksum, _AFTER_CHECKSUM)
    return b"".join(parts)


def _library_header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o444
    return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "surrogateescape")


_EMPTY = _library_header("", 0)
_BETWEEN, _BEFORE_CHECKSUM = _EMPTY[_NAME_BYTES : _SIZE.start], _EMPTY[_SIZE.stop : _CHECKSUM.start]
_AFTER_CHECKSUM = _EMPTY[_CHECKSUM.stop :]
_SUM = sum(_BETWEEN) + sum(_BEFORE_CHECKSUM) + 8 * ord(" ") + sum(_AFTER_CHECKSUM[1:])  # its own field counts as spaces
