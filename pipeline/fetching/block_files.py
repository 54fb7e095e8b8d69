"""The files of the block lists, read once in every process that fetches."""

import hashlib
import itertools
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import fsspec

from pipeline.config.fetch import ConsentConfig
from pipeline.consent.block_lists import BlockLists, EntryError
from pipeline.consent.bloom import BloomError, BloomList
from pipeline.engine.workspace import Workspace
from pipeline.errors import UserError, one_line
from pipeline.paths import expand_paths

BlockFiles = Mapping[str, Sequence[str]]
"""The files of the block lists by their kind: domains, urls, url_hashes, image_hashes, uids."""

_BLOOM = re.compile(r"\.bloom(\.gz)?$")
_BLOOM_KINDS = ("urls", "url_hashes", "image_hashes")
_DIGITS = {"md5": 32, "sha1": 40, "sha256": 64}

TAKEDOWN = "consent/takedown"
"""The folder of a workspace with what `wit takedown` took out, as block lists: <kind>.txt."""


def find_block_lists(config: ConsentConfig, base_dir: Path) -> BlockFiles:
    """Return the block list files of the config.

    Raises:
        ConfigError: a pattern matches no file.
    """
    return {
        kind: expand_paths(patterns, base_dir, f"fetch.consent.block_{kind}")
        for kind, patterns in config.block_lists.items()
    }


REFILLED = f"{TAKEDOWN}/refilled"
"""The block lists as they were when the set was refilled last: the final balance leaves out what they name."""


def find_takedowns(workspace: Workspace, folder: str = TAKEDOWN) -> BlockFiles:
    """Return the block lists that `wit takedown` keeps in a workspace."""
    names = [name for name in workspace.sizes(folder) if name.rpartition("/")[0] == folder]
    return {name.rsplit("/", 1)[1].removesuffix(".txt"): [f"{workspace.root}/{name}"] for name in sorted(names)}


def contents_of(files: BlockFiles) -> dict[str, list[str]]:
    """Return the SHA-256 of each file by the kind of list: the same after a kill, where times of change are not."""
    found: dict[str, list[str]] = {}
    for kind, paths in files.items():
        for path in paths:
            with fsspec.open(path, "rb") as file:
                found.setdefault(kind, []).append(hashlib.sha256(file.read()).hexdigest())
    return found


def find_all_lists(config: ConsentConfig, base_dir: Path, workspace: Workspace) -> BlockFiles:
    """Return the files that the config names and those of the workspace together."""
    named, taken = find_block_lists(config, base_dir), find_takedowns(workspace)
    return {kind: [*named.get(kind, ()), *taken.get(kind, ())] for kind in {**named, **taken}}


def read_block_lists(files: BlockFiles) -> BlockLists:
    """Return the lists in files (local paths or fsspec URLs); those named .bloom or .bloom.gz are Bloom filters.

    Raises:
        UserError: a file cannot be read, or has an invalid line; the message has its number, not its content.
    """
    place = ["", 0]

    def lines(paths: Sequence[str]) -> Iterator[str]:
        for path in paths:
            try:
                with fsspec.open(path, "rt", encoding="utf-8-sig", compression="infer") as file:
                    for number, line in zip(itertools.count(1), file, strict=False):
                        place[:] = [path, number]
                        yield line
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"fetch.consent: the block list {path} cannot be read: {error}") from None

    plain = {kind: [path for path in paths if not _BLOOM.search(path)] for kind, paths in files.items()}
    blooms = {kind: [path for path in paths if _BLOOM.search(path)] for kind, paths in files.items()}
    loaded = {kind: [_read_bloom(kind, path) for path in paths] for kind, paths in blooms.items()}
    try:
        return BlockLists.read({kind: lines(paths) for kind, paths in plain.items()}, loaded)
    except EntryError as error:
        raise UserError(f"fetch.consent: line {place[1]} of the block list {place[0]}: {error}") from None


def _read_bloom(kind: str, path: str) -> BloomList:
    """Return a Bloom filter. Its name says what hashes it has: known.sha1.bloom; without that, SHA-256."""
    if kind not in _BLOOM_KINDS:
        raise UserError(
            f"fetch.consent.block_{kind}: {path}: only lists of {', '.join(_BLOOM_KINDS)} can be Bloom filters"
        )
    named = re.search(r"\b(md5|sha1|sha256)\b", path.rsplit("/", 1)[-1].lower())
    digits = 0 if kind == "urls" else _DIGITS[named[1] if named else "sha256"]
    try:
        with fsspec.open(path, "rb", compression="infer") as file:
            return BloomList.parse(file.read(), digits)
    except (OSError, EOFError, zlib.error, BloomError) as error:
        raise UserError(f"fetch.consent.block_{kind}: {path}: {one_line(error)}") from None
