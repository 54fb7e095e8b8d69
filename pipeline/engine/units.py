"""Units of work and how they resume, the same on every runner.

A step is a list of units. A unit reads files and writes files; when they are all written, its marker is written under
`.wit/<step>/<unit>.json` with a digest of everything the output depends on. A rerun skips the units whose marker has
the same digest and whose files exist; it runs the others again and removes files that no unit owns any more.

This module does not use Beam: run.py distributes the units to workers.
"""

import gc
import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.engine.marker_files import PACKED_FROM, MarkerFiles, read_marker_files, write_pack
from pipeline.engine.workspace import FileFacts, HashingFile, Workspace
from pipeline.errors import one_line

logger = logging.getLogger(__name__)

MARKER_FORMAT = 1
_OUTSIDE, _SHA256 = re.compile(r"(?:^|/)\.{0,2}(?:/|$)"), re.compile("[0-9a-f]{64}")
ROWS_PER_GROUP = 16_384
"""Rows in one Parquet row group, the number that a reader holds at a time."""


def digest(*parts: Any) -> str:
    """Return a hash of JSON-able values; equal values give equal digests in any process."""
    encoded = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.blake2b(encoded.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Unit:
    """One piece of work. `name` is unique in its step; `digest` covers everything that its output depends on."""

    name: str
    digest: str
    payload: Any = None
    about: str = ""  # the subject of the unit, for messages: the name of a source file
    chain: str = ""  # units of one chain run in one process, in their order; without one a unit runs anywhere


@dataclass(frozen=True, slots=True)
class Marker:
    """A finished unit: its output files, and the counts of its rows, with the keys `inputs`, `kept` and the reasons."""

    digest: str
    outputs: dict[str, FileFacts]
    counts: dict[str, int]

    about: str = ""

    @classmethod
    def parse(cls, content: bytes) -> "Marker":
        """Parse the output of `to_json`. Raises: ValueError: it is damaged, or of a newer version."""
        try:
            value = orjson.loads(content)
            if value.get("format", MARKER_FORMAT) != MARKER_FORMAT:
                raise ValueError(f"its format {value['format']!r} is not {MARKER_FORMAT}")
            outputs = {name: FileFacts(facts["bytes"], facts["sha256"]) for name, facts in value["outputs"].items()}
            marker = cls(value["digest"], outputs, value["counts"], value.get("about", ""))
        except (KeyError, TypeError, AttributeError, RecursionError):
            raise ValueError("it is not a marker") from None
        except ValueError as error:
            raise ValueError(one_line(error)) from None
        marker._check()
        return marker

    def _check(self) -> None:
        for name, facts in self.outputs.items():
            if _OUTSIDE.search(name):
                raise ValueError(f"its output {name!r} lies outside the workspace")
            if type(facts.bytes) is not int or facts.bytes < 0 or not _SHA256.fullmatch(str(facts.sha256)):
                raise ValueError(f"the size or SHA-256 of {name!r} is invalid")
        if not (isinstance(self.digest, str) and isinstance(self.about, str) and isinstance(self.counts, dict)):
            raise ValueError("it is not a marker")
        for reason, count in self.counts.items():
            if type(count) is not int or count < 0:
                raise ValueError(f"it counts {count!r} {reason}")

    def to_json(self) -> dict[str, Any]:
        outputs = {name: {"bytes": f.bytes, "sha256": f.sha256} for name, f in sorted(self.outputs.items())}
        return {"digest": self.digest, "outputs": outputs, "counts": self.counts}

    def write(self, workspace: Workspace, step: str, unit: str) -> None:
        told = {"format": MARKER_FORMAT} | self.to_json() | ({"about": self.about} if self.about else {})
        workspace.write_json(marker_name(step, unit), told)


@dataclass
class UnitOutput:
    """The files that a unit writes, recorded for its marker."""

    workspace: Workspace
    files: dict[str, FileFacts] = field(default_factory=dict)

    @contextmanager
    def create(self, name: str) -> Iterator[HashingFile]:
        """Open an output file of the unit; see `Workspace.create`."""
        with self.workspace.create(name) as out:
            yield out
        self.files[name] = out.facts

    def write_table(self, name: str, table: pa.Table) -> None:
        self.write_batches(name, table.schema, [table])

    def write_batches(self, name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch | pa.Table]) -> None:
        """Write Parquet as the batches come; a batch of n rows becomes ceil(n / ROWS_PER_GROUP) row groups."""
        with (
            self.create(name) as out,
            pq.ParquetWriter(out, schema, compression="zstd", write_page_checksum=True) as writer,
        ):
            for batch in batches:
                table = batch if isinstance(batch, pa.Table) else pa.Table.from_batches([batch])
                writer.write_table(table.cast(schema), row_group_size=ROWS_PER_GROUP)

    def write_json(self, name: str, value: Any) -> None:
        self.files[name] = self.workspace.write_json(name, value)


