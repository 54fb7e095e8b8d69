"""What earlier fetches of a workspace left, to be used again: for another plan, or for a retry.

While another plan is fetched, or failures are requested again, the parts fetched before lie in EARLIER.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from pipeline.config import Config
from pipeline.engine.units import Marker, digest, marker_name, read_markers, unit_of
from pipeline.engine.workspace import Workspace
from pipeline.fetching.retry import Retry
from pipeline.sources import expand_paths, file_versions
from pipeline.stages.plan import part_names

FROM_ARCHIVES = "archives-"
EARLIER = ".wit/earlier"
"""While a plan is fetched, the parts fetched for earlier plans: <settings>/<part>.<plan>.tar, .parquet and .json, their
marker with sizes and checksums. Where the number of parts follows the size of a plan, <plan> begins with it."""


@dataclass(frozen=True)
class FetchSettings:
    """The settings that, with the plan, determine a fetched part: `name`. `recorded` is the version of the archives."""

    archives: tuple[str, ...]
    recorded: str
    name: str
    are_parts_stated: bool

    @classmethod
    def of(cls, config: Config, base_dir: Path, version: int) -> "FetchSettings":
        archives = expand_paths(config.fetch.archives, base_dir, "fetch.archives")
        recorded = digest([file_versions(path) for path in archives])
        content = config.fetch.content() | {"archives": recorded}
        unit_digest = digest(version, content, config.fetch.parts, config.seed)
        is_from_web = config.fetch.network and config.requests_images
        name = ("web-" if is_from_web else FROM_ARCHIVES) + unit_digest
        return cls(tuple(archives), recorded, name, config.fetch.parts is not None)

    @property
    def short_name(self) -> str:
        """Return the beginning of the name, which tells these settings from others well enough."""
        return self.name[:12]

    def part_digests(self, plan: Marker) -> dict[str, str]:
        """Return file of a plan's part -> the digest of the fetched part, in the order of parts."""
        names = part_names(plan)
        count = "" if self.are_parts_stated else f"{len(names)}-"
        return {name: f"{self.name}-{count}{plan.outputs[name].sha256}" for name in names}

    def ledgers(self, units: Mapping[str, str]) -> dict[str, str]:
        """Return ledger of a part -> its copy, for part -> unit of parts that move away.

        Only where a part's URLs can come into parts of another number: else their ledgers stay in place.
        """
        if self.are_parts_stated:
            return {}
        return {f"consent/{part}.parquet": ledger_of(f"{EARLIER}/{self.name}/{unit}") for part, unit in units.items()}

    def owns(self, marker: Marker) -> bool:
        return marker.digest.startswith(f"{self.name}-")

    def reuse_path(self, file: str, marker: Marker) -> str:
        """Return the path of a part's file while another plan is fetched."""
        suffix = file.rpartition(".")[2]
        return f"{EARLIER}/{self.name}/{self.reuse_unit(unit_of(file), marker)}.{suffix}"

    def reuse_unit(self, part: str, marker: Marker) -> str:
        """Return the name of the unit that a part is then."""
        return f"{part}.{self._count(marker)}{marker.digest[-16:]}"

    def retry_unit(self, part: str, marker: Marker) -> str:
        """Return the same of a part whose failures are requested again for one plan."""
        return f"{part}.{self._count(marker)}{marker.outputs[f'fetched/{part}.parquet'].sha256[:16]}"

    def _count(self, marker: Marker) -> str:
        return "" if self.are_parts_stated else marker.digest.removeprefix(f"{self.name}-").split("-")[0] + "-"

    def parts_after(self, table: str, parts: int) -> range:
        """Return which of `parts` parts have URLs of a part that lies in EARLIER, by its name without suffix.

        A part is the remainder of a URL's hash; where the number of parts is not stated, it is a power of two.
        """
        part, version = table.rpartition("/")[2].split(".")
        number, before = int(part.rpartition("-")[2]), parts if self.are_parts_stated else int(version.split("-")[0])
        return range(number % min(before, parts), parts, min(before, parts))

    @property
    def reuse_step(self) -> str:
        """The step of these units: their markers lie beside the files."""
        return f"{EARLIER.removeprefix('.wit/')}/{self.name}"


