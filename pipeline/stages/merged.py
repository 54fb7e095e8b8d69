"""`wit merge`: the pairs of finished workspaces, built elsewhere by one recipe, in place of sources.

A query's smallest priorities over all pairs are among its smallest in each workspace. So every pair that the plan over
both selects was planned, and fetched, in one of them: nothing is requested, and the caps are exact over all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.engine.run import Build, run_units
from pipeline.engine.units import Marker, Stateless, Unit, UnitOutput, digest, read_markers, unit_of
from pipeline.engine.workspace import Workspace
from pipeline.errors import ConfigError
from pipeline.fetching.block_files import find_takedowns
from pipeline.shards.manifest import read_manifest
from pipeline.stages.earlier_fetches import EARLIER, FetchSettings, ledger_of
from pipeline.stages.fetched import VERSION as FETCHED_VERSION
from pipeline.stages.takedown import Request, keep_request

VERSION = 1
"""Raise it when the same workspaces would give other pairs."""

_COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class PairsFile:
    """One unit: a file of pairs/ of another workspace, and its account there."""

    root: str
    name: str
    sha256: str
    counts: Mapping[str, int]
    target: str


_MERGED = ".wit/merged"
"""The sources of the merged workspaces, as their manifests name them; it stands while pairs/ is of them."""


def read_merged_sources(workspace: Workspace) -> list[Any] | None:
    """Return the sources of the workspaces that this one was merged of; None where it was not."""
    return list(workspace.read_json(_MERGED)) if workspace.exists(_MERGED) else None


def forget_merged(workspace: Workspace) -> None:
    """Note that pairs/ comes from the config's sources."""
    workspace.remove([_MERGED])


def open_others(workspace: Workspace, roots: Sequence[str], recipe: Mapping[str, Any]) -> list[Workspace]:
    """Return the workspaces to merge into `workspace`, and note their sources there.

    Raises:
        ConfigError: one is not finished, is given twice, or has another recipe.
    """
    if len(set(roots)) < len(roots):
        raise ConfigError("a workspace is given twice: each may be merged once")
    others, sources = [], []
    for root in roots:
        try:
            manifest = read_manifest(f"{root.rstrip('/')}/shards")
        except FileNotFoundError:
            raise ConfigError(f"{root}: no finished dataset; run `wit build` there first") from None
        theirs = manifest.content.get("recipe", {})
        for key in sorted((theirs.keys() | recipe.keys()) - {"sources"}):
            if theirs.get(key) != recipe.get(key):
                raise ConfigError(f"{root}: its recipe has another {key!r}: only equal recipes can be merged")
        others.append(Workspace(root))
        sources += theirs.get("sources", [])
    workspace.write_json(_MERGED, sources)
    return others


def run_merged_pairs(build: Build, others: Sequence[Workspace]) -> dict[str, Marker]:
    """Fill pairs/ with those of other workspaces; return the markers by unit name, with the accounts of there."""
    units = []
    for number, other in enumerate(others):
        for unit, marker in sorted(read_markers(other, "pairs").items()):
            for name, facts in sorted(marker.outputs.items()):
                if not name.startswith("pairs/"):  # examples of what was dropped stay where they are
                    continue
                target = f"pairs/{number:03d}-{name.rsplit('/', 1)[1]}"
                file = PairsFile(other.root, name, facts.sha256, marker.counts, target)
                unit_digest = digest(VERSION, facts.sha256, marker.counts)
                units.append(Unit(f"{number:03d}-{unit}", unit_digest, file, marker.about))
    return run_units(build, "pairs", units, Stateless(_CopyPairs()))


@dataclass(frozen=True)
class _CopyPairs:
    def run(self, file: PairsFile, output: UnitOutput) -> Mapping[str, int]:
        with Workspace(file.root).open_checked(file.name, file.sha256) as source, output.create(file.target) as out:
            while block := source.read(_COPY_BYTES):
                out.write(block)
            source.check()
        return file.counts


def seed_fetched(
    workspace: Workspace, others: Sequence[Workspace], config: Config, base_dir: Path, plan: Marker
) -> None:
    """Copy what was fetched in other workspaces, and when its consent was checked, to where a build looks for results
    of earlier plans.

    Parts that are done for this plan need none, and parts of other settings cannot be used.
    """
    settings = FetchSettings.of(config, base_dir, FETCHED_VERSION)
    done = {name: marker.digest for name, marker in read_markers(workspace, "fetched").items()}
    wanted = [(unit_of(name), unit_digest) for name, unit_digest in settings.part_digests(plan).items()]
    missing = [done.get(part) != unit_digest for part, unit_digest in wanted]
    present = workspace.sizes(EARLIER)
    for other in others:
        ledgers = read_markers(other, "consent")
        for name, marker in sorted(read_markers(other, "fetched").items()):
            if not settings.owns(marker):
                continue
            unit = settings.reuse_unit(name, marker)
            if not any(missing[part] for part in settings.parts_after(unit, len(missing))):
                continue
            files = {file: settings.reuse_path(file, marker) for file in marker.outputs}
            facts = dict(marker.outputs)
            if name in ledgers:
                (ledger,) = ledgers[name].outputs
                files[ledger] = ledger_of(f"{EARLIER}/{settings.name}/{unit}")
                facts |= ledgers[name].outputs
            for file, target in sorted(files.items()):
                if present.get(target) != facts[file].bytes:
                    _copy(other, file, facts[file].sha256, workspace, target)


def _copy(other: Workspace, file: str, sha256: str, workspace: Workspace, target: str) -> None:
    """Copy a file of another workspace. Raises: DamagedFileError: it is not the file that was written."""
    with other.open_checked(file, sha256) as source, workspace.create(target) as out:
        while block := source.read(_COPY_BYTES):
            out.write(block)
        source.check()


def keep_takedowns(workspace: Workspace, others: Sequence[Workspace]) -> None:
    """Heed here what was taken down in the merged workspaces."""
    for other in others:
        entries = {
            kind: frozenset(other.read_bytes(path.removeprefix(f"{other.root}/")).decode().splitlines())
            for kind, paths in find_takedowns(other).items()
            for path in paths
        }
        keep_request(workspace, Request(entries, {}))
