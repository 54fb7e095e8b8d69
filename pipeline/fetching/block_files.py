"""The files of the block lists, read once in every process that fetches."""

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import fsspec

from pipeline.config.fetch import ConsentConfig
from pipeline.consent.block_lists import BlockLists, EntryError
from pipeline.engine.workspace import Workspace
from pipeline.errors import UserError
from pipeline.paths import expand_paths

BlockFiles = Mapping[str, Sequence[str]]
"""The files of the block lists by their kind: domains, urls, url_hashes, image_hashes, uids."""

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
    """Return the lists in files (local paths or fsspec URLs).

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

    try:
        return BlockLists.read({kind: lines(paths) for kind, paths in files.items()})
    except EntryError as error:
        raise UserError(f"fetch.consent: line {place[1]} of the block list {place[0]}: {error}") from None
