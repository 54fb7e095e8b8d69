"""Units: done once, redone when what they depend on changes, whole or not at all."""

import json
import threading
from dataclasses import dataclass
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pytest

from pipeline.beam.runner import parse_beam_options
from pipeline.engine.progress import Progress
from pipeline.engine.run import Build, _chains, run_in_order, run_reduction, run_units
from pipeline.engine.units import (
    Unit,
    UnitOutput,
    digest,
    discard_stale,
    finish_stage,
    finished_stage,
    missing_outputs,
    read_markers,
)
from pipeline.engine.workspace import Workspace
from pipeline.errors import UserError
from pipeline.stages.dedup.duplicates import FetchedPart


@dataclass(frozen=True)
class WriteAndLog:
    """Writes `out/<payload>.txt`, and a line to a log outside the workspace for every time it runs."""

    log: str
    text: str = "x"

    def open(self):
        return self

    def run(self, payload, output: UnitOutput):
        with open(self.log, "a") as log:
            log.write(f"{payload}\n")
        with output.create(f"out/{payload}.txt") as out:
            out.write((self.text * payload).encode())
        return {"inputs": payload, "kept": payload}


@pytest.fixture
def build(tmp_path):
    return Build(Workspace(str(tmp_path / "work")), parse_beam_options([]), Progress(None))


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "log"
    path.touch()
    return path


def units(*sizes: int, version: int = 1) -> list[Unit]:
    return [Unit(f"u{n}", digest(version, n), n) for n in sizes]


def runs(log: Path) -> list[int]:
    return sorted(int(line) for line in log.read_text().split())


def tree(root: str) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in Path(root).rglob("*") if p.is_file()}


def test_a_rerun_does_nothing(build, log):
    first = run_units(build, "step", units(1, 2, 3), WriteAndLog(str(log)))
    before = tree(build.workspace.root)
    assert run_units(build, "step", units(1, 2, 3), WriteAndLog(str(log))) == first
    assert runs(log) == [1, 2, 3]
    assert tree(build.workspace.root) == before


def test_only_what_changed_is_redone_and_what_is_not_wanted_goes(build, log):
    run_units(build, "step", units(1, 2, 3), WriteAndLog(str(log)))
    changed = [Unit("u1", digest(1, 1), 1), Unit("u2", digest("other"), 2)]
    run_units(build, "step", changed, WriteAndLog(str(log)))
    assert runs(log) == [1, 2, 2, 3]
    assert set(tree(build.workspace.root)) == {".wit/step/u1.json", ".wit/step/u2.json", "out/1.txt", "out/2.txt"}


def test_a_run_killed_while_it_removes_leaves_nothing_without_an_owner(build, log, monkeypatch):
    run_units(build, "step", units(1, 2, 3), WriteAndLog(str(log)))
    for kills_before in (0, 1, 2):  # the n-th removal is never made
        removals = iter(range(100))

        def rm_file(path, at=kills_before, removals=removals):
            if next(removals) == at:
                raise KeyboardInterrupt
            Path(path).unlink()

        with monkeypatch.context() as killed:
            killed.setattr(build.workspace.fs, "rm_file", rm_file)
            with pytest.raises(KeyboardInterrupt):
                discard_stale(build.workspace, "step", units(1))
    run_units(build, "step", units(1), WriteAndLog(str(log)))
    assert set(tree(build.workspace.root)) == {".wit/step/u1.json", "out/1.txt"}


def test_a_store_may_say_that_files_to_remove_are_not_there():
    workspace = Workspace("memory://bucket/work")
    workspace.write_json("b.json", 1)
    workspace.write_json("d.json", 1)
    workspace.remove(["a.json", "b.json", "c.json", "d.json"])
    assert workspace.sizes("") == {}
    workspace.remove(["a.json", "b.json"])


