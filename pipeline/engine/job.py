"""A job's units in files of the workspace, so that Beam's graph holds numbers only; and how far its workers are.

A graph has limits (Dataflow: 10 MB) and is sent around as a whole; 720,000 units would be 100 MB. Workers say how far
they are in a small file each, so a driver that watches reads as many files as there are workers, not units.
"""

import json
import logging
import pickle
import threading
import time
import uuid
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from pipeline.engine.units import Unit
from pipeline.engine.workspace import FileVersion, Workspace

logger = logging.getLogger(__name__)

_CHAINS_PER_PACK = 1_000
_SLICES = 20_000
"""Of a job, about: each is given to a worker as a whole. A job of fewer chains gives them out one by one."""
REPORT_EVERY_S, REPORT_EVERY_S_IN_STORES = 1.0, 30.0
_READ_AT_ONCE = 4
"""Reports that are read of a store at a time: a look at hundreds of workers costs no more requests than at few."""


@dataclass(frozen=True)
class Slice:
    """Some chains of one file of a job. Of a NamedTuple, Beam would make a row of its own."""

    pack: int
    first: int
    end: int


@dataclass(frozen=True)
class Job:
    """`chains` chains of units, and `work`, which opens their work: in files of a folder of the workspace."""

    folder: str
    chains: int

    @classmethod
    def write(cls, workspace: Workspace, chains: Sequence[list[Unit]], work: bytes) -> "Job":
        job = cls(f".wit/tmp/job-{uuid.uuid4().hex}", len(chains))
        for pack in job.packs:
            of_pack = chains[pack * _CHAINS_PER_PACK : (pack + 1) * _CHAINS_PER_PACK]
            with workspace.create(job._file(pack)) as out:
                out.write(zlib.compress(pickle.dumps(of_pack), 1))
        with workspace.create(f"{job.folder}/work") as out:
            out.write(work)
        return job

    @property
    def packs(self) -> list[int]:
        return list(range(-(-self.chains // _CHAINS_PER_PACK)))

    def slices(self, pack: int) -> list[Slice]:
        """Return the slices of one file."""
        size, chains = -(-self.chains // _SLICES), min(_CHAINS_PER_PACK, self.chains - pack * _CHAINS_PER_PACK)
        return [Slice(pack, first, min(first + size, chains)) for first in range(0, chains, size)]

    def all_slices(self, _: bytes) -> list[Slice]:
        """Return the slices of all files; the argument is what Beam's Impulse gives."""
        return [part for pack in self.packs for part in self.slices(pack)]

    def read(self, workspace: Workspace, part: Slice) -> list[list[Unit]]:
        """Return the chains of a slice."""
        of_pack = pickle.loads(zlib.decompress(workspace.read_bytes(self._file(part.pack))))
        return cast(list[list[Unit]], of_pack[part.first : part.end])

    def read_work(self, workspace: Workspace) -> bytes:
        return workspace.read_bytes(f"{self.folder}/work")

    def remove(self, workspace: Workspace) -> None:
        workspace.remove_folder(self.folder)

    @property
    def reports(self) -> str:
        return f"{self.folder}/reports"

    def _file(self, pack: int) -> str:
        return f"{self.folder}/{pack:05d}"


class Reporter:
    """Says in a file of its own what a worker has finished, every second or so. Safe to use from threads."""

    def __init__(self, workspace: Workspace, job: Job) -> None:
        self._workspace, self._name = workspace, f"{job.reports}/{uuid.uuid4().hex}"
        self._every_s = REPORT_EVERY_S if workspace.is_local else REPORT_EVERY_S_IN_STORES
        self._written_s = time.monotonic()
        self._lock = threading.Lock()
        self._units, self._counts, self._last = 0, Counter[str](), ""
        self._is_new = False

    def add(self, unit: str, counts: Mapping[str, int]) -> None:
        """Count a unit that was finished now."""
        with self._lock:
            self._units, self._last, self._is_new = self._units + 1, unit, True
            self._counts.update(counts)
            if time.monotonic() - self._written_s >= self._every_s:
                self._write()

    def flush(self) -> None:
        """Write what is not written yet."""
        with self._lock:
            if self._is_new:
                self._write()

    def _write(self) -> None:
        self._written_s, self._is_new = time.monotonic(), False
        told = {"units": self._units, "counts": {name: int(n) for name, n in self._counts.items()}, "last": self._last}
        try:
            with self._workspace.create(self._name) as out:
                out.write(json.dumps(told).encode())
        except Exception as error:  # any error of a store; the work goes on
            logger.debug("%s cannot be written: %s", self._name, error)


class Reported(NamedTuple):
    """What the workers of a job have finished: units, their counts together, and one of them."""

    units: int
    counts: Mapping[str, int]
    last: str | None


class Reports:
    """Adds up the reports of a job's workers, as often as `read` is called.

    Of a store, `_READ_AT_ONCE` reports that have changed are read each time, those first that were read longest ago; of
    the others, what they said then counts. Units that a runner gives out twice may be counted twice.
    """

    def __init__(self, workspace: Workspace, job: Job) -> None:
        self._workspace, self._folder = workspace, job.reports
        self._read: dict[str, tuple[FileVersion, dict[str, Any]]] = {}  # in the order in which they were read

    def read(self) -> Reported:
        """Return the sum of what is known."""
        versions = self._workspace.versions(self._folder)
        known = {name: version for name, (version, _) in self._read.items()}
        order = {name: place for place, name in enumerate(known)}
        changed = [name for name in versions if not versions[name].tag or known.get(name) != versions[name]]
        changed.sort(key=lambda name: order.get(name, -1))
        if not self._workspace.is_local:
            changed = changed[:_READ_AT_ONCE]
        for name, content in zip(changed, self._workspace.read_files(changed), strict=True):
            self._read.pop(name, None)
            self._read[name] = versions[name], json.loads(content)
        units, counts, last = 0, Counter[str](), None
        for _, told in self._read.values():
            units, last = units + told["units"], told["last"]
            counts.update(told["counts"])
        return Reported(units, counts, last)
