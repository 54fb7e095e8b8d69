"""From the patterns of `sources.paths` to a list of files."""

from collections.abc import Sequence
from glob import has_magic
from pathlib import Path

import fsspec

from pipeline.errors import ConfigError


def expand_paths(patterns: Sequence[str], base_dir: Path, key: str = "sources.paths") -> list[str]:
    """Return the files that `patterns` name, each once, sorted: absolute local paths, and fsspec URLs.

    Patterns without a scheme are local and start at `base_dir`; `**` crosses folders.

    Raises:
        ConfigError: a pattern matches no file; it is named, and the config's `key` that holds it.
    """
    return sorted({path for pattern in patterns for path in _expand(pattern, base_dir, key)})


def _expand(pattern: str, base_dir: Path, key: str) -> list[str]:
    if "::" in pattern:  # chained file systems (zip://a.csv::s3://bucket/b.zip) have no form to write a match in
        return [pattern]
    located = pattern if "://" in pattern else str((base_dir / pattern).absolute())
    try:
        fs, inner = fsspec.core.url_to_fs(located)
        names = [inner] if fs.isfile(inner) or not has_magic(inner) else fs.glob(inner)
        files = [name for name in names if fs.isfile(name)]
    except (ValueError, ImportError) as error:  # unknown protocol, or its package is not installed
        raise ConfigError(f"{key}: {pattern}: {error}") from None
    if not files:
        hint = f"; to read the files of a folder write {pattern}/*" if fs.isdir(inner) else ""
        raise ConfigError(f"{key}: {pattern} matches no file (looked for {located}){hint}")
    is_local = "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)
    return files if is_local else [fs.unstrip_protocol(name) for name in files]