@pytest.mark.parametrize("damage", [Path.unlink, lambda p: p.write_bytes(b"x")])
def test_a_lost_or_cut_output_is_made_again(build, log, damage):
    run_units(build, "step", units(2, 3), WriteAndLog(str(log)))
    damage(Path(build.workspace.root) / "out/3.txt")
    run_units(build, "step", units(2, 3), WriteAndLog(str(log)))
    assert runs(log) == [2, 3, 3]
    assert (Path(build.workspace.root) / "out/3.txt").read_bytes() == b"xxx"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"format": 2, "digest": "d", "outputs": {}, "counts": {}}',
        b'{"digest": "d", "outputs": {}, "counts": {"inputs": -1}}',
        b'{"digest": "d", "outputs": {"a": {"bytes": 1}}, "counts": {}}',
        b'{"digest": 7, "outputs": {}, "counts": {}}',
        b'{"digest": "d", "outputs": {}, "counts": ["inputs"]}',
    ],
)
def test_a_marker_that_cannot_be_read_is_named_and_its_unit_redone(build, log, caplog, content):
    run_units(build, "step", units(2, 3), WriteAndLog(str(log)))
    before = tree(build.workspace.root)
    (Path(build.workspace.root) / ".wit/step/u3.json").write_bytes(content)
    assert set(read_markers(build.workspace, "step")) == {"u2"}
    assert ".wit/step/u3.json cannot be read" in caplog.text
    run_units(build, "step", units(2, 3), WriteAndLog(str(log)))
    assert runs(log) == [2, 3, 3]
    assert tree(build.workspace.root) == before


@pytest.mark.parametrize("name", ["../victim", "a/../../victim", "/tmp/victim", "", "a//b", "out/."])
def test_a_marker_never_deletes_outside_the_workspace(build, log, tmp_path, name):
    (tmp_path / "victim").write_text("keep")
    run_units(build, "step", units(2), WriteAndLog(str(log)))
    marker = Path(build.workspace.root) / ".wit/step/u2.json"
    value = json.loads(marker.read_text())
    value["outputs"] = {name: {"bytes": 4, "sha256": "0" * 64}}
    marker.write_text(json.dumps(value))
    assert discard_stale(build.workspace, "step", []) == {}
    assert not marker.exists()
    assert (tmp_path / "victim").read_text() == "keep"
    with pytest.raises(ValueError, match="workspace"):
        build.workspace.remove(["../victim"])


def test_markers_of_earlier_versions_are_read(build, log):
    run_units(build, "step", units(2), WriteAndLog(str(log)))
    marker = Path(build.workspace.root) / ".wit/step/u2.json"
    value = json.loads(marker.read_text())
    del value["format"]
    marker.write_text(json.dumps(value))
    run_units(build, "step", units(2), WriteAndLog(str(log)))
    assert runs(log) == [2]


def test_missing_outputs_are_listed_by_name_and_size(build, log):
    run_units(build, "step", units(1, 2, 3), WriteAndLog(str(log)))
    assert missing_outputs(build.workspace) == []
    (Path(build.workspace.root) / "out/1.txt").unlink()
    (Path(build.workspace.root) / "out/3.txt").write_text("x")
    assert missing_outputs(build.workspace) == ["out/1.txt", "out/3.txt"]


@pytest.mark.parametrize("folder", ["a[1]b", "a*b", "what?", "{x}", "~", "sp ace", "$HOME"])
def test_a_workspace_may_have_any_name(tmp_path, log, folder):
    beside = tmp_path / "a1b"
    beside.mkdir()
    (beside / "mine").touch()
    build = Build(Workspace(str(tmp_path / folder)), parse_beam_options([]), Progress(None))
    run_units(build, "step", units(1, 2), WriteAndLog(str(log)))
    run_units(build, "step", units(1, 2), WriteAndLog(str(log)))
    assert runs(log) == [1, 2]
    build.workspace.move({"out/1.txt": "moved/1.txt"})
    build.workspace.remove_folder("out")
    assert set(build.workspace.sizes("")) == {".wit/step/u1.json", ".wit/step/u2.json", "moved/1.txt"}
    assert (beside / "mine").exists()


