"""Read the samples of untrusted WebDataset tars: members of one key, `a/0.jpg` with `a/0.cls`.

Only wanted members are read, and only if the size in their header is below a limit: a sparse file of 2 kB can announce
gigabytes.
"""

import posixpath
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Literal

MAX_HEADER_BYTES = 1 << 20
"""Limit of a long name or a pax header, which tarfile reads whole."""
MAX_SAMPLE_BYTES = 1 << 26
"""Limit of the bytes in memory. If names have dots, a tar can be one sample: `frame.0001.jpg`, `frame.0002.jpg`."""

_HEADERS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


@dataclass(frozen=True, slots=True)
class Member:
    """A wanted file of a sample; its name is KEY.suffix. `content` is None where it is larger than its limit."""

    suffix: str
    content: bytes | None


@dataclass(frozen=True, slots=True)
class Sample:
    """Members with one key that follow each other, or a part of them where they are large."""

    key: str
    members: tuple[Member, ...]
    is_part: bool = False


@dataclass(frozen=True, slots=True)
class Stray:
    """A member that belongs to no sample: a hidden file (macOS writes `._0.jpg` beside `0.jpg`), a link, a device."""

    name: str


class _TarInfo(tarfile.TarInfo):
    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.size < 0 or (self.type in _HEADERS and self.size > MAX_HEADER_BYTES):
            raise tarfile.ReadError(f"a header announces {self.size:,} bytes")
        return super()._proc_member(tar)  # type: ignore[misc]


def read_samples(
    stream: IO[bytes], mode: Literal["r:", "r:gz"], limit_bytes: Callable[[str], int]
) -> Iterator[Sample | Stray]:
    """Yield a tar's samples, in order. `limit_bytes(suffix)`: the maximum to read of a lower-case suffix, 0 to skip it.

    Raises:
        tarfile.TarError: the tar is damaged or ends early.
    """
    try:
        with tarfile.open(fileobj=stream, mode=mode, tarinfo=_TarInfo, encoding="utf-8") as tar:
            yield from _samples(tar, limit_bytes)
            _check_end(tar)
    except (EOFError, OSError, ValueError, OverflowError, zlib.error) as error:
        raise tarfile.ReadError(str(error)) from error


def _samples(tar: tarfile.TarFile, limit_bytes: Callable[[str], int]) -> Iterator[Sample | Stray]:
    key: str | None = None
    members, held_bytes, is_part = list[Member](), 0, False
    for member in _members(tar):
        folder, base = posixpath.split(member.name)
        if base.startswith(".") or not member.isfile():
            yield Stray(member.name)
            continue
        stem, _, suffix = base.partition(".")
        if posixpath.join(folder, stem) != key:
            if key is not None:
                yield Sample(key, tuple(members), is_part)
            key, members, held_bytes, is_part = posixpath.join(folder, stem), [], 0, False
        elif held_bytes > MAX_SAMPLE_BYTES:
            finished, members = _split(members, suffix)
            yield Sample(key, tuple(finished), is_part=True)
            held_bytes, is_part = sum(len(kept.content or b"") for kept in members), True
        if limit := limit_bytes(suffix.lower()):
            content = _content(tar, member) if member.size <= limit else None
            members.append(Member(suffix, content))
            held_bytes += len(content or b"")
    if key is not None:
        yield Sample(key, tuple(members), is_part)


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield all members but folders."""
    at = -1
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # or it would remember every header of the file
        if tar.offset <= at:  # a pax header can announce a negative size
            raise tarfile.ReadError(f"the header at byte {member.offset} has a negative size")
        at = tar.offset
        if not member.isdir():
            yield member


def _split(members: list[Member], suffix: str) -> tuple[list[Member], list[Member]]:
    """Return the members to yield now, and those to keep because the next one, of that suffix, may be their label."""
    own = posixpath.splitext(suffix)[0]
    kept = [member for member in members if posixpath.splitext(member.suffix)[0] == own]
    finished = [member for member in members if posixpath.splitext(member.suffix)[0] != own]
    return (finished, kept) if finished else (kept, [])


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None
    return file.read()


def _check_end(tar: tarfile.TarFile) -> None:
    """Raise if the end is followed by more than zeros: tarfile silently treats any bad header as the end."""
    file = tar.fileobj
    assert file is not None
    file.seek(tar.offset)
    while block := file.read(1 << 20):
        if block.strip(b"\0"):
            raise tarfile.ReadError(f"unreadable data after byte {tar.offset}")
