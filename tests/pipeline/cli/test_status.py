"""`wit status`: who runs a build and how far it is, what is open after an interruption, and where pairs are lost."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from support.recorded_web import make_project

from pipeline.beam.runner import parse_beam_options
from pipeline.cli.main import main
from pipeline.engine import disk_space
from pipeline.engine.progress import Progress
from pipeline.engine.run import Build, run_units
from pipeline.engine.run_record import RunKeeper, RunRecord, StepState, keeping_run, read_run
from pipeline.engine.units import Stateless, Unit
from pipeline.engine.workspace import Workspace
from pipeline.errors import UserError

STEP = StepState("fetched", 400, 120, 20, 1_000, 50.0, 20.0, 140.0, {"inputs": 1_000, "kept": 700, "timeout": 300})


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = make_project(tmp_path_factory.mktemp("status"))
    assert main(["build", "-c", str(config), "--quiet"]) == 0
    return config


@pytest.fixture
def project(tmp_path: Path) -> Path:
    config = tmp_path / "wit.toml"
    sources = '[[sources]]\nkind = "wat"\npaths = ["x"]\n'
    config.write_text(f'workspace = "work"\n[allowlist]\npath = "queries.parquet"\n{sources}')
    return config


def write_record(config: Path, **changes: object) -> None:
    keeper = RunKeeper(Workspace(str(config.parent / "work")), "wit build", ("pairs", "plan", "fetched"))
    keeper.update(at_once=True, stage="fetched", step=STEP)
    record = asdict(replace(keeper._record, **changes))  # type: ignore[arg-type]
    (config.parent / "work/.wit/run").write_text(json.dumps(record))


def test_a_running_build_is_shown(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_record(project)
    assert main(["status", "-c", str(project)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"running: wit build, process {os.getpid()} of ")
    assert "stage 3 of 3 fetched: fetched        120/400 units  20 already done  20 rows/s  2m20s left" in out
    assert "timeout 30.0%" in out
    assert main(["status", "-c", str(project), "--json"]) == 0
    run = json.loads(capsys.readouterr().out)["run"]
    assert (run["state"], run["stage"], run["stage_number"], run["step"]["done"]) == ("running", "fetched", 3, 120)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"process": 2**22 + 1}, "killed, or its machine is gone"),
        ({"host": "elsewhere", "heard": 1.0}, "killed, or its machine is gone"),
        ({"state": "stopped", "cause": "no space left"}, "no space left (wit build"),
    ],
)
def test_after_an_interruption_it_says_what_is_open(
    project: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object], said: str
) -> None:
    write_record(project, **changes)
    assert main(["status", "-c", str(project)]) == 0
    out = capsys.readouterr().out
    assert said in out
    assert "open: 280 of 400 units of fetched; run `wit build` to resume" in out
    main(["status", "-c", str(project), "--json"])
    assert json.loads(capsys.readouterr().out)["run"]["state"] == "stopped"


def test_a_run_elsewhere_is_alive_while_it_is_heard_of(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_record(project, host="elsewhere", process=2**22 + 1)
    main(["status", "-c", str(project)])
    assert capsys.readouterr().out.startswith("running: ")


def test_a_damaged_record_is_none(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_record(project)
    for content in ("", "{}", '{"step": 3}', "[]"):
        (project.parent / "work/.wit/run").write_text(content)
        assert main(["status", "-c", str(project)]) == 0
        assert capsys.readouterr().out == "nothing has been built yet: run `wit build`\n"


def test_watching_ends_when_nothing_runs(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_record(project)
    workspace = Workspace(str(project.parent / "work"))
    timer = threading.Timer(0.5, lambda: workspace.remove([".wit/run"]))
    timer.start()
    assert main(["status", "-c", str(project), "--json", "--watch", "0.1"]) == 0
    timer.join()
    states = [json.loads(line)["run"] for line in capsys.readouterr().out.splitlines()]
    assert len(states) > 1
    assert states[0]["state"] == "running"
    assert states[-1] is None


def test_wrong_arguments_are_one_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["status", "-c", str(project), "--watch", "soon"])
    assert "not a number of seconds" in capsys.readouterr().err


def test_sources_and_reasons_have_examples(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "-c", str(built), "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["closes"]
    assert status["problems"] == []
    assert [source["files"] for source in status["sources"]] == [1, 1, 1]  # beside the config: no folder in common
    pairs = status["account"][0]
    assert sum(source["inputs"] for source in status["sources"]) == pairs["inputs"]
    assert sum(source["reasons"].get("no_match", 0) for source in status["sources"]) == pairs["reasons"].get(
        "no_match", 0
    )
    assert all(url.startswith("http://host") for urls in status["examples"].values() for url in urls)
    assert "not_in_archives" in status["examples"]
    assert main(["status", "-c", str(built)]) == 0
    assert "for example" in capsys.readouterr().out


def test_the_stages_of_the_account_are_those_of_the_build(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.project import STAGES

    main(["status", "-c", str(built), "--json"])
    names = [stage["stage"] for stage in json.loads(capsys.readouterr().out)["account"]]
    assert set(names) - {"balance"} == set(STAGES) - {"report"}


def test_a_killed_build_leaves_its_record_and_the_next_removes_it(tmp_path: Path) -> None:
    config = make_project(tmp_path / "killed")
    workspace = Workspace(str(config.parent / "work"))
    command = [sys.executable, "-m", "pipeline.cli", "build", "-c", str(config), "--quiet"]
    build = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    while build.poll() is None and ((run := read_run(workspace)) is None or run.step is None):
        time.sleep(0.02)
    with suppress(ProcessLookupError):
        os.killpg(build.pid, signal.SIGKILL)
    build.wait()
    run = read_run(workspace)
    assert run is not None
    assert (run.process, run.is_alive, run.command) == (build.pid, False, "wit build")
    assert run.stage in ("pairs", "plan")
    assert main(["build", "-c", str(config), "--quiet"]) == 0
    assert read_run(workspace) is None


def test_a_failed_run_leaves_its_cause(tmp_path: Path) -> None:
    workspace = Workspace(str(tmp_path))
    with pytest.raises(UserError), keeping_run(workspace, "wit build", ("pairs",)):
        raise UserError("s3://key:secret@bucket is full")
    run = read_run(workspace)
    assert isinstance(run, RunRecord)
    assert (run.state, run.is_alive) == ("stopped", False)
    assert "secret" not in str(run.cause)


Usage = namedtuple("Usage", "total used free")


class CountOne:
    """Work that succeeds."""

    def run(self, payload: object, output: object) -> dict[str, int]:
        return {"inputs": 1, "kept": 1}


def test_no_unit_starts_while_a_disk_is_nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(str(tmp_path))
    free = [10, 10, 10, 5_000]
    slept: list[bool] = []

    def sleep(_: float) -> None:
        slept.append((tmp_path / ".wit/step/u.json").exists())

    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda _: Usage(10**6, 0, free[min(len(slept), 3)]))
    monkeypatch.setattr(disk_space.time, "sleep", sleep)
    problem = disk_space.short_of_space(workspace, 1_000)
    assert "below run.min_free_bytes (0.0 GB): free space, and the build goes on" in str(problem)
    assert disk_space.short_of_space(workspace, 0) is None
    build = Build(workspace, parse_beam_options([]), Progress(None), min_free_bytes=1_000)
    assert run_units(build, "step", [Unit("u", "d")], Stateless(CountOne()))["u"].counts["kept"] == 1
    assert len(slept) >= 3
    assert not any(slept[:3])  # no marker while it waited