def test_repeated_bundles_work_once(build, log):
    options = parse_beam_options(["--direct_runner_bundle_repeat=2"])
    run_units(Build(build.workspace, options, Progress(None)), "step", units(1, 2), WriteAndLog(str(log)))
    assert runs(log) == [1, 2]


@dataclass(frozen=True)
class OvertakenByATwin:
    """The first run of a unit is overtaken: the file that stands in the end is another worker's."""

    log: str

    def open(self):
        return self

    def run(self, payload, output: UnitOutput):
        counts = WriteAndLog(self.log).run(payload, output)
        if runs(Path(self.log)) == [payload]:
            with output.workspace.create(f"out/{payload}.txt") as out:
                out.write(b"other answers")
        return counts


def test_a_unit_whose_files_are_not_those_of_its_marker_runs_again(build, log):
    run_units(build, "step", units(3), OvertakenByATwin(str(log)))
    assert runs(log) == [3, 3]
    assert (Path(build.workspace.root) / "out/3.txt").read_bytes() == b"xxx"


@dataclass(frozen=True)
class LeaveNothing:
    def open(self):
        return self

    def run(self, payload, output: UnitOutput):
        with output.create("out/gone.txt") as out:
            out.write(b"gone")
        output.workspace.remove(["out/gone.txt"])
        return {"inputs": 1, "kept": 1}


def test_a_unit_that_never_leaves_a_result_is_named(build):
    with pytest.raises(UserError, match="unit u3 left no result"):
        run_units(build, "step", units(3), LeaveNothing())


def test_the_graph_of_a_job_does_not_grow_with_its_units(build, log, monkeypatch):
    sizes = []

    def note(wire, options):
        pipeline = beam.Pipeline(options=options)
        wire(pipeline)
        sizes.append(len(pipeline.to_runner_api().SerializeToString()))
        raise UserError("stopped")

    monkeypatch.setattr("pipeline.engine.run.run_pipeline", note)
    for count in (2, 40_000):
        many = [Unit(f"part-{n:05d}", digest(n), FetchedPart(n, f"part-{n:05d}")) for n in range(count)]
        with pytest.raises(UserError):
            run_units(build, "step", many, WriteAndLog(str(log)))
    assert sizes[1] < sizes[0] + 10_000
    assert build.workspace.sizes("") == {}


def test_a_resume_reads_the_markers_that_changed_since_they_were_packed(build, log, monkeypatch):
    monkeypatch.setattr("pipeline.engine.units.PACKED_FROM", 3)
    read: list[str] = []
    read_files = Workspace.read_files

    def note(workspace, names):
        read.extend(name for name in names if name.endswith(".json"))
        return read_files(workspace, names)

    monkeypatch.setattr(Workspace, "read_files", note)
    first = run_units(build, "step", units(1, 2, 3, 4), WriteAndLog(str(log)))
    read.clear()
    assert run_units(build, "step", units(1, 2, 3, 4), WriteAndLog(str(log))) == first
    assert read == []
    marker = Path(build.workspace.root) / ".wit/step/u3.json"
    content = marker.read_bytes()
    marker.unlink()
    marker.write_bytes(content.replace(b'"kept": 3', b'"kept": 2'))
    assert read_markers(build.workspace, "step")["u3"].counts["kept"] == 2
    assert read == [".wit/step/u3.json"]
    (Path(build.workspace.root) / ".wit/step/markers.packed").write_bytes(b"PAR1 damaged")
    read.clear()
    assert set(read_markers(build.workspace, "step")) == {"u1", "u2", "u3", "u4"}
    assert len(read) == 4
    marker.unlink()
    run_units(build, "step", units(1, 2, 3, 4), WriteAndLog(str(log)))
    assert runs(log) == [1, 2, 3, 3, 4]


