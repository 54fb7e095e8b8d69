"""The manifest of a finished set: `shards/manifest.json` and `shards/sizes.json`.

`sizes.json` maps each tar to its number of samples; open_clip reads it by itself. `manifest.json` is written last, so
its presence means that the set is complete::

    {"format": "wit-shards/1", "samples": 1234, "code_version": "0.2.0", "recipe": {"seed": 7, ...},
     "shards": [{"tar": "00000.tar", "samples": 617}, ...],
     "files": {"00000.tar": {"bytes": 1, "sha256": "..."}, ...}, "account": [...]}

`recipe` determines which pairs are in the set: the config without file locations, and the allowlist's hash.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import fsspec

from pipeline.engine.workspace import FileFacts
from pipeline.errors import UserError, one_line

FORMAT = "wit-shards/1"
_NAME = re.compile(r"[^/\\\0]+")


@dataclass(frozen=True)
class Shard:
    """One tar of the set: its URL or path, its number of samples, and its SHA-256 if known."""

    path: str
    samples: int
    sha256: str | None = None


@dataclass(frozen=True)
class Manifest:
    """A finished set of shards. `files` has every file of the set by its name."""

    shards: tuple[Shard, ...]
    samples: int
    files: Mapping[str, FileFacts]
    content: Mapping[str, Any]


def read_manifest(folder: str) -> Manifest:
    """Read the manifest in a folder (a path or any fsspec URL).

    Raises:
        FileNotFoundError: there is none: the set is not finished.
        UserError: the file is not a manifest of this format, or damaged.
    """
    folder = folder.rstrip("/")
    name = f"{folder}/manifest.json"
    with fsspec.open(name, "rb") as file:
        encoded = file.read()
    try:
        content = json.loads(encoded)
        if content.get("format") != FORMAT:
            raise UserError(f"{name}: format {content.get('format')!r} is not {FORMAT!r}")
        files = {file: FileFacts(facts["bytes"], facts["sha256"]) for file, facts in content.get("files", {}).items()}
        shards = tuple(
            Shard(f"{folder}/{tar}", shard["samples"], files[tar].sha256 if tar in files else None)
            for shard in content["shards"]
            for tar in [shard["tar"]]
        )
        samples = content["samples"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{name}: not a manifest, or damaged ({one_line(error)})") from None
    for file in files:
        if not _NAME.fullmatch(file) or file in (".", ".."):
            raise UserError(f"{name}: {file!r} is not the name of a file beside it")
    return Manifest(shards, samples, files, content)
