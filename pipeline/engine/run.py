"""Run units of work (units.py) on Beam, which only distributes them to workers.

A bundle that a runner repeats finds its markers and does nothing, so nothing here depends on a runner's guarantees.
"""

import copy
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import apache_beam as beam
import pyarrow as pa
from apache_beam.internal import pickler
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions
from apache_beam.utils.shared import Shared

from pipeline.beam.runner import run_pipeline, worker_count
from pipeline.config import MEMORY_BYTES
from pipeline.engine.disk_space import short_of_space, wait_for_space
from pipeline.engine.job import REPORT_EVERY_S_IN_STORES, Job, Reporter, Reports, Slice
from pipeline.engine.progress import Progress, StepProgress
from pipeline.engine.units import (
    Marker,
    Prepare,
    Unit,
    UnitOutput,
    Work,
    discard_stale,
    read_marker,
    write_marker,
)
from pipeline.engine.workspace import Workspace
from pipeline.errors import UserError

logger = logging.getLogger(__name__)

_ATTEMPTS = 3
_OF_ROWS = 0.5
"""The share of a process's memory for the rows that it sorts. The rest is for its code, the queries (some 400 MB where
they are half a million) and what it writes.
"""


class Reduction(Protocol):
    """A pipeline that ends in one table."""

    def wire(self, pipeline: beam.Pipeline, /) -> "beam.pvalue.PCollection[Any]":
        """Return a collection of one pa.Table."""