class Work(Protocol):
    """The work of a step on one unit, on a worker."""

    def run(self, payload: Any, output: UnitOutput, /) -> Mapping[str, int]:
        """Write the unit's files; return its counts.

        May run more than once, even concurrently (retries, speculative execution): must be idempotent.
        """


class Prepare(Protocol):
    """Pickled and sent to the workers of a step."""

    def open(self) -> Work:
        """Create the `Work` of a step, once per process: open the matcher, the index, the event loop."""


@dataclass(frozen=True)
class Stateless:
    """The `Prepare` of work that needs nothing opened."""

    work: Work

    def open(self) -> Work:
        return self.work


_ALWAYS = ("inputs", "kept")
_STATE = ".wit"


def marker_name(step: str, unit: str) -> str:
    return f"{_STATE}/{step}/{unit}.json"


def unit_of(file: str) -> str:
    """Return the name of the unit that wrote a file named after it: without folder and suffixes."""
    return file.rsplit("/", 1)[1].split(".")[0]


def read_marker(workspace: Workspace, step: str, unit: str) -> Marker | None:
    """Return the marker of one unit, or None if it is not done."""
    name = marker_name(step, unit)
    try:
        return _parse(name, workspace.read_bytes(name))
    except FileNotFoundError:
        return None


def read_markers(workspace: Workspace, step: str) -> dict[str, Marker]:
    """Return unit name -> marker of every finished unit of a step."""
    with _without_collections():
        contents = _read_step(workspace, step).contents
        found = {_unit(step, name): _parse(name, content) for name, content in contents.items()}
        return {unit: marker for unit, marker in found.items() if marker is not None}


def read_all_markers(workspace: Workspace) -> dict[str, Marker]:
    """Return marker name -> marker of every finished unit of every step."""
    with _without_collections():
        found = {name: _parse(name, content) for name, content in read_marker_files(workspace, _STATE).contents.items()}
        return {name: marker for name, marker in found.items() if marker is not None}


def _read_step(workspace: Workspace, step: str) -> MarkerFiles:
    return read_marker_files(workspace, f"{_STATE}/{step}")


def _unit(step: str, name: str) -> str:
    return name[len(_STATE) + len(step) + 2 : -len(".json")]


def _parse(name: str, content: bytes) -> Marker | None:
    """Return a marker, or None with a warning if it cannot be read: its unit is then redone."""
    try:
        return Marker.parse(content)
    except ValueError as error:
        logger.warning("%s cannot be read (%s); its unit counts as not done", name, error)
        return None


def missing_outputs(workspace: Workspace) -> list[str]:
    """Return the outputs of finished units that are missing or have another size."""
    markers = read_all_markers(workspace)
    sizes = _sizes(workspace, markers.values())
    return sorted(f for m in markers.values() for f, facts in m.outputs.items() if sizes.get(f) != facts.bytes)


def add_counts(markers: Iterable[Marker]) -> Counter[str]:
    """Return the sum of the counts of some units."""
    total: Counter[str] = Counter()
    for marker in markers:
        for name, count in marker.counts.items():  # of a million units, several times faster than Counter.update
            total[name] += count
    return total


def write_marker(workspace: Workspace, step: str, unit: Unit, output: UnitOutput, counts: Mapping[str, int]) -> None:
    """Mark a unit as done: all its files are written; `counts` are the counts of its rows."""
    nonzero = {name: int(n) for name, n in counts.items() if n or name in _ALWAYS}
    Marker(unit.digest, output.files, nonzero, unit.about).write(workspace, step, unit.name)