def ledger_of(table: str) -> str:
    """Return the name of the ledger of a part that lies in EARLIER, by its name without suffix."""
    return f"{table}.consent"


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
    units: dict[str, str] = {}
    for name, marker in markers.items():
        targets = {file: settings.reuse_path(file, marker) for file in marker.outputs}
        present = [file for file, facts in marker.outputs.items() if in_place.get(file) == facts.bytes]
        moved = [file for file, facts in marker.outputs.items() if stashed.get(targets[file]) == facts.bytes]
        if wanted.get(name) == marker.digest:
            moves |= {targets[file]: file for file in moved if file not in present}
            moved_back.append(marker_name(settings.reuse_step, settings.reuse_unit(name, marker)))
        elif {*present, *moved} == targets.keys():
            moves |= {file: targets[file] for file in present}
            units[name] = settings.reuse_unit(name, marker)
            aside[units[name]] = _moved(marker, targets)
            stale.append(marker_name("fetched", name))
    workspace.remove(moved_back)
    _copy_ledgers(workspace, settings, units)
    workspace.move(moves)
    _mark(workspace, settings, aside)
    workspace.remove(stale)


def _copy_ledgers(workspace: Workspace, settings: FetchSettings, units: Mapping[str, str]) -> None:
    present = workspace.sizes("consent")
    workspace.copy({name: to for name, to in settings.ledgers(units).items() if name in present})


def _moved(marker: Marker, targets: Mapping[str, str]) -> Marker:
    return replace(marker, outputs={targets[file]: facts for file, facts in marker.outputs.items()})


def _mark(workspace: Workspace, settings: FetchSettings, aside: Mapping[str, Marker]) -> None:
    for unit, marker in aside.items():
        marker.write(workspace, settings.reuse_step, unit)


def earlier_parts(workspace: Workspace, settings: FetchSettings, parts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return part -> its stored results, without suffixes: several if a build was stopped and its config changed.

    `parts` are the names of all parts of the plan, in order.
    """
    folder = f"{EARLIER}/{settings.name}"
    names = workspace.sizes(folder).keys()
    found: dict[str, list[str]] = {}
    for table in sorted(name.removesuffix(".parquet") for name in names if name.endswith(".parquet")):
        if f"{table}.tar" in names:
            for part in settings.parts_after(table, len(parts)):
                found.setdefault(parts[part], []).append(table)
    return {part: tuple(names) for part, names in found.items()}


def stash_for_retry(workspace: Workspace, settings: FetchSettings, retry: Retry) -> int:
    """Move parts away that have failures to request again; return how many URLs these are.

    A build that is stopped and goes on without `retry` takes the failures from there again.
    """
    count, moves, stale, aside, units = 0, dict[str, str](), list[str](), dict[str, Marker](), dict[str, str]()
    for name, marker in read_markers(workspace, "fetched").items():
        if not settings.owns(marker) or not any(marker.counts.get(reason) for reason in retry.reasons):
            continue
        urls = retried_urls(workspace, f"fetched/{name}", name, retry)
        if urls:
            count += len(urls)
            folder = f"{EARLIER}/{settings.name}"
            unit = units[name] = settings.retry_unit(name, marker)
            targets = {file: f"{folder}/{unit}.{file.rpartition('.')[2]}" for file in marker.outputs}
            moves |= targets
            aside[unit] = _moved(marker, targets)
            stale.append(marker_name("fetched", name))
    _copy_ledgers(workspace, settings, units)
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
    rows = workspace.read_table(f"{table}.parquet", ["url", "reason"])
    name = ledger_of(table) if workspace.exists(ledger_of(table)) else f"consent/{part}.parquet"
    return frozenset(retry.urls(rows, workspace.read_table(name) if workspace.exists(name) else None))