def test_units_of_a_chain_run_in_their_order_and_others_as_ever(build, log):
    chained = [Unit(f"u{n}", digest(n), n, chain=f"{n % 2}") for n in range(1, 9)]
    done = run_units(build, "step", chained, WriteAndLog(str(log)))
    assert list(done) == [unit.name for unit in chained]
    order = [int(line) for line in log.read_text().split()]
    assert [n for n in order if n % 2] == [1, 3, 5, 7]
    assert [n for n in order if not n % 2] == [2, 4, 6, 8]
    assert len(_chains([*chained, *units(20, 21)])) == 4


def test_items_start_in_order_and_none_after_a_failure():
    both, seen = threading.Barrier(2), []

    def run(item: int) -> None:
        seen.append(item)
        if item < 2:
            both.wait(60)  # passes only if two run at once
        if item == 3:
            raise UserError("three")

    run_in_order(run, [0, 1, 2], 2)
    assert sorted(seen) == [0, 1, 2]
    seen.clear()
    with pytest.raises(UserError, match="three"):
        run_in_order(run, [3, 4, 5], 1)
    assert seen == [3]
    with pytest.raises(UserError, match="three"):
        run_in_order(run, [3] + [4] * 1_000, 2)
    assert len(seen) < 1_000


@dataclass(frozen=True)
class FailHalfWay:
    def open(self):
        return self

    def run(self, payload, output: UnitOutput):
        with output.create("out/half.txt") as out:
            out.write(b"half")
            raise UserError(f"unit {payload} met a stranger")


def test_a_failure_is_one_line_and_leaves_no_half_file(build):
    with pytest.raises(UserError, match=r"^unit 7 met a stranger$"):
        run_units(build, "step", units(7), FailHalfWay())
    assert tree(build.workspace.root) == {}


def test_stage_markers_own_their_folder(build, log):
    run_units(build, "plan/write", units(1, 2), WriteAndLog(str(log)))
    marker = read_markers(build.workspace, "plan/write")["u1"]
    build.workspace.write_json("plan/old.json", 1)
    (
        done := finish_stage(
            build.workspace, "plan", "d1", {"plan/new.json": build.workspace.write_json("plan/new.json", 2)}, {}
        )
    )
    assert not build.workspace.exists("plan/old.json")
    assert not build.workspace.exists(".wit/plan")
    assert marker.outputs
    assert finished_stage(build.workspace, "plan", "d1") == done
    assert finished_stage(build.workspace, "plan", "d2") is None
    assert not build.workspace.exists("plan/new.json")


def test_a_reduction_is_written_once(build):
    class Sum:
        def wire(self, pipeline: beam.Pipeline) -> beam.PCollection:
            return (
                pipeline | beam.Create([1, 2, 3]) | beam.CombineGlobally(sum) | beam.Map(lambda n: pa.table({"n": [n]}))
            )

    class Refuse:
        def wire(self, pipeline: beam.Pipeline) -> beam.PCollection:
            raise AssertionError("it was done")

    first = run_reduction(build, "sum", Unit("sum", "d"), "out/sum.parquet", Sum())
    assert build.workspace.read_table("out/sum.parquet")["n"].to_pylist() == [6]
    assert run_reduction(build, "sum", Unit("sum", "d"), "out/sum.parquet", Refuse()) == first


def test_digests_follow_values_not_order_of_keys():
    assert digest({"a": 1, "b": [2]}) == digest(json.loads('{"b": [2], "a": 1}'))
    assert digest({"a": 1}) != digest({"a": "1"})
    assert digest("a", "b") != digest("ab")


def test_units_of_one_name_are_refused(build, log):
    twins = [Unit("u", "1", 1), Unit("u", "2", 2)]
    with pytest.raises(ValueError, match="duplicate unit name"):
        run_units(build, "step", twins, WriteAndLog(str(log)))
    assert runs(log) == []
