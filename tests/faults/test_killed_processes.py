"""Killed workers, killed builds, and signals: one line that says so, nothing left behind, and a rerun resumes."""

import os
import signal
import subprocess
import sys
import threading
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from support.recorded_web import make_project
from support.small_job import processes, units_only

from pipeline.beam import runner
from pipeline.beam.runner import parse_beam_options, run_pipeline
from pipeline.errors import UserError
from pipeline.private_folder import private_folder, remove_leftovers, scratch_folder

main_module = import_module("pipeline.cli.main")
PROCESSES = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]


def script(folder: Path, line: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("kill -KILL $$", "was killed by SIGKILL, most often by the system for lack of memory"),
        ("kill -TERM $$", "was killed by SIGTERM"),
        ("exit 3", "ended with exit code 3"),
    ],
)
def test_a_worker_that_dies_before_it_connects_is_not_waited_for(tmp_path, monkeypatch, line, said):
    monkeypatch.setattr(runner, "sys", SimpleNamespace(executable=script(tmp_path, line)))
    with pytest.raises(UserError, match=f"^a worker process {said}.*run the same command again$") as caught:
        run_pipeline(units_only(tmp_path / "out", 4), parse_beam_options(PROCESSES))
    assert "\n" not in str(caught.value)


def test_a_worker_that_is_killed_at_work_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))  # workers import the job from there

    def kill() -> None:
        while not (tmp_path / "calls").is_dir() or not processes(tmp_path):
            time.sleep(0.05)
        for process in processes(tmp_path):
            process.kill()
            return

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with pytest.raises(UserError, match=r"^a worker process was killed by SIGKILL"):
        run_pipeline(units_only(tmp_path, 20, pause_s=1.0), parse_beam_options(PROCESSES))
    killer.join()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_end_any_command_in_one_line(tmp_path, monkeypatch, capsys, number):
    def waiting(_: object) -> int:
        os.kill(os.getpid(), number)
        time.sleep(30)
        return 0

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("pipeline.cli.status._status", waiting)
    signal.signal(number, signal.SIG_DFL)  # `nohup` ignores SIGHUP
    before = signal.getsignal(number)
    assert main_module.main(["status"]) == 128 + number
    assert capsys.readouterr().err == "wit: stopped; run the same command again to resume\n"
    assert signal.getsignal(number) == before


def test_ctrl_c_during_the_imports_is_quiet(tmp_path):
    (tmp_path / "argparse.py").write_text("import sys, time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}"}
    wit = subprocess.Popen(
        [sys.executable, "-c", "from pipeline.cli.main import main; main(['status'])"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert wit.stdout is not None
    assert wit.stdout.readline() == "importing\n"
    wit.send_signal(signal.SIGINT)
    assert wit.communicate(timeout=30)[1] == ""
    assert wit.returncode == -signal.SIGINT


def test_imports_leave_ctrl_c_as_it_was():
    code = "import signal, pipeline.cli; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True\n"


@pytest.mark.parametrize("stage", ["pairs", "fetched"])
def test_sigterm_ends_a_build_and_its_workers(tmp_path, stage):
    number = signal.SIGTERM
    config = make_project(tmp_path / "project", 60, parts=12)
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    command = [sys.executable, "-m", "pipeline.cli", "build", "-c", str(config), "--quiet", *PROCESSES]
    build = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(scratch)}, start_new_session=True
    )
    while not (config.parent / "work/.wit" / stage).is_dir() and build.poll() is None:
        time.sleep(0.05)
    children = psutil.Process(build.pid).children(recursive=True)
    os.kill(build.pid, number)
    _, err = build.communicate(timeout=60)
    assert build.returncode == 128 + number
    assert err == "wit: stopped; run the same command again to resume\n"
    assert not [p for p in psutil.wait_procs(children, timeout=20)[1] if p.is_running()]
    kept = private_in(scratch, "wit-archives")  # the index of the archives, for later runs
    left = [p for p in scratch.rglob("*") if p.is_file() and p.suffix != ".lock" and p.name != "lock"]
    assert [p for p in left if kept not in p.parents] == []
    assert not [p for p in private_in(scratch, "wit-scratch").iterdir() if p.is_dir()]


def test_sigterm_ends_a_build_whose_workers_have_not_connected(tmp_path):
    config = make_project(tmp_path / "project", 8, parts=1)
    slow = script(tmp_path, f'touch {tmp_path}/starting; sleep 2; exec {sys.executable} "$@"')
    code = (
        "import sys; from types import SimpleNamespace; import pipeline.beam.runner as runner\n"
        f"runner.sys = SimpleNamespace(executable={slow!r})\n"
        "from pipeline.cli.main import run_command; run_command()"
    )
    build = subprocess.Popen(
        [sys.executable, "-c", code, "build", "-c", str(config), "--quiet", *PROCESSES],
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "starting").exists() and build.poll() is None:
        time.sleep(0.05)
    build.terminate()
    assert build.communicate(timeout=60)[1].endswith("wit: stopped; run the same command again to resume\n")
    assert build.returncode == 128 + signal.SIGTERM


def private_in(folder: Path, name: str) -> Path:
    return folder / f"{name}-{os.getuid()}"


def test_what_a_kill_left_is_removed_by_the_next_run_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = (
        "from pipeline.beam.log import log_file, keep_log; from pipeline.private_folder import scratch_folder\n"
        "import sys, time\n"
        "if sys.argv[1] == 'keep': log_file(); keep_log(); sys.exit()\n"
        "with scratch_folder('fetch') as folder:\n"
        "    (folder / 'half').touch(); log_file(); print(folder, flush=True); time.sleep(600)\n"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code, "keep"], env=environment, check=True)
    (kept,) = tmp_path.glob("wit-beam-*.log")
    assert kept.stat().st_mode & 0o777 == 0o600
    killed = subprocess.Popen([sys.executable, "-c", code, "work"], env=environment, stdout=subprocess.PIPE)
    assert killed.stdout is not None
    folder = Path(killed.stdout.readline().decode().strip())
    remove_leftovers()
    assert (folder / "half").exists()
    assert len(list(tmp_path.glob("wit-beam-*.log"))) == 2
    killed.kill()
    killed.wait()
    killed.stdout.close()
    with scratch_folder("mine") as mine:
        remove_leftovers()
        assert mine.is_dir()
    assert not folder.exists()
    assert not mine.exists()
    assert list(tmp_path.glob("wit-beam-*.log")) == [kept]
    assert private_folder("wit-scratch").stat().st_mode & 0o777 == 0o700
