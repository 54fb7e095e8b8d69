"""The manifest of a finished set: what `shards/manifest.json` and `shards/sizes.json` say.

`sizes.json` maps each tar to its number of samples; open_clip reads it by itself. `manifest.json` is written last, so
its presence means that the set is whole::

    {"format": "wit-shards/1", "samples": 1234, "code_version": "0.2.0", "recipe": {"seed": 7, ...},
     "shards": [{"tar": "00000.tar", "samples": 617}, ...],
     "files": {"00000.tar": {"bytes": 1, "sha256": "..."}, ...}, "account": [...]}

`recipe` is what decides which pairs are in the set: the config without the places of files, and the allowlist's hash.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import fsspec

FORMAT = "wit-shards/1"


@dataclass(frozen=True)
class Shard:
    """One tar of the set: its URL or path, and how many samples it holds."""

    path: str
    samples: int


@dataclass(frozen=True)
class Manifest:
    """A finished set of shards."""

    shards: tuple[Shard, ...]
    samples: int
    content: Mapping[str, Any]


def read_manifest(folder: str) -> Manifest:
    """Read the manifest in a folder (a path or any fsspec URL).

    Raises:
        FileNotFoundError: there is none: the set is not finished.
        ValueError: the file is not a manifest of this format.
    """
    folder = folder.rstrip("/")
    with fsspec.open(f"{folder}/manifest.json", "rb") as file:
        content = json.load(file)
    if content.get("format") != FORMAT:
        raise ValueError(f"{folder}/manifest.json: format {content.get('format')!r} is not {FORMAT!r}")
    shards = tuple(Shard(f"{folder}/{shard['tar']}", shard["samples"]) for shard in content["shards"])
    return Manifest(shards, content["samples"], content)
