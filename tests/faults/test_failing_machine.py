"""A full or broken disk and a lack of memory while a stage writes: one line, no half file, and a rerun resumes."""

import errno
import itertools
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.cli.main import main
from pipeline.engine.workspace import HashingFile
from queries.allowlist import import_allowlist


@pytest.fixture
def config(tmp_path) -> Path:
    (tmp_path / "words.txt").write_text("dog\ncat\n")
    import_allowlist(str(tmp_path / "words.txt"), str(tmp_path / "queries.parquet"))
    pq.write_table(pa.table({"url": ["http://a.example/1.jpg"], "caption": ["a dog"]}), tmp_path / "table.parquet")
    config = tmp_path / "wit.toml"
    config.write_text(
        'workspace = "work"\n[allowlist]\npath = "queries.parquet"\n'
        '[[sources]]\nkind = "url-table"\npaths = ["table.parquet"]\n[fetch]\nparts = 1\n'
    )
    return config


@pytest.mark.parametrize(
    ("error", "said", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space left on", 3),
        (OSError(errno.EIO, "Input/output error"), "Input/output error", 1),
        (MemoryError("no memory"), "MemoryError", 3),
    ],
)
@pytest.mark.parametrize("working_writes", [0, 4], ids=["driver", "worker"])
def test_a_failure_of_the_machine_is_one_line_and_the_next_run_goes_on(
    config, monkeypatch, capsys, error, said, code, working_writes
):
    write, writes = HashingFile.write, itertools.count()

    def failing(file: HashingFile, data: Any) -> int:
        if next(writes) < working_writes:
            return write(file, data)
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(HashingFile, "write", failing)
        assert main(["build", "-c", str(config), "--quiet", "--to", "pairs"]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("wit: ")
    assert said.lower() in line.lower()
    work = config.parent / "work"
    assert {path.name for path in work.rglob("*") if path.is_file()} <= {"lock", "run"}
    assert main(["build", "-c", str(config), "--quiet", "--to", "pairs"]) == 0
    assert len(list(work.glob("pairs/*.parquet"))) == 1
