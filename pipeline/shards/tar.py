"""Byte-reproducible tar files: the same members in the same order give the same bytes.

Plain ustar with every changeable header field fixed, as WebDataset readers expect; the standard library writes it.
"""

import io
import tarfile
from typing import BinaryIO, Self


class TarWriter:
    """Write members to `stream` one after another, without timestamps, owners or other traces of the machine."""

    def __init__(self, stream: BinaryIO) -> None:
        self._tar = tarfile.TarFile(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT)

    def add(self, name: str, content: bytes) -> int:
        """Append one member; return the offset of its content. `name` comes from a uid, not from untrusted text."""
        info = tarfile.TarInfo(name)
        info.size = len(content)
        info.mode = 0o444
        self._tar.addfile(info, io.BytesIO(content))
        blocks = -(-len(content) // tarfile.BLOCKSIZE)
        return self._tar.offset - blocks * tarfile.BLOCKSIZE

    def close(self) -> None:
        """Write the end-of-archive blocks; the stream stays open."""
        self._tar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
