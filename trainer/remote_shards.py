"""Shards behind an fsspec URL: list them, get the version of one, and copy it."""

import os
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import fsspec

from trainer.errors import TrainerConfigError, TrainerError, one_line

_WITH_BUCKETS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss"}
"""Protocols of stores without folders."""
PART_BYTES = 8 << 20
REQUESTS = 8
"""At a time, of a process: parts of large files are requested in the order in which their files are."""
MAX_STREAMS = 4
"""As how many requests a large file counts, though it can have all: the next one begins while the last parts come."""
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
            if found[0][1].get("type") == "directory":
                raise TrainerError(f"{pattern} is a folder: write {pattern.rstrip('/')}/*.tar")
    except FileNotFoundError:
        return []
    except TrainerError:
        raise
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


def streams_of(url: str, size: int | None) -> int:
    """Return as how many requests at a time the copy of a file counts: several for a large one of an object store.

    An HTTP server may send the whole file for a part.
    """
    return min(MAX_STREAMS, -(-size // PART_BYTES)) if size and url.partition("://")[0] in _WITH_BUCKETS else 1


def fetch(url: str, copy: Path, version: Version) -> None:
    """Copy a file of this version to `copy`, a large one of an object store in parts.

    Raises:
        TrainerError: the file cannot be read in full, has changed, or the copy cannot be written.
    """
    filesystem, path = filesystem_of(url)
    in_parts = streams_of(url, version.size) > 1
    try:
        if in_parts:
            _fetch_parts(filesystem, path, copy, version.size or 0)
            filesystem.invalidate_cache(path)
        else:
            filesystem.get_file(path, str(copy))
        copied = copy.stat().st_size
    except Exception as error:  # as above
        raise TrainerError(f"cannot copy shard {url} to {copy.parent}: {one_line(error)}") from error
    if version.size not in (None, copied):
        raise TrainerError(f"shard {url}: received {copied} of {version.size} bytes: run again, or copy it by hand")
    if in_parts and version_of(url) != version:  # some parts may be of the file that was there before
        raise TrainerError(f"shard {url} was replaced while it was copied: run again")


def _fetch_parts(filesystem: Any, path: str, copy: Path, size: int) -> None:
    copy.touch()

    def fetch_part(start: int) -> None:
        end = min(size, start + PART_BYTES)
        content = filesystem.cat_file(path, start=start, end=end)
        if len(content) != end - start:  # the copy would have zeros in the place of the others
            raise OSError(f"received {len(content)} of the {end - start} bytes from {start}")
        with copy.open("r+b") as file:
            file.seek(start)
            file.write(content)

    parts = [_requests(os.getpid()).submit(fetch_part, start) for start in range(0, size, PART_BYTES)]
    try:
        for part in parts:
            part.result()
    finally:  # after an error, none writes to what the next attempt will have
        for part in parts:
            part.cancel()
        wait(parts)


@cache
def _requests(process: int) -> ThreadPoolExecutor:
    """Return a process's threads for parts, one queue for all files: the file wanted first has the whole bandwidth.

    Threads do not survive a fork, so each process starts some.
    """
    return ThreadPoolExecutor(REQUESTS)


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


def make_folder(filesystem: Any, file: str) -> None:
    """Make the folder of a file where a store has folders; others would make a bucket, also of a name that is wrong."""
    if not _has_buckets(filesystem):
        filesystem.makedirs(file.rpartition("/")[0], exist_ok=True)


def _has_buckets(filesystem: Any) -> bool:
    protocols = {filesystem.protocol} if isinstance(filesystem.protocol, str) else set(filesystem.protocol)
    return bool(protocols & _WITH_BUCKETS)
