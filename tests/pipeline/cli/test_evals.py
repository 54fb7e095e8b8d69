import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dedup.eval_sets import registered
from pipeline.cli.evals import add_parser
from pipeline.errors import ConfigError, UserError


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    args = parser.parse_args(arguments)
    return args.func(args)


def folder(root: Path) -> Path:
    (root / "in" / "cat").mkdir(parents=True)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(root / "in" / "cat" / "1.png")
    (root / "in" / "cat" / "notes.txt").write_text("x")
    return root / "in"


def test_the_list_names_every_registered_set(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run("evals", "list") == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[1:36]] == [s.name for s in registered()]
    assert "35 sets" in out
    assert "stl10" in out


def test_an_index_is_written_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = folder(tmp_path)
    assert run("evals", "index", "mine", "--kind", "folder", "--path", str(source), "--out", str(tmp_path / "out")) == 0
    assert capsys.readouterr().out == f"{tmp_path}/out/mine: 1 images (left out: 1 other file)\n"
    assert pq.read_table(tmp_path / "out" / "mine" / "index.parquet").num_rows == 2


def test_a_wrong_size_and_a_near_name_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(folder(tmp_path))
    run("evals", "index", "cifar10", "--kind", "folder", "--path", source, "--out", str(tmp_path))
    assert "the test set of CIFAR-10 has 10,000 images" in capsys.readouterr().err
    run("evals", "index", "cifar-10", "--kind", "folder", "--path", source, "--out", str(tmp_path))
    assert "did you mean 'cifar10'?" in capsys.readouterr().err


def test_mistakes_are_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^mine: .*nowhere: no such folder$"):
        run("evals", "index", "mine", "--kind", "folder", "--path", str(tmp_path / "nowhere"), "--out", str(tmp_path))
    with pytest.raises(ConfigError, match=r"'\.\./x'"):
        run("evals", "index", "../x", "--kind", "folder", "--path", str(tmp_path), "--out", str(tmp_path))
