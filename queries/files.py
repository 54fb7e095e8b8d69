"""Open the user's files; every error becomes one line that names the file."""

import lzma
import os
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import BinaryIO
from xml.etree import ElementTree

import fsspec

from queries.errors import InputError


@contextmanager
def reading(path: str, compression: str | None = "infer") -> Iterator[BinaryIO]:
    """Open a local file or fsspec URL, decompressed according to its suffix, or raw with `compression` None.

    Raises:
        InputError: the file does not exist, or the part that the block reads is damaged or truncated.
    """
    local = path.removeprefix("file://")
    if os.path.exists(local) and not os.path.isfile(local) and not os.path.isdir(local):
        raise InputError(f"{path}: not a regular file, but a pipe or a device")
    with ExitStack() as opened:
        with store_errors_in_one_line(path, "opened"):
            stream = opened.enter_context(fsspec.open(path, "rb", compression=compression))
        try:
            yield stream
        except EOFError:
            raise InputError(f"{path}: {_reason_of_end(path)}") from None
        except ElementTree.ParseError as error:
            raise InputError(f"{path}: the XML is damaged or truncated ({error}); download it again") from None
        except (OSError, zlib.error, lzma.LZMAError) as error:
            raise InputError(f"{path}: cannot be read ({error})") from None


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
