"""Progress for programs: JSON log lines, and metrics for Prometheus."""

import json
import urllib.request
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.cli import metrics
from pipeline.cli.main import main
from pipeline.engine.run_record import RunKeeper, StepState
from pipeline.engine.workspace import Workspace
from queries.allowlist import import_allowlist


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "words.txt").write_text("dog\ncat\n")
    import_allowlist(str(tmp_path / "words.txt"), str(tmp_path / "queries.parquet"))
    urls = ["http://a.example/1.jpg", "http://b.example/2.jpg"]
    pq.write_table(pa.table({"url": urls, "caption": ["a dog", "a bird"]}), tmp_path / "table.parquet")
    config = tmp_path / "wit.toml"
    config.write_text(
        'workspace = "work"\n[allowlist]\npath = "queries.parquet"\n'
        '[[sources]]\nkind = "url-table"\npaths = ["table.parquet"]\n[fetch]\nnetwork = false\nparts = 2\n'
    )
    return config


def test_a_build_logs_its_steps_as_json(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "-c", str(project), "--log-format", "json", "--to", "plan"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert all({"time", "level", "message", "host", "process"} <= line.keys() for line in lines)
    done = {line["step"]: line for line in lines if line["message"] == "step done"}
    assert {"pairs", "plan/spill", "plan/write"} <= done.keys()
    assert (done["plan/spill"]["stage"], done["pairs"]["units"], done["pairs"]["done"]) == ("plan", 1, 1)
    assert done["pairs"]["counts"] == {"inputs": 2, "kept": 1, "no_match": 1}
    assert done["pairs"]["unit"].startswith("table")


def test_an_error_is_one_json_line_without_secrets(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = project.read_text().replace("queries.parquet", "https://me:hunter2@127.0.0.1:1/q.parquet")
    project.write_text(text)
    code = main(["build", "-c", str(project), "--log-format", "json", "--to", "plan"])
    err = capsys.readouterr().err
    last = json.loads(err.splitlines()[-1])
    assert (last["level"], last["exit_code"]) == ("error", code)
    assert "hunter2" not in err


def samples(text: str) -> dict[tuple[str, tuple[str, ...]], float]:
    families = text_string_to_metric_families(text)
    return {
        (s.name, tuple(value for _, value in sorted(s.labels.items()))): s.value
        for family in families
        for s in family.samples
    }


def test_metrics_of_a_finished_and_of_a_running_build(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "-c", str(project), "--quiet"]) == 0
    capsys.readouterr()
    assert main(["metrics", "-c", str(project), "--once"]) == 0
    found = samples(capsys.readouterr().out)
    assert found["wit_running", ()] == 0
    assert found["wit_rows", ("kept", "pairs")] == found["wit_rows", ("no_match", "pairs")] == 1
    assert found["wit_rows", ("not_in_archives", "fetched")] == 1

    keeper = RunKeeper(Workspace(str(project.parent / "work")), "wit build", ("pairs", "plan"))
    step = StepState("plan/write", 4, 3, 0, 10, 5.0, 2.0, None, {})
    keeper.update(at_once=True, stage="plan", step=step, state="paused", cause="no space")
    assert main(["metrics", "-c", str(project), "--once"]) == 0
    found = samples(capsys.readouterr().out)
    assert (found["wit_running", ()], found["wit_paused", ()], found["wit_stage_number", ()]) == (1, 1, 2)
    assert found["wit_step_units_done", ("plan", "plan/write")] == 3
    assert found["wit_step_rows_per_second", ("plan", "plan/write")] == 2
    assert ("wit_step_left_seconds", ("plan", "plan/write")) not in found


def test_metrics_are_served(project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    pages: list[str] = []

    def scrape(_: float) -> None:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as response:
            pages.append(response.read().decode())
        raise KeyboardInterrupt

    monkeypatch.setattr(metrics.time, "sleep", scrape)
    assert main(["metrics", "-c", str(project), "--listen", address]) == 130
    assert samples(pages[0])["wit_running", ()] == 0


@pytest.mark.parametrize("address", ["9464", "127.0.0.1:http", "127.0.0.1:99999"])
def test_an_address_that_is_none_is_one_line(project: Path, capsys: pytest.CaptureFixture[str], address: str) -> None:
    assert main(["metrics", "-c", str(project), "--listen", address]) == 2
    assert capsys.readouterr().err.count("\n") == 1
