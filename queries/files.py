"""Open files that users name; what can be wrong with them becomes one line that names the file."""

import lzma
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import BinaryIO
from xml.etree import ElementTree

import fsspec

from queries.errors import InputError


@contextmanager
def reading(path: str, compression: str | None = "infer") -> Iterator[BinaryIO]:
    """Open a local file or fsspec URL, decompressed as its suffix says, or as it is with `compression` None.

    Raises:
        InputError: there is no such file, or what the block reads of it is damaged or ends early.
    """
    with ExitStack() as opened:
        with store_errors_in_one_line(path, "opened"):
            stream = opened.enter_context(fsspec.open(path, "rb", compression=compression))
        try:
            yield stream
        except EOFError:
            raise InputError(f"{path}: {_why_it_ends(path)}") from None
        except ElementTree.ParseError as error:
            raise InputError(f"{path}: the XML is damaged or ends early ({error}); fetch it again") from None
        except (OSError, zlib.error, lzma.LZMAError) as error:
            raise InputError(f"{path}: cannot be read ({error})") from None


@contextmanager
def store_errors_in_one_line(path: str, what: str) -> Iterator[None]:
    """Turn whatever a store raises (no such protocol, no package for it, no credentials, no network) into one line."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{path}: no such file") from None
    except Exception as error:
        raise InputError(f"{path}: cannot be {what} ({' '.join(str(error).split()) or type(error).__name__})") from None


def _why_it_ends(path: str) -> str:
    """Tell a compressed file that is cut from one that is not compressed: some inflaters call both an early end."""
    with fsspec.open(path, "rb") as raw:
        if path.endswith(".gz") and raw.read(2) != b"\x1f\x8b":
            return "cannot be read (not a gzip file)"
    return "ends early, in the middle of compressed data; fetch it again"