_STAGES = "stages"


def finished_stage(workspace: Workspace, stage: str, stage_digest: str) -> Marker | None:
    """Return the marker of a stage that is done with this digest; else delete a stale marker and return None."""
    marker = discard_stale(workspace, _STAGES, [Unit(stage, stage_digest)], only=stage).get(stage)
    if marker is not None:
        workspace.remove_folder(f".wit/{stage}")  # left by a run that was killed between its last two steps
    return marker


def finish_stage(
    workspace: Workspace, stage: str, stage_digest: str, outputs: Mapping[str, FileFacts], counts: Mapping[str, int]
) -> Marker:
    """Mark a stage of several steps as done, drop files of its folder that it does not own, and its scratch files."""
    workspace.remove(sorted(workspace.sizes(stage).keys() - outputs.keys()))
    marker = Marker(stage_digest, dict(outputs), {name: int(n) for name, n in counts.items()})
    marker.write(workspace, _STAGES, stage)
    workspace.remove_folder(f".wit/{stage}")
    return marker


def read_stage(workspace: Workspace, stage: str) -> Marker | None:
    """Return the marker of a stage of several steps, regardless of its digest; None if it is not done."""
    return read_marker(workspace, _STAGES, stage)


def unfinished(workspace: Workspace, step: str, units: Sequence[Unit]) -> bool:
    """Return whether a run of these units would do anything."""
    markers = read_markers(workspace, step)
    return not {unit.name for unit in units} == markers.keys() == _done(workspace, markers, units).keys()


def discard_stale(workspace: Workspace, step: str, units: Sequence[Unit], only: str | None = None) -> dict[str, Marker]:
    """Return the markers of units that are up to date; delete outputs, then markers, of stale ones.

    Files first: a run that is killed in between finds the marker again and removes the rest. With `only`, look at that
    one unit and leave the others alone.
    """
    with _without_collections():
        files, contents = None, {}
        if only is None:
            files = _read_step(workspace, step)
            contents = {_unit(step, name): content for name, content in files.contents.items()}
        else:
            with suppress(FileNotFoundError):
                contents = {only: workspace.read_bytes(marker_name(step, only))}
        parsed = {unit: _parse(marker_name(step, unit), content) for unit, content in contents.items()}
        contents.clear()
        if files is not None and len(files.read) < PACKED_FROM:
            files = None  # of a million units, half a gigabyte
        markers = {unit: marker for unit, marker in parsed.items() if marker is not None}
        done = _done(workspace, markers, units)
    lost = sorted(markers.keys() - done.keys())
    workspace.remove(file for name in lost for file in markers[name].outputs)
    workspace.remove(marker_name(step, name) for name in sorted(parsed.keys() - done.keys()))
    if files is not None:
        write_pack(workspace, f"{_STATE}/{step}", files)
    return done


@contextmanager
def _without_collections() -> Iterator[None]:
    """Make millions of objects, all of which stay, without looking for garbage among them again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def withdraw(workspace: Workspace, file: str) -> bool:
    """Remove a file and the markers of the units that wrote it, so that they are redone; return whether any did."""
    owners = [name for name, marker in read_all_markers(workspace).items() if file in marker.outputs]
    if owners:
        workspace.remove([file])
        workspace.remove(owners)
    return bool(owners)


def _done(workspace: Workspace, markers: Mapping[str, Marker], units: Sequence[Unit]) -> dict[str, Marker]:
    """Return the markers whose digests are those of `units` and whose files exist."""
    wanted = {unit.name: unit.digest for unit in units}
    sizes = _sizes(workspace, markers.values())
    return {
        name: m
        for name, m in markers.items()
        if wanted.get(name) == m.digest and all(sizes.get(f) == facts.bytes for f, facts in m.outputs.items())
    }


def _sizes(workspace: Workspace, markers: Iterable[Marker]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for folder in {name.rpartition("/")[0] for marker in markers for name in marker.outputs}:
        sizes.update(workspace.sizes(folder))
    return sizes
