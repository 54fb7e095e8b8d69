"""What earlier fetches of a workspace left, to be used again: for another plan, or for a retry.

While another plan is fetched, or failures are requested again, the parts fetched before lie in EARLIER.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from pipeline.config import Config
from pipeline.engine.units import Marker, digest, marker_name, read_markers, unit_of
from pipeline.engine.workspace import Workspace
from pipeline.fetching.retry import Retry
from pipeline.sources import expand_paths, file_versions

FROM_ARCHIVES = "archives-"
EARLIER = ".wit/earlier"
"""While a plan is fetched, the parts fetched for earlier plans: <settings>/<part>.<plan>.tar, .parquet and .json, their
marker with sizes and checksums."""


@dataclass(frozen=True)
class FetchSettings:
    """The settings that, with the plan, determine a fetched part: `name`. `recorded` is the version of the archives."""

    archives: tuple[str, ...]
    recorded: str
    name: str

    @classmethod
    def of(cls, config: Config, base_dir: Path, version: int) -> "FetchSettings":
        archives = expand_paths(config.fetch.archives, base_dir, "fetch.archives")
        recorded = digest([file_versions(path) for path in archives])
        content = config.fetch.content() | {"archives": recorded}
        unit_digest = digest(version, content, config.fetch.parts, config.seed)
        is_from_web = config.fetch.network and config.requests_images
        return cls(tuple(archives), recorded, ("web-" if is_from_web else FROM_ARCHIVES) + unit_digest)

    @property
    def short_name(self) -> str:
        """Return the beginning of the name, which tells these settings from others well enough."""
        return self.name[:12]

    def owns(self, marker: Marker) -> bool:
        return marker.digest.startswith(f"{self.name}-")

    def reuse_path(self, file: str, marker: Marker) -> str:
        """Return the path of a part's file while another plan is fetched."""
        suffix = file.rpartition(".")[2]
        return f"{EARLIER}/{self.name}/{self.reuse_unit(unit_of(file), marker)}.{suffix}"

    def reuse_unit(self, part: str, marker: Marker) -> str:
        """Return the name of the unit that a part is then."""
        return f"{part}.{marker.digest[-16:]}"

    @property
    def reuse_step(self) -> str:
        """The step of these units: their markers lie beside the files."""
        return f"{EARLIER.removeprefix('.wit/')}/{self.name}"


def stash_for_reuse(workspace: Workspace, settings: FetchSettings, wanted: Mapping[str, str]) -> None:
    """Move the parts of another plan away, to reuse their results for this one.

    The markers are removed last: the run after a killed one finds them again, and moves the rest. If the plan was
    changed back, the moved files are moved back.
    """
    markers = {n: m for n, m in read_markers(workspace, "fetched").items() if settings.owns(m)}
    in_place, stashed = workspace.sizes("fetched"), workspace.sizes(EARLIER)
    moves: dict[str, str] = {}
    stale, moved_back = [], []
    aside: dict[str, Marker] = {}
    for name, marker in markers.items():
        targets = {file: settings.reuse_path(file, marker) for file in marker.outputs}
        present = [file for file, facts in marker.outputs.items() if in_place.get(file) == facts.bytes]
        moved = [file for file, facts in marker.outputs.items() if stashed.get(targets[file]) == facts.bytes]
        if wanted.get(name) == marker.digest:
            moves |= {targets[file]: file for file in moved if file not in present}
            moved_back.append(marker_name(settings.reuse_step, settings.reuse_unit(name, marker)))
        elif {*present, *moved} == targets.keys():
            moves |= {file: targets[file] for file in present}
            aside[settings.reuse_unit(name, marker)] = _moved(marker, targets)
            stale.append(marker_name("fetched", name))
    workspace.remove(moved_back)
    workspace.move(moves)
    _mark(workspace, settings, aside)
    workspace.remove(stale)


def _moved(marker: Marker, targets: Mapping[str, str]) -> Marker:
    return replace(marker, outputs={targets[file]: facts for file, facts in marker.outputs.items()})


def _mark(workspace: Workspace, settings: FetchSettings, aside: Mapping[str, Marker]) -> None:
    for unit, marker in aside.items():
        marker.write(workspace, settings.reuse_step, unit)


def earlier_parts(workspace: Workspace, settings: FetchSettings) -> dict[str, tuple[str, ...]]:
    """Return part -> its stored results, without suffixes: several if a build was stopped and its config changed."""
    folder = f"{EARLIER}/{settings.name}"
    names = workspace.sizes(folder).keys()
    found: dict[str, list[str]] = {}
    for table in sorted(name.removesuffix(".parquet") for name in names if name.endswith(".parquet")):
        if f"{table}.tar" in names:
            found.setdefault(unit_of(table), []).append(table)
    return {part: tuple(names) for part, names in found.items()}


def stash_for_retry(workspace: Workspace, settings: FetchSettings, retry: Retry) -> int:
    """Move parts away that have failures to request again; return how many URLs these are.

    A build that is stopped and goes on without `retry` takes the failures from there again.
    """
    count, moves, stale, aside = 0, dict[str, str](), list[str](), dict[str, Marker]()
    for name, marker in read_markers(workspace, "fetched").items():
        if not settings.owns(marker) or not any(marker.counts.get(reason) for reason in retry.reasons):
            continue
        urls = retried_urls(workspace, f"fetched/{name}", name, retry)
        if urls:
            count += len(urls)
            folder = f"{EARLIER}/{settings.name}"
            version = marker.outputs[f"fetched/{name}.parquet"].sha256[:16]
            targets = {file: f"{folder}/{name}.{version}.{file.rpartition('.')[2]}" for file in marker.outputs}
            moves |= targets
            aside[f"{name}.{version}"] = _moved(marker, targets)
            stale.append(marker_name("fetched", name))
    workspace.move(moves)
    _mark(workspace, settings, aside)
    workspace.remove(stale)
    return count


def open_earlier(workspace: Workspace, name: str) -> tuple[pa.Table, BinaryIO]:
    """Return the rows and the tar of a part fetched before, `name` without suffix.

    They are checked first, because what is reused goes into the journal, which the next run believes.

    Raises:
        DamagedFileError: one is not the file that was written.
    """
    table, tar, marker = f"{name}.parquet", f"{name}.tar", f"{name}.json"
    if not workspace.exists(marker):  # of an earlier version
        return workspace.read_table(table), workspace.open(tar)
    facts = Marker.parse(workspace.read_bytes(marker)).outputs
    with workspace.open_checked(tar, facts[tar].sha256) as checked:
        checked.check()
    return workspace.read_table(table, sha256=facts[table].sha256), workspace.open(tar)


def retried_urls(workspace: Workspace, table: str, part: str, retry: Retry) -> frozenset[str]:
    """Return the URLs of a fetched part that are requested again."""
    rows, name = workspace.read_table(f"{table}.parquet", ["url", "reason"]), f"consent/{part}.parquet"
    return frozenset(retry.urls(rows, workspace.read_table(name) if workspace.exists(name) else None))
