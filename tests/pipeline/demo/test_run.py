"""The whole demo, small: what was planted is found; a second run starts afresh; other folders are left alone."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.cli.main import main
from pipeline.config import load_config
from pipeline.demo.compare import Verdict
from pipeline.demo.run import print_verdicts, run_demo
from pipeline.errors import UserError
from pipeline.project import Project


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_finds_what_was_planted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "demo"
    assert main(["demo", "--dir", str(directory), "--pictures", "150", "--seed", "3", "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "ok: all planted items were found, and no others" in said
    assert (directory / "work" / "report" / "index.html").exists()
    config = load_config(directory / "wit.toml")
    assert not config.fetch.allow_private_hosts, "the planted private addresses must be refused by default settings"
    assert json.loads((directory / "web" / "requests.json").read_text())
    planted = (directory / "web" / "planted.json").read_bytes()

    def stop(project: Project, options: object, *, progress: object) -> None:
        assert not (project.base_dir / "work").exists(), "a second run starts afresh"
        raise UserError("stopped")

    monkeypatch.setattr("pipeline.demo.run.run_build", stop)
    with pytest.raises(UserError, match="stopped"):
        run_demo(directory, seed=3, pictures=150, quiet=True)
    assert (directory / "web" / "planted.json").read_bytes() == planted


def test_a_folder_that_is_not_a_demo_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not empty and was not written by `wit demo`"):
        run_demo(tmp_path, pictures=150)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_the_table_shows_what_is_missing() -> None:
    stream = io.StringIO()
    verdicts = [Verdict("fetch", "dead link", 1_200, 1_199, 0), Verdict("fetch", "redirect", 8, 8, 3)]
    print_verdicts(Console(file=stream, width=100), verdicts)
    lines = [line.split() for line in stream.getvalue().splitlines()]
    assert ["dead", "link", "1,200", "1,199", "1", "-"] in lines
    assert ["redirect", "8", "8", "-", "3"] in lines


def test_pictures_must_be_a_sensible_number(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["demo", "--pictures", "3"])
    assert "must be 150 to 100000" in capsys.readouterr().err
