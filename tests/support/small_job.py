"""A small pipeline of the shape that every stage has: units spread over workers, each writing one file atomically.

It also holds what the stages use of Beam beside that: a global sum of NumPy vectors, and groups. Workers import this
module, so it stands apart from the tests.
"""

import hashlib
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import apache_beam as beam
import numpy as np
import psutil

GROUPS = 7


@dataclass(frozen=True)
class WriteUnit:
    """Write `unit-N`; every call leaves a trace in `calls`, named after the unit, so that repeats can be counted."""

    root: str
    pause_s: float = 0.0

    def __call__(self, unit: int) -> tuple[int, int]:
        calls = Path(self.root, "calls")
        calls.mkdir(parents=True, exist_ok=True)
        (calls / f"{unit}-{os.getpid()}-{uuid.uuid4().hex}").touch()
        time.sleep(self.pause_s)
        content = hashlib.sha256(str(unit).encode()).hexdigest().encode()
        write_atomically(Path(self.root, "tree", f"unit-{unit:03}"), content * (unit + 1))
        return unit, len(content) * (unit + 1)


@dataclass(frozen=True)
class SlowAtFirst(WriteUnit):
    """The same; the first call of unit 0 takes `slow_s`."""

    slow_s: float = 0.0

    def __call__(self, unit: int) -> tuple[int, int]:
        if unit == 0 and not list(Path(self.root).glob("calls/0-*")):
            return WriteUnit(self.root, self.slow_s)(unit)
        return super().__call__(unit)


@dataclass(frozen=True)
class DeadlyAtFirst(WriteUnit):
    """The same; the first `deaths` calls of unit 0 end their process, as a crash of a decoder does."""

    deaths: int = 0

    def __call__(self, unit: int) -> tuple[int, int]:
        row = super().__call__(unit)
        if unit == 0 and len(list(Path(self.root).glob("calls/0-*"))) <= self.deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        return row


@dataclass(frozen=True)
class WriteSum:
    root: str

    def __call__(self, total: np.ndarray) -> None:
        write_atomically(Path(self.root, "tree", "sum"), total.tobytes())


@dataclass(frozen=True)
class WriteGroup:
    root: str

    def __call__(self, key: int, members: Iterable[tuple[int, int]]) -> None:
        write_atomically(Path(self.root, "tree", f"group-{key}"), repr(sorted(members)).encode())


def write_atomically(target: Path, content: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.{uuid.uuid4().hex}.tmp")
    temporary.write_bytes(content)
    temporary.replace(target)


def one_hot(row: tuple[int, int]) -> np.ndarray:
    vector = np.zeros(1000, np.int64)
    vector[row[0]] = row[1]
    return vector


def add(vectors: Iterable[np.ndarray]) -> np.ndarray:
    total = np.zeros(1000, np.int64)
    for vector in vectors:
        total += vector
    return total


def group_of(row: tuple[int, int]) -> tuple[int, tuple[int, int]]:
    return row[0] % GROUPS, row


def small_job(root: Path, units: int, pause_s: float = 0.0) -> Callable[[beam.Pipeline], None]:
    """Return what `run_pipeline` takes: a function that builds the job in a pipeline."""

    def build(pipeline: beam.Pipeline) -> None:
        rows = (
            pipeline
            | "Units" >> beam.Create(range(units), reshuffle=False)
            | "Spread" >> beam.Reshuffle()
            | "Write" >> beam.Map(WriteUnit(str(root), pause_s))
            | "Keep" >> beam.Reshuffle()  # two consumers: without it a runner may run the step above twice
        )
        _ = rows | "OneHot" >> beam.Map(one_hot) | "Sum" >> beam.CombineGlobally(add) | beam.Map(WriteSum(str(root)))
        _ = rows | "Key" >> beam.Map(group_of) | beam.GroupByKey() | beam.MapTuple(WriteGroup(str(root)))

    return build


def tree(root: Path) -> dict[str, bytes]:
    """Return every file the job wrote; the whole folder, so that a temporary file left behind shows."""
    return {path.name: path.read_bytes() for path in Path(root, "tree").iterdir()}


def calls(root: Path) -> list[int]:
    """Return the unit of every call of `WriteUnit`, sorted."""
    return sorted(int(path.name.split("-")[0]) for path in Path(root, "calls").iterdir())


def processes(root: Path) -> set[psutil.Process]:
    """Return the processes that wrote units, of those that are still there."""
    found = {int(path.name.split("-")[1]) for path in Path(root, "calls").iterdir()}
    return {psutil.Process(pid) for pid in found if psutil.pid_exists(pid)}


def fail_as_user(unit: int) -> int:
    from pipeline.errors import UserError

    raise UserError(f"cannot read unit {unit}")


def fail_as_bug(unit: int) -> int:
    raise LookupError(f"no such thing: {unit}")


def units_only(
    root: Path, units: int, pause_s: float = 0.0, write: WriteUnit | None = None
) -> Callable[[beam.Pipeline], None]:
    """Return the job that most stages are: nothing follows the units, whose results are on disk."""

    def build(pipeline: beam.Pipeline) -> None:
        _ = (
            pipeline
            | "Units" >> beam.Create(range(units), reshuffle=False)
            | "Spread" >> beam.Reshuffle()
            | "Write" >> beam.Map(write or WriteUnit(str(root), pause_s))
        )

    return build


def fail_by_ctrl_c(unit: int) -> int:
    raise KeyboardInterrupt
