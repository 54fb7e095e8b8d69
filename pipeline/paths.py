"""Expand the patterns of `sources.paths` to a list of files, and get the versions of files."""

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from glob import has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.errors import ConfigError, UserError, one_line

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_HTTP_TIMEOUT_S = 20.0


def resolve_path(path: str, base_dir: Path) -> str:
    """Return a path of the config: relative ones start at `base_dir`, `~` is the home folder; URLs stay unchanged."""
    return path if "://" in path else str(base_dir / os.path.expanduser(path))


def expand_paths(patterns: Sequence[str], base_dir: Path, key: str = "sources.paths") -> list[str]:
    """Return the files that match `patterns`, each once, sorted: absolute local paths, and fsspec URLs.

    Patterns without a scheme are local and start at `base_dir`; `**` crosses folders.

    Raises:
        ConfigError: a pattern matches no file; the message names it and the config's `key`.
    """
    return sorted({path for pattern in patterns for path in _expand(pattern, base_dir, key)})


def _expand(pattern: str, base_dir: Path, key: str) -> list[str]:
    if "::" in pattern:  # matches in chained file systems (zip://a.csv::s3://bucket/b.zip) cannot be written as a URL
        return [pattern]
    located = resolve_path(pattern, base_dir.absolute())
    import fsspec  # slow to import, and `wit --help` imports this module

    try:
        fs, inner = fsspec.core.url_to_fs(located)
        found = {inner: fs.info(inner)} if fs.exists(inner) else fs.glob(inner, detail=True) if has_magic(inner) else {}
    except Exception as error:  # any error of a store: missing package, credentials or network
        raise ConfigError(f"{key}: {pattern}: {one_line(error)}") from None
    if not found and located.startswith(("http://", "https://")):
        _check_responds(located, key, pattern)
    files = [name for name, info in found.items() if info["type"] == "file" or _links_to_file(fs, name, info)]
    if not files:
        hint = f"; use {pattern}/* for the files of a folder" if inner in found else ""
        raise ConfigError(f"{key}: {pattern} matches no file (looked for {located}){hint}")
    is_local = "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)
    return files if is_local else [fs.unstrip_protocol(name) for name in files]


def _check_responds(url: str, key: str, pattern: str) -> None:
    """Return if an HTTP server reports that `url` does not exist: fsspec reports every failure as that.

    Raises:
        ConfigError: the server refuses, fails, or does not respond.
    """
    try:
        with urllib.request.urlopen(url, timeout=_HTTP_TIMEOUT_S):
            return
    except urllib.error.HTTPError as error:
        if error.code in (404, 410):
            return
        needs = "; it needs a user and password" if error.code == 401 else ""
        raise ConfigError(f"{key}: {pattern}: HTTP status {error.code} {error.reason}{needs}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        cause = getattr(error, "reason", error)
        raise ConfigError(f"{key}: {pattern}: the server does not respond: {cause}") from None


def _links_to_file(fs: "AbstractFileSystem", name: str, info: dict[str, Any]) -> bool:
    return info["type"] != "directory" and bool(fs.isfile(name))


def _find(path: str) -> tuple[str, dict[str, Any]]:
    import fsspec

    fs, inner = fsspec.core.url_to_fs(path)
    try:
        info = fs.info(inner)
        return inner, {inner: info} if info["type"] == "file" else fs.find(inner, detail=True)
    except FileNotFoundError:
        return inner, fs.glob(inner, detail=True) if has_magic(inner) else {}


class FileVersion(NamedTuple):
    """The version of a file: `changed` is the time of its last change, or the store's ETag."""

    name: str
    bytes: int | None
    changed: object


def file_versions(path: str) -> list[FileVersion]:
    """Return the versions of a file, of the files under a folder, or of those that match a pattern, without reading.

    Raises:
        UserError: the store does not respond, or refuses access.
    """
    try:
        inner, found = _find(path)
    except Exception as error:  # any error of a store: missing package, credentials or network
        raise UserError(f"{path}: {one_line(error)}") from None
    folder = inner.split("*")[0].rpartition("/")[0]
    tags = ("ETag", "etag", "mtime", "updated")
    return [
        FileVersion(name.removeprefix(folder), info.get("size"), next((info[t] for t in tags if info.get(t)), None))
        for name, info in sorted(found.items())
    ]
