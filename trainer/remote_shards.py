"""Shards behind an fsspec URL: which there are, which version of one is there, and a copy of it."""

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
    """What tells a file from another of the same name, as far as its store says."""

    size: int | None  # bytes
    changed: str | None  # the time of its last change, or the store's own tag


def expand(pattern: str) -> list[str]:
    """Return the files that a glob (a path or any fsspec URL) names, sorted; none where nothing matches.

    Raises:
        TrainerConfigError: no such protocol, or its package is not installed.
        TrainerError: the store does not answer, or refuses.
    """
    filesystem, path = _locate(pattern)
    try:
        if any(c in pattern for c in "*?["):
            found = sorted(str(match) for match in filesystem.glob(path))
        else:
            found = [path] * bool(filesystem.exists(path))
    except FileNotFoundError:
        return []
    except Exception as error:  # each file system raises what its client does
        raise TrainerError(f"cannot list the shards {pattern}: {one_line(error)}") from error
    return [str(filesystem.unstrip_protocol(path)) for path in found] if "://" in pattern else found


def version_of(url: str) -> Version:
    """Ask the store which version of a file it has.

    Raises:
        TrainerError: it is not there, or the store does not answer.
    """
    filesystem, path = _locate(url)
    try:
        info = filesystem.info(path)
    except Exception as error:  # as above
        raise TrainerError(f"cannot read shard {url}: {one_line(error)}") from error
    return Version(info.get("size"), next((str(info[tag]) for tag in _TAGS if info.get(tag)), None))


def fetch(url: str, copy: Path, size: int | None) -> None:
    """Write a file's content to `copy`, which must have `size` bytes then.

    Raises:
        TrainerError: it cannot be read whole, or not be written.
    """
    filesystem, path = _locate(url)
    try:
        filesystem.get_file(path, str(copy))
        arrived = copy.stat().st_size
    except Exception as error:  # as above
        raise TrainerError(f"cannot copy shard {url} to {copy.parent}: {one_line(error)}") from error
    if size not in (None, arrived):
        raise TrainerError(f"shard {url} arrived with {arrived} of its {size} bytes: run again, or copy it by hand")


def _locate(url: str) -> tuple[Any, str]:
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:  # unknown protocol, or its package is not installed
        raise TrainerConfigError(f"train.shards: {url}: {one_line(error)}") from error
    return filesystem, path
