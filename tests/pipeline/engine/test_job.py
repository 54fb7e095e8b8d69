"""A job in files: every chain is in exactly one slice, and reports of workers add up."""

from collections import Counter
from typing import Any, ClassVar

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engine import job
from pipeline.engine.job import Job, Reporter, Reports
from pipeline.engine.units import Unit
from pipeline.engine.workspace import Workspace


@settings(deadline=None, max_examples=40)
@given(chains=st.integers(0, 40), per_pack=st.integers(1, 9), slices=st.integers(1, 50))
def test_every_chain_is_in_one_slice(tmp_path_factory, chains, per_pack, slices):
    workspace = Workspace(str(tmp_path_factory.mktemp("w")))
    made = [[Unit(f"u{n}-{i}", "d", n) for i in range(n % 3 + 1)] for n in range(chains)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(job, "_CHAINS_PER_PACK", per_pack)
        patched.setattr(job, "_SLICES", slices)
        written = Job.write(workspace, made, b"work")
        cut = [part for pack in written.packs for part in written.slices(pack)]
        assert [chain for part in cut for chain in written.read(workspace, part)] == made
        assert len(cut) <= slices + len(written.packs)
    assert written.read_work(workspace) == b"work"
    written.remove(workspace)
    assert workspace.sizes("") == {}


def test_reports_of_workers_add_up(tmp_path, monkeypatch):
    workspace = Workspace(str(tmp_path))
    written = Job.write(workspace, [], b"")
    reports = Reports(workspace, written)
    assert reports.read() == (0, {}, None)
    monkeypatch.setattr(job, "REPORT_EVERY_S", 0.0)
    now, later = Reporter(workspace, written), Reporter(workspace, written)
    later._every_s = 3_600
    for number in range(3):
        now.add(f"u{number}", {"inputs": 10, "kept": number})
        later.add(f"v{number}", {"inputs": 1, "lost": 1})
    units, counts, _ = reports.read()
    assert (units, counts) == (3, {"inputs": 30, "kept": 3})
    later.flush()
    units, counts, last = reports.read()
    assert (units, counts) == (6, {"inputs": 33, "kept": 3, "lost": 3})
    assert last in ("u2", "v2")
    assert reports.read()[:2] == Reports(workspace, written).read()[:2]


class Counting(MemoryFileSystem):
    """A store in memory that counts its requests: listings, and files read or written."""

    requests: ClassVar[Counter[str]] = Counter()

    def find(self, *args: Any, **how: Any) -> Any:
        self.requests["list"] += 1
        return super().find(*args, **how)

    def cat_file(self, *args: Any, **how: Any) -> Any:
        self.requests["read"] += 1
        return super().cat_file(*args, **how)

    def put_file(self, *args: Any, **how: Any) -> Any:
        self.requests["write"] += 1
        return super().put_file(*args, **how)


def test_watching_hundreds_of_workers_in_a_store_takes_few_requests_and_ends_with_the_sum():
    workspace = Workspace("memory://watched")
    workspace.fs = Counting()
    written = Job.write(workspace, [], b"")
    workers = [Reporter(workspace, written) for _ in range(200)]
    for number, worker in enumerate(workers):
        worker.add(f"u{number}", {"inputs": number})
        worker.flush()
    reports, sums = Reports(workspace, written), []
    Counting.requests.clear()
    looks = 200 // job._READ_AT_ONCE
    for _ in range(looks):
        sums.append(reports.read().units)
    assert Counting.requests["list"] == looks
    assert Counting.requests["read"] == 200
    assert sums == sorted(sums)
    assert reports.read()[:2] == (200, {"inputs": sum(range(200))})
    for worker in workers[::2]:
        worker.add("again", {"inputs": 1})
        worker.flush()
    assert [reports.read().units for _ in range(100 // job._READ_AT_ONCE)][-1] == 300
    written.remove(workspace)
