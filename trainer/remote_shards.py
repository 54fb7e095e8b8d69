"""Shards behind an fsspec URL: list them, get the version of one, and copy it."""

from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import fsspec

from trainer.errors import TrainerConfigError, TrainerError, one_line

_TAGS = ("ETag", "etag", "mtime", "updated", "LastModified", "Last-Modified", "created")
# A large shard may take hours, but not a minute without a byte; aiohttp's own limit is five minutes in all. The clients
# of object stores have such limits by themselves.
fsspec.config.conf.setdefault(
    "http", {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)}}
)


class Version(NamedTuple):
    """Distinguishes a file from an earlier or later one at the same URL, from the store's metadata."""

    size: int | None  # bytes
    changed: str | None  # the time of its last change, or the store's ETag


class Listed(NamedTuple):
    """A file as a store lists it."""

    path: str
    size: int | None  # bytes


def expand(pattern: str) -> list[Listed]:
    """Return the files that match a glob (a path or any fsspec URL), sorted; an empty list if none does.

    Raises:
        TrainerConfigError: no such protocol, or its package is not installed.
        TrainerError: the store does not respond, or refuses access.
    """
    filesystem, path = filesystem_of(pattern)
    try:
        if any(c in pattern for c in "*?["):
            found = sorted(filesystem.glob(path, detail=True).items())
        else:
            found = [(path, filesystem.info(path))]
    except FileNotFoundError:
        return []
    except Exception as error:  # each file system raises its client's errors
        raise TrainerError(f"cannot list the shards {pattern}: {one_line(error)}") from error
    is_url = "://" in pattern
    return [
        Listed(str(filesystem.unstrip_protocol(path)) if is_url else str(path), info.get("size"))
        for path, info in found
    ]


def version_of(url: str) -> Version:
    """Return the version of a file in its store.

    Raises:
        TrainerError: the file does not exist, or the store does not respond.
    """
    filesystem, path = filesystem_of(url)
    try:
        info = filesystem.info(path)
    except Exception as error:  # as above
        raise TrainerError(f"cannot read shard {url}: {one_line(error)}") from error
    return Version(info.get("size"), next((str(info[tag]) for tag in _TAGS if info.get(tag)), None))


def fetch(url: str, copy: Path, size: int | None) -> None:
    """Copy a file to `copy` and check that it has `size` bytes.

    Raises:
        TrainerError: the file cannot be read in full, or the copy cannot be written.
    """
    filesystem, path = filesystem_of(url)
    try:
        filesystem.get_file(path, str(copy))
        copied = copy.stat().st_size
    except Exception as error:  # as above
        raise TrainerError(f"cannot copy shard {url} to {copy.parent}: {one_line(error)}") from error
    if size not in (None, copied):
        raise TrainerError(f"shard {url}: received {copied} of {size} bytes: run again, or copy it by hand")


def filesystem_of(url: str, key: str = "train.shards") -> tuple[Any, str]:
    """Return the file system of a URL, and the path in it. `key` names the URL in an error.

    Raises:
        TrainerConfigError: no such protocol, or its package is not installed.
    """
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:  # unknown protocol, or its package is not installed
        raise TrainerConfigError(f"{key}: {url}: {one_line(error)}") from error
    return filesystem, path
