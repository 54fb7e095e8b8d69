"""`wit doctor`: each check finds what is wrong, and says what to do."""

import json
import resource
from collections import namedtuple
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.hostile_server import HostileServer, fixed, server

from pipeline.cli.main import main
from pipeline.stages import doctor

__all__ = ["server"]

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    pq.write_table(pa.table({"url": ["http://a.example/1.jpg"], "caption": ["a dog"]}), tmp_path / "table.parquet")
    config = tmp_path / "wit.toml"
    config.write_text(
        'workspace = "work"\n[allowlist]\npath = "queries.parquet"\n'
        '[[sources]]\nkind = "url-table"\npaths = ["table.parquet"]\n[fetch]\nnetwork = false\n'
    )
    return config


def findings(config: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, dict]]:
    capsys.readouterr()
    code = main(["doctor", "-c", str(config), "--json", *options])
    found = json.loads(capsys.readouterr().out)
    return code, {finding["check"]: finding for finding in found}


def test_a_machine_that_is_fit(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = findings(project, capsys)
    assert code == 0
    assert all(finding["verdict"] in ("ok", "skipped", "warning") for finding in found.values())
    assert found["sources"]["found"].startswith("1 files")
    assert found["DNS"]["verdict"] == found["GPU"]["verdict"] == "skipped"
    assert not list((project.parent / "work").rglob("doctor-*"))
    assert main(["doctor", "-c", str(project)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(found)


def test_every_problem_has_its_advice(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 100))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: Usage(10**12, 0, 10**6))
    project.write_text(project.read_text().replace("table.parquet", "absent.parquet") + "[train]\nsteps = 1\n")
    (project.parent / "work").write_text("a file")
    code, found = findings(project, capsys)
    assert code == 1
    failed = {check for check, finding in found.items() if finding["verdict"] == "failed"}
    assert failed == {"open files", "temporary space", "workspace disk", "workspace", "sources"}
    assert all(finding["advice"] for finding in found.values() if finding["verdict"] in ("failed", "warning"))


def test_a_missing_contact_and_java_are_found(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.socket, "getaddrinfo", lambda *_: [])
    monkeypatch.setattr(doctor.shutil, "which", lambda *_, **__: None)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    project.write_text(project.read_text().replace("network = false\n", ""))
    code, found = findings(project, capsys, "--runner", "SparkRunner")
    assert code == 1
    assert {check for check, finding in found.items() if finding["verdict"] == "failed"} == {"contact", "runner"}
    assert found["DNS"]["verdict"] == "ok"


def test_dns_that_does_not_respond(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(doctor.socket, "getaddrinfo", fail)
    project.write_text(project.read_text().replace("network = false", 'contact = "mailto:you@crawler.example"'))
    code, found = findings(project, capsys)
    assert code == 1
    assert found["DNS"]["found"] == "crawler.example does not resolve: Temporary failure in name resolution"


@pytest.mark.parametrize(("date", "verdict"), [("Tue, 01 Jan 2030 00:00:00 GMT", "warning"), ("nonsense", "skipped")])
def test_the_clock_of_a_server(
    project: Path, server: HostileServer, capsys: pytest.CaptureFixture[str], date: str, verdict: str
) -> None:
    server.routes["/"] = fixed(200, b"", Date=date)
    project.write_text(project.read_text().replace("network = false", f'gateway = "{server.gateway}"'))
    _, found = findings(project, capsys)
    assert found["clock difference"]["verdict"] == verdict


def test_a_build_warns_of_what_takes_no_time_to_check(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 100))
    main(["build", "-c", str(project), "--quiet"])  # there is no allowlist
    assert (
        "wit: open files: at most 100 per process, 192 are needed: raise the hard limit (ulimit -Hn 192), or"
        in capsys.readouterr().err
    )
