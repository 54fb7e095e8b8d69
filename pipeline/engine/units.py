"""Units of work: the whole resume story, the same on every runner.

A step is a list of units. A unit reads files and writes files; when they all stand, its marker is written under
`.wit/<step>/<unit>.json` with a digest of everything the output depends on. A rerun skips the units whose marker has
the same digest and whose files are there; it redoes the others and removes what no unit owns any more.

Nothing here knows Beam: run.py spreads the units over workers.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.engine.workspace import FileFacts, HashingFile, Workspace

ROWS_PER_GROUP = 16_384
"""Rows in one Parquet row group: what a reader holds at a time."""


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


@dataclass(frozen=True)
class Marker:
    """A finished unit: what it wrote, and what became of its rows (`counts`, with the keys `inputs` and `kept`)."""

    digest: str
    outputs: dict[str, FileFacts]
    counts: dict[str, int]

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Marker":
        outputs = {name: FileFacts(**facts) for name, facts in value["outputs"].items()}
        return cls(value["digest"], outputs, value["counts"])

    def to_json(self) -> dict[str, Any]:
        outputs = {name: {"bytes": f.bytes, "sha256": f.sha256} for name, f in sorted(self.outputs.items())}
        return {"digest": self.digest, "outputs": outputs, "counts": self.counts}


@dataclass
class UnitOutput:
    """What a unit writes, recorded for its marker."""

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
        with self.create(name) as out, pq.ParquetWriter(out, schema, compression="zstd") as writer:
            for batch in batches:
                table = batch if isinstance(batch, pa.Table) else pa.Table.from_batches([batch])
                writer.write_table(table.cast(schema), row_group_size=ROWS_PER_GROUP)

    def write_json(self, name: str, value: Any) -> None:
        self.files[name] = self.workspace.write_json(name, value)


class Work(Protocol):
    """What a step does with one unit, on a worker."""

    def run(self, payload: Any, output: UnitOutput, /) -> Mapping[str, int]:
        """Write the unit's files; return its counts.

        May run more than once, even concurrently (retries, speculative execution): must be idempotent.
        """


class Prepare(Protocol):
    """What travels to the workers of a step."""

    def open(self) -> Work:
        """Make the `Work` of a step, once per process: open the automaton, the index, the event loop."""


@dataclass(frozen=True)
class Stateless:
    """The `Prepare` of work that needs nothing opened."""

    work: Work

    def open(self) -> Work:
        return self.work


_ALWAYS = ("inputs", "kept")


def marker_name(step: str, unit: str) -> str:
    return f".wit/{step}/{unit}.json"


def read_marker(workspace: Workspace, step: str, unit: str) -> Marker | None:
    """Return the marker of one unit, or None if it is not done."""
    try:
        return Marker.from_json(workspace.read_json(marker_name(step, unit)))
    except FileNotFoundError:
        return None


def read_markers(workspace: Workspace, step: str) -> dict[str, Marker]:
    """Return unit name -> marker of every finished unit of a step."""
    prefix = f".wit/{step}/"
    found = workspace.read_jsons(f".wit/{step}")
    return {name[len(prefix) : -len(".json")]: Marker.from_json(value) for name, value in found.items()}


def add_counts(markers: Iterable[Marker]) -> Counter[str]:
    """Return the sum of the counts of some units."""
    total: Counter[str] = Counter()
    for marker in markers:
        total.update(marker.counts)
    return total


def write_marker(workspace: Workspace, step: str, unit: Unit, output: UnitOutput, counts: Mapping[str, int]) -> None:
    """Say that a unit is done: its files stand, and `counts` is what became of its rows."""
    nonzero = {name: int(n) for name, n in counts.items() if n or name in _ALWAYS}
    workspace.write_json(marker_name(step, unit.name), Marker(unit.digest, output.files, nonzero).to_json())


_STAGES = "stages"


def finished_stage(workspace: Workspace, stage: str, stage_digest: str) -> Marker | None:
    """Return the marker of a stage that is done with this digest, or None after withdrawing a marker that is not."""
    marker = discard_stale(workspace, _STAGES, [Unit(stage, stage_digest)], only=stage).get(stage)
    if marker is not None:
        workspace.remove_folder(f".wit/{stage}")  # left by a run killed between its last two steps
    return marker


def finish_stage(
    workspace: Workspace, stage: str, stage_digest: str, outputs: Mapping[str, FileFacts], counts: Mapping[str, int]
) -> Marker:
    """Mark a stage of several steps as done, drop files of its folder that it does not own, and its scratch files."""
    workspace.remove(sorted(workspace.sizes(stage).keys() - outputs.keys()))
    marker = Marker(stage_digest, dict(outputs), {name: int(n) for name, n in counts.items()})
    workspace.write_json(marker_name(_STAGES, stage), marker.to_json())
    workspace.remove_folder(f".wit/{stage}")
    return marker


def read_stage(workspace: Workspace, stage: str) -> Marker | None:
    """Return the marker of a stage of several steps, whatever its digest; None if it is not done."""
    return read_marker(workspace, _STAGES, stage)


def unfinished(workspace: Workspace, step: str, units: Sequence[Unit]) -> bool:
    """Tell whether a run of these units would do anything."""
    markers = read_markers(workspace, step)
    return not {unit.name for unit in units} == markers.keys() == _done(workspace, markers, units).keys()


def discard_stale(workspace: Workspace, step: str, units: Sequence[Unit], only: str | None = None) -> dict[str, Marker]:
    """Return the markers of units that are up to date; delete outputs, then markers, of stale ones.

    Files first: a run that is killed in between finds the marker again and removes the rest. With `only`, look at that
    one unit and leave the others alone.
    """
    if only is None:
        markers = read_markers(workspace, step)
    else:
        one = read_marker(workspace, step, only)
        markers = {} if one is None else {only: one}
    done = _done(workspace, markers, units)
    lost = sorted(markers.keys() - done.keys())
    workspace.remove(file for name in lost for file in markers[name].outputs)
    workspace.remove(marker_name(step, name) for name in lost)
    return done


def _done(workspace: Workspace, markers: Mapping[str, Marker], units: Sequence[Unit]) -> dict[str, Marker]:
    """Return the markers that say what `units` ask for, and whose files are there."""
    wanted = {unit.name: unit.digest for unit in units}
    folders = {name.rsplit("/", 1)[0] for m in markers.values() for name in m.outputs}
    sizes = {name: size for folder in folders for name, size in workspace.sizes(folder).items()}
    return {
        name: m
        for name, m in markers.items()
        if wanted.get(name) == m.digest and all(sizes.get(f) == facts.bytes for f, facts in m.outputs.items())
    }