@dataclass(frozen=True)
class Build:
    """What every stage needs: the workspace, Beam's options, the progress output, the space that disks must keep, and
    the memory that a worker process may take.
    """

    workspace: Workspace
    options: PipelineOptions
    progress: Progress
    min_free_bytes: int = 0
    memory_bytes: int = MEMORY_BYTES

    def rows_at_once(self, row_bytes: int) -> int:
        """Return how many rows a worker may hold that take `row_bytes` each, with the copies that are made of them."""
        return max(1, int(self.memory_bytes * _OF_ROWS) // row_bytes)


class _RunUnit(beam.DoFn):
    def __init__(self, step: str, root: str, job: Job, at_once: int, min_free_bytes: int) -> None:
        self._step, self._root, self._job, self._at_once = step, root, job, at_once
        self._min_free_bytes = min_free_bytes
        self._shared = Shared()

    def setup(self) -> None:
        self._workspace = Workspace(self._root)
        self._work = self._shared.acquire(self._open)
        self._reporter = Reporter(self._workspace, self._job)

    def _open(self) -> Work:
        prepare: Prepare = pickler.loads(self._job.read_work(self._workspace))
        return prepare.open()

    def process(self, part: Slice) -> Iterator[int]:
        chains = self._job.read(self._workspace, part)
        for chain in chains:
            run_in_order(self._run, chain, self._at_once)
        yield len(chains)

    def finish_bundle(self) -> None:
        self._reporter.flush()

    def _run(self, unit: Unit) -> None:
        marker = read_marker(self._workspace, self._step, unit.name)
        if marker is None or marker.digest != unit.digest:
            wait_for_space(self._workspace, self._min_free_bytes)
            output = UnitOutput(self._workspace)
            counts = self._work.run(unit.payload, output)
            write_marker(self._workspace, self._step, unit, output, counts)
            self._reporter.add(unit.name, counts)


Item = TypeVar("Item")


def run_in_order(run: Callable[[Item], None], items: Sequence[Item], at_once: int) -> None:
    """Start `run` on the items in their order, at most `at_once` at a time; after a failure start no more.

    The threads are daemons: an interrupted program does not wait for them.
    """
    if at_once == 1 or len(items) < 2:
        for item in items:
            run(item)
        return
    waiting, errors, lock = deque(items), list[BaseException](), threading.Lock()

    def work() -> None:
        while True:
            with lock:
                if errors or not waiting:
                    return
                item = waiting.popleft()
            try:
                run(item)
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=work, name=f"unit-{n}", daemon=True) for n in range(min(at_once, len(items)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def run_units(
    build: Build, step: str, units: Sequence[Unit], prepare: Prepare, *, at_once: int = 1
) -> dict[str, Marker]:
    """Run the units of a step that are not done yet; return the markers of all of them, in the order of `units`.

    Of a chain, `at_once` units run at a time; their work must be safe to use from threads.

    A runner may give a unit to two workers at once, and the files of one may then not match the marker of the other,
    because two requests for a URL can get different responses. Such a unit is not done, and runs again.
    """
    if len({unit.name for unit in units}) < len(units):
        raise ValueError(f"{step}: duplicate unit name")
    done = discard_stale(build.workspace, step, units)
    with build.progress.step(step, len(units), done) as bar:
        for _ in range(_ATTEMPTS):
            todo = [unit for unit in units if unit.name not in done]
            if not todo:
                break
            _run_on_beam(build, step, todo, prepare, at_once, bar)
            done = discard_stale(build.workspace, step, units)
        else:
            _check_done(step, units, done)
        bar.finish(done)
    return {unit.name: done[unit.name] for unit in units}


def run_reduction(build: Build, step: str, unit: Unit, output: str, reduction: Reduction) -> Marker:
    """Run a pipeline that ends in exactly one table, written to `output`; skipped like a unit if it is done."""
    done = discard_stale(build.workspace, step, [unit])
    with build.progress.step(step, 1, done) as bar:
        if not done:
            writer = _WriteReduction(build.workspace.root, step, unit, output)
            run_pipeline(lambda pipeline: reduction.wire(pipeline) | "Write" >> beam.Map(writer.write), build.options)
            done = discard_stale(build.workspace, step, [unit])
            _check_done(step, [unit], done)
        bar.finish(done)
    return done[unit.name]


@dataclass(frozen=True)
class _WriteReduction:
    root: str
    step: str
    unit: Unit
    output: str

    def write(self, table: pa.Table) -> str:
        workspace = Workspace(self.root)
        output = UnitOutput(workspace)
        output.write_table(self.output, table)
        write_marker(workspace, self.step, self.unit, output, {})
        return self.unit.name


def _check_done(step: str, units: Sequence[Unit], done: Mapping[str, Marker]) -> None:
    for unit in units:
        if unit.name not in done:
            raise UserError(
                f"{step}: the runner reported success, but unit {unit.name} left no result; run again to resume"
            )


def _run_on_beam(
    build: Build, step: str, units: Sequence[Unit], prepare: Prepare, at_once: int, bar: StepProgress
) -> None:
    job = Job.write(build.workspace, _chains(units), pickler.dumps(prepare))
    options = build.options if job.chains > 1 else _in_this_process(build.options)

    def wire(pipeline: beam.Pipeline) -> None:
        run = "Run" >> beam.ParDo(_RunUnit(step, build.workspace.root, job, at_once, build.min_free_bytes))
        if worker_count(options) == 1:
            # With nothing to spread, the fewest transforms: Beam takes CPU for each in each of a build's many steps.
            _ = pipeline | beam.Impulse() | "Slices" >> beam.FlatMap(job.all_slices) | run
            return
        _ = (
            pipeline
            # One reshuffle, or one worker would do everything; but not two, and Create has one of its own. The input of
            # the second would be in random order, which Spark cannot recompute when a worker dies, so the job would
            # fail.
            | "Packs" >> beam.Create(job.packs, reshuffle=False)
            | "Slices" >> beam.FlatMap(job.slices)
            | "Spread" >> beam.Reshuffle()
            | run
        )

    try:
        with _watching(build, job, bar):
            run_pipeline(wire, options)
    finally:
        job.remove(build.workspace)


def _chains(units: Sequence[Unit]) -> list[list[Unit]]:
    """Group units into chains."""
    chains: dict[str, list[Unit]] = {}
    for number, unit in enumerate(units):
        chains.setdefault(f"chain {unit.chain}" if unit.chain else f"unit {number}", []).append(unit)
    return list(chains.values())


def _in_this_process(options: PipelineOptions) -> PipelineOptions:
    """Return options that do not start local worker processes, which take longer than one small unit."""
    if options.view_as(StandardOptions).runner != "FnApiRunner":
        return options
    alone = copy.deepcopy(options)
    alone.view_as(DirectOptions).direct_running_mode = "in_memory"
    return alone


@contextmanager
def _watching(build: Build, job: Job, bar: StepProgress) -> Iterator[None]:
    """Report finished units while a pipeline runs: reports are data, so this works on every runner."""
    workspace = build.workspace
    interval_s = bar.interval_s if workspace.is_local else REPORT_EVERY_S_IN_STORES
    stop = threading.Event()
    reports = Reports(workspace, job)
    seen = 0

    def watch() -> None:
        nonlocal seen
        while not stop.wait(interval_s):
            try:
                reported = reports.read()
                if reported.units > seen:
                    seen = reported.units
                    bar.advance(*reported)
                bar.heartbeat(paused=short_of_space(workspace, build.min_free_bytes))
            except (OSError, ValueError) as error:  # an error while reading progress must not stop the work
                logger.debug("progress of %s: %s", bar.name, error)

    thread = threading.Thread(target=watch, name=f"progress-{bar.name}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
