"""Which files a build reads: those of the patterns in the config, of Common Crawl by name, and of search results."""

import os
import re
from collections import Counter
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args
from urllib.parse import urlsplit

from pipeline.config import Config
from pipeline.config.sources import SourceConfig
from pipeline.engine.units import digest
from pipeline.engine.workspace import Workspace
from pipeline.errors import ConfigError
from pipeline.sources import expand_paths
from pipeline.sources.common_crawl import list_files
from pipeline.stages.searched import RESULTS, result_tables
from queries.redact import redact


@dataclass(frozen=True)
class SourceFile:
    """One unit: a file to read, and its source's settings."""

    source: SourceConfig
    path: str
    name: str  # without secrets and the config's folder, for `pairs.source`
    chain: str = ""  # of the unit

    @property
    def unit(self) -> str:
        """Name the unit and its output: the file's stem for readers, and a hash of the whole name to make it unique."""
        stem = re.sub(r"[^\w-]", "_", Path(urlsplit(self.name).path).name.split(".")[0][:40])  # "[" would be a pattern
        return f"{stem}-{digest(self.name)[:16]}"


_ALL_KINDS = frozenset(get_args(SourceConfig.model_fields["kind"].annotation))


def source_files(
    config: Config, base_dir: Path, workspace: Workspace, kinds: Container[str] = _ALL_KINDS
) -> list[SourceFile]:
    """List the source files of some kinds, in the order of the config; a file listed twice is read once."""
    listed: dict[str, SourceFile] = {}
    for source in config.sources:
        if source.kind not in kinds:
            continue
        if source.kind == "common-crawl":
            found = {
                f"{source.base_url}/{name}": name for name in list_files(source, config.seed, _CrawlLists(workspace))
            }
        else:
            found = _named_files(source, base_dir)
            if source.kind == "webdataset":
                _check_tars(found)
        for path, name in found.items():
            file = SourceFile(source, path, name)
            if listed.setdefault(path, file).source != source:
                raise ConfigError(f"sources: {file.name} is listed by two [[sources]] tables; list it once")
    if not listed and kinds is _ALL_KINDS:
        raise ConfigError("sources: no files to read")
    return _with_chains(_with_unique_names(list(listed.values())))


def searched_files(config: Config, workspace: Workspace) -> list[SourceFile]:
    return [SourceFile(RESULTS, f"{workspace.root}/{name}", name) for name in result_tables(workspace, config)]


@dataclass(frozen=True)
class _CrawlLists:
    """Keeps the lists of Common Crawl in the workspace."""

    workspace: Workspace

    def get(self, name: str, look_up: Callable[[], bytes]) -> bytes:
        kept = f".wit/crawls/{name}"
        if not self.workspace.exists(kept):
            content = look_up()
            with self.workspace.create(kept) as out:
                out.write(content)
        return self.workspace.read_bytes(kept)


def _with_chains(files: list[SourceFile]) -> list[SourceFile]:
    """Deal the files of each Common Crawl server into as many chains as it may have connections."""
    servers: dict[str, int] = {}
    for file in files:
        if file.source.kind == "common-crawl":
            known = servers.setdefault(file.source.base_url, file.source.connections)
            servers[file.source.base_url] = min(known, file.source.connections)
    dealt: Counter[str] = Counter()
    for i, file in enumerate(files):
        if file.source.kind == "common-crawl":
            server = file.source.base_url
            files[i] = replace(file, chain=f"{server} {dealt[server] % servers[server]}")
            dealt[server] += 1
    return files


def _named_files(source: SourceConfig, base_dir: Path) -> dict[str, str]:
    """Return path -> name of a source's files, sorted by path.

    A name contains neither secrets nor the config's folder: the names of local files are relative to the config's
    folder, or, if the pattern is absolute, to the folder of its first wildcard.
    """
    names: dict[str, str] = {}
    for pattern in source.paths:
        for path in expand_paths((pattern,), base_dir):
            names.setdefault(path, _public_name(path, pattern, base_dir))
    return dict(sorted(names.items()))


def _check_tars(names: Mapping[str, str]) -> None:
    """Refuse files that a pattern such as `shards/*` finds beside tars.

    Raises:
        ConfigError: a file has another name.
    """
    for path, name in names.items():
        local = urlsplit(path).path if "://" in path else path
        if "::" not in path and not local.endswith(".tar"):
            raise ConfigError(
                f"sources.paths: {name} is not named .tar: a webdataset source reads plain tars; write "
                f"{name.rpartition('/')[0] or '.'}/*.tar, and what lies beside each tar is found by its name"
            )


def _public_name(path: str, pattern: str, base_dir: Path) -> str:
    if not os.path.isabs(path):
        return redact(path)
    pattern = pattern.removeprefix("file://")
    if Path(path).is_relative_to(base_dir) or not pattern.startswith(("/", "~")):
        return os.path.relpath(path, base_dir)
    fixed = re.split(r"[*?\[]", os.path.expanduser(pattern), maxsplit=1)[0]
    return os.path.relpath(path, fixed.rpartition("/")[0] or "/")


def _with_unique_names(files: list[SourceFile]) -> list[SourceFile]:
    """Tell local files of the same name apart by as many of their folders as it takes.

    Raises:
        ConfigError: two URLs differ by their secrets only.
    """
    folders = 0
    while True:
        twins = {name for name, n in Counter(file.name for file in files).items() if n > 1}
        if not twins:
            return files
        folders += 1
        for i, file in enumerate(files):
            if file.name in twins:
                parts = Path(file.path).parts
                if not os.path.isabs(file.path) or folders >= len(parts):
                    raise ConfigError(f"sources: {file.name} is named twice, with other secrets; list it once")
                files[i] = replace(file, name="/".join(parts[-folders - 1 :]))
