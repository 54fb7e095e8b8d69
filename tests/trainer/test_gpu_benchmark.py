"""The benchmark of a GPU: its phases run at tiny size on a CPU, and one that fails leaves the others alone."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support import gpu_phases

from benchmarks.gpu.__main__ import run_phases
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.phases import PHASES, Phase
from benchmarks.gpu.report import markdown

ROOT = Path(__file__).parents[2]


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_a_phase_that_fails_leaves_the_others_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The first waits for ever, the next raises, the next crashes, one lacks a package; the last is done."""
    works = [gpu_phases.waits, gpu_phases.raises, gpu_phases.lacks_a_package, gpu_phases.crashes, gpu_phases.says]
    limits = {"waits": 10}
    for work in works:
        monkeypatch.setitem(PHASES, work.__name__, Phase(work, limits.get(work.__name__, 200)))
    names = [work.__name__ for work in works]
    failed = run_phases(Bench(tmp_path, tmp_path, small=False), names, time.monotonic() + 600)
    assert failed == ["waits", "raises", "crashes"]
    lines = lines_of(tmp_path)
    outcome = {line["phase"]: line for line in lines if "seconds" in line}
    assert outcome["waits"]["error"] == "took more than 10 s"
    assert outcome["raises"]["error"] == "ValueError: a wrong value"
    assert outcome["crashes"]["error"] == "the process ended with code -6"
    assert "a_package_that_nobody_has" in outcome["lacks_a_package"]["skipped"]
    assert outcome["says"].keys() == {"phase", "seconds"}
    processes = {line["phase"]: line["process"] for line in lines if "process" in line}
    assert processes.keys() == {"waits", "raises", "says"}
    assert not any(map(is_alive, processes.values())), "a phase left a process behind"
    report = (tmp_path / "results.md").read_text()
    assert "ValueError: a wrong value" in report
    assert f"| {processes['says']} |" in report


def test_no_phase_begins_without_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(PHASES, "says", Phase(gpu_phases.says, 100))
    assert run_phases(Bench(tmp_path, tmp_path, small=False), ["says"], time.monotonic() + 5) == []
    (line,) = lines_of(tmp_path)
    assert "s are left" in line["skipped"]


def test_report_has_a_table_per_phase():
    lines = [
        {"phase": "steps", "name": "a|b", "rate": 1234.5678},
        {"phase": "steps", "name": "c", "log": ["x", "y"], "parts": {"p": 0.5}},
        {"phase": "steps", "seconds": 3.0},
        {"phase": "loss", "error": "E: no", "seconds": 1.0},
    ]  # fmt: skip
    assert markdown(lines) == (
        "# Results\n\n## steps\n\ndone after 3.0 s\n\n| name | rate | log | parts |\n| --- | --- | --- | --- |\n"
        "| a\\|b | 1235 |  |  |\n| c |  | x; y | p 0.5 |\n\n## loss\n\nerror after 1.0 s: E: no\n"
    )


@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_quick_phases_run_on_a_cpu(tmp_path: Path):
    """`python -m benchmarks.gpu --small`; the others take minutes on a CPU and are run by hand."""
    quick = ("loss_against_cpu", "curves", "resize", "collectives", "loaders", "trace")
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--small", "--out", str(tmp_path), "--only", *quick],
        cwd=ROOT, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2_000:]
    lines = lines_of(tmp_path)
    assert {line["phase"] for line in lines if "seconds" in line} == {"setup", *quick}
    assert not [line for line in lines if "error" in line or "skipped" in line]
    assert [line["parallel"] for line in lines if "parallel" in line] == ["ddp", "fsdp", "hsdp"]
    assert (tmp_path / "profile.txt").exists()
    assert (tmp_path / "results.md").exists()
