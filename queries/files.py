"""Open the user's files; every error becomes one line that names the file."""

import lzma
import os
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import BinaryIO, cast
from xml.etree import ElementTree

import fsspec

from queries.errors import InputError

_READ_BYTES = 1 << 20
_UNKNOWN_BYTES = 1 << 40
# Lists and dumps shrink to a fifth, words in order to a fiftieth; beyond, a file is made to be unpacked for ever.
_MAX_RATIO = 500
_FREE_BYTES = 64 << 20


@contextmanager
def reading(path: str, compression: str | None = "infer") -> Iterator[BinaryIO]:
    """Open a local file or fsspec URL, decompressed according to its suffix, or raw with `compression` None.

    Raises:
        InputError: the file does not exist, the part that the block reads is damaged or truncated, or it unpacks to
            64 MiB and more than 500 times its size.
    """
    local = path.removeprefix("file://")
    if os.path.exists(local) and not os.path.isfile(local) and not os.path.isdir(local):
        raise InputError(f"{path}: not a regular file, but a pipe or a device")
    with ExitStack() as opened:
        with store_errors_in_one_line(path, "opened"):
            stream = opened.enter_context(fsspec.open(path, "rb", compression=compression))
        try:
            yield stream if compression is None else cast(BinaryIO, _Bounded(path, stream, _size(path)))
        except EOFError:
            raise InputError(f"{path}: {_reason_of_end(path)}") from None
        except ElementTree.ParseError as error:
            raise InputError(f"{path}: the XML is damaged or truncated ({error}); download it again") from None
        except (OSError, zlib.error, lzma.LZMAError) as error:
            raise InputError(f"{path}: cannot be read ({error})") from None


def _size(path: str) -> int:
    """Return the size of a file as it is stored; a very large one where the store does not tell."""
    with store_errors_in_one_line(path, "opened"):
        filesystem, name = fsspec.core.url_to_fs(path)
        return int(filesystem.size(name) or _UNKNOWN_BYTES)


class _Bounded:
    """A file that may be compressed, for reading; one that is made to unpack for ever is refused on the way."""

    def __init__(self, path: str, stream: BinaryIO, packed_bytes: int) -> None:
        self._path = path
        self._stream = stream
        self._most = _FREE_BYTES + _MAX_RATIO * packed_bytes
        self._unpacked = 0

    def read(self, size: int = -1) -> bytes:
        pieces = []
        while size < 0 or size > 0:
            piece = self._stream.read(_READ_BYTES if size < 0 else min(size, _READ_BYTES))
            if not piece:
                break
            pieces.append(piece)
            size -= len(piece) if size > 0 else 0
            self._unpacked += len(piece)
            if self._unpacked > self._most:
                raise InputError(
                    f"{self._path}: unpacks to over {self._most:,} bytes, {_MAX_RATIO} times its size and more"
                )
        return b"".join(pieces)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


@contextmanager
def store_errors_in_one_line(path: str, what: str) -> Iterator[None]:
    """Turn any error of a store (unknown protocol, missing package, no credentials, no network) into one line."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{path}: no such file") from None
    except Exception as error:
        raise InputError(f"{path}: cannot be {what} ({' '.join(str(error).split()) or type(error).__name__})") from None


def _reason_of_end(path: str) -> str:
    """Distinguish a truncated file from one that is not compressed: some decompressors report both as an early end."""
    with fsspec.open(path, "rb") as raw:
        if path.endswith(".gz") and raw.read(2) != b"\x1f\x8b":
            return "cannot be read (not a gzip file)"
    return "truncated in the middle of compressed data; download it again"
