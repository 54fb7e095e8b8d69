"""One flipped bit in any file of a workspace: found, made again where nothing must be requested, or named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from support.recorded_web import make_project, tree

from pipeline import build as build_module
from pipeline.cli.main import main
from pipeline.engine.shuffle import gather, spill
from pipeline.engine.units import UnitOutput
from pipeline.engine.workspace import Workspace
from pipeline.errors import DamagedFileError


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    config = make_project(tmp_path_factory.mktemp("flips"), 40, parts=2, files=2)
    assert main(["build", "-c", str(config), "--quiet"]) == 0
    return config


@pytest.fixture
def project(built, tmp_path) -> Path:
    shutil.copytree(built.parent, tmp_path / "copy")
    return tmp_path / "copy/wit.toml"


def flip(file: Path, at: float = 0.5) -> Path:
    """Flip a bit in the middle of a file, or elsewhere."""
    content = bytearray(file.read_bytes())
    content[int(len(content) * at)] ^= 4
    file.write_bytes(content)
    return file


def first(work: Path, pattern: str) -> Path:
    return min(work.glob(pattern))


def test_every_damaged_input_of_a_step_is_made_again(project, capsys):
    """The markers of later steps are removed, so that what was written is read once more."""
    work = project.parent / "work"
    whole = tree(work, "pairs", "plan", "evals", "fetched", "dedup", "shards", "report")
    damaged = [
        flip(first(work, pattern))
        for pattern in (
            "pairs/*.parquet",
            "plan/part-*.parquet",
            "fetched/*0.tar",
            "fetched/*1.parquet",
            "dedup/decisions/*.parquet",
            "evals/shapes/index.parquet",
        )
    ]
    for step in ("fetched", "shards"):
        shutil.rmtree(work / ".wit" / step)
    shutil.rmtree(work / ".wit/stages")
    # `fetched` has no marker now, so that its damaged files are just written over.
    assert main(["build", "-c", str(project)]) == 0
    err = capsys.readouterr().err
    assert f"pairs/{damaged[0].name} is damaged" in err
    assert "it is written again" in err
    assert tree(work, "pairs", "plan", "evals", "fetched", "dedup", "shards", "report") == whole


@pytest.mark.parametrize("pattern", ["fetched/*0.tar", "fetched/*1.parquet", "dedup/decisions/*.parquet"])
def test_no_shard_is_made_of_damaged_files(project, capsys, pattern):
    work = project.parent / "work"
    whole = tree(work, "shards")
    damaged = flip(first(work, pattern))
    shutil.rmtree(work / ".wit/shards")
    assert main(["build", "-c", str(project)]) == 0
    assert f"{damaged.relative_to(work)} is damaged" in capsys.readouterr().err
    assert tree(work, "shards") == whole


def test_images_of_the_web_are_not_requested_again_without_being_told(project, monkeypatch, capsys):
    def damaged(*_: object) -> None:
        raise DamagedFileError.of("fetched/part-00001.tar", "a bit")

    project.write_text(project.read_text().replace("network = false", 'network = true\ncontact = "mailto:a@b.example"'))
    monkeypatch.setattr(build_module, "_run_stages", damaged)
    before = tree(project.parent / "work")
    assert main(["build", "-c", str(project), "--quiet"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "wit: fetched/part-00001.tar is damaged" in line
    assert "wit verify --discard" in line
    assert tree(project.parent / "work") == before


def test_a_file_that_is_damaged_twice_points_at_the_machine(project, monkeypatch, capsys):
    name = "pairs/" + first(project.parent / "work", "pairs/*").name

    def always(*_: object) -> None:
        raise DamagedFileError.of(name, "a bit")

    monkeypatch.setattr(build_module, "_run_stages", always)
    monkeypatch.setattr(build_module, "withdraw", lambda *_: True)
    assert main(["build", "-c", str(project), "--quiet"]) == 1
    assert "check this machine's disk and memory" in capsys.readouterr().err


def test_verify_finds_a_flip_in_every_file_that_a_marker_has(project, capsys):
    assert main(["verify", "-c", str(project)]) == 0
    work = project.parent / "work"
    files = sorted(p for p in work.rglob("*") if p.is_file() and ".wit" not in p.parts)
    certified = [p for p in files if "consent" not in p.parts]  # a record of times, beside the outputs of a unit
    for file in certified:
        flip(file)
    capsys.readouterr()
    assert main(["verify", "-c", str(project)]) == 6
    out = capsys.readouterr()
    named = {line.removeprefix("wit: ").split(" ")[0] for line in out.err.splitlines()[:-1]}
    assert named == {str(p.relative_to(work)) for p in certified}
    assert "Traceback" not in out.err


def test_what_verify_discards_the_next_build_makes_again(project, capsys):
    work = project.parent / "work"
    whole = tree(work, "pairs", "plan", "evals", "fetched", "dedup", "shards", "report")
    flip(first(work, "fetched/*0.tar"))
    flip(first(work, "shards/*1.tar"))
    first(work, "report/*.html").unlink()
    assert main(["verify", "-c", str(project), "--discard"]) == 6
    assert main(["build", "-c", str(project), "--quiet"]) == 0
    assert tree(work, "pairs", "plan", "evals", "fetched", "dedup", "shards", "report") == whole
    assert main(["verify", "-c", str(project)]) == 0


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize(("harm", "said"), [(flip, "is damaged"), (cut, "has "), (Path.unlink, "is missing")])
def test_a_received_set_is_compared_with_its_manifest(built, tmp_path, capsys, harm: Callable, said: str):
    received = tmp_path / "received"
    shutil.copytree(built.parent / "work/shards", received)
    assert main(["verify", "--shards", str(received)]) == 0
    tar = first(received, "*.tar")
    harm(tar)
    shutil.copy(first(received, "*1.tar"), received / "stray.tar")
    capsys.readouterr()
    assert main(["verify", "--shards", str(received)]) == 6
    err = capsys.readouterr().err
    assert f"wit: {tar.name} {said}" in err
    assert "wit: stray.tar is not in the manifest" in err


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b'{"format": "wit-shards/9"}', b"\xff", b"[" * 100_000, None],
)
def test_a_manifest_that_is_none_is_one_line(tmp_path, capsys, content):
    if content is not None:
        (tmp_path / "manifest.json").write_bytes(content)
    assert main(["verify", "--shards", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "manifest.json" in line


def test_a_manifest_names_only_files_beside_it(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    facts = {"bytes": 0, "sha256": "0" * 64}
    manifest = {"format": "wit-shards/1", "samples": 0, "shards": [], "files": {"../secret": facts}}
    (tmp_path / "a/manifest.json").write_text(json.dumps(manifest))
    assert main(["verify", "--shards", str(tmp_path / "a")]) == 1
    assert "is not the name of a file beside it" in capsys.readouterr().err


def test_any_flipped_bit_in_a_spilled_bucket_is_found(tmp_path):
    schema = pa.schema([("n", pa.int64())])
    workspace = Workspace(str(tmp_path))
    numbers = np.arange(3_000)
    rows = (pa.table({"n": numbers}, schema), (numbers % 3).astype(np.int32))
    spill(UnitOutput(workspace), "a.rows", schema, 3, [rows])
    whole = (tmp_path / "a.rows").read_bytes()
    expected = [gather(workspace, ["a.rows"], bucket, schema) for bucket in range(3)]
    for at in [*range(32), *range(32, len(whole), 97)]:
        (tmp_path / "a.rows").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(DamagedFileError, match=r"a\.rows is damaged"):
            assert [gather(workspace, ["a.rows"], bucket, schema) for bucket in range(3)] == expected


def test_a_damaged_consent_ledger_is_found_and_asked_for_again(project, capsys):
    ledger = flip(first(project.parent / "work", "consent/*.parquet"))
    assert main(["verify", "-c", str(project)]) == 6
    assert f"consent/{ledger.name} is damaged" in capsys.readouterr().err
    ledger.write_bytes(ledger.read_bytes()[:-9])
    assert main(["status", "-c", str(project)]) == 6
    assert f"consent/{ledger.name}" in capsys.readouterr().err
    assert main(["verify", "-c", str(project), "--discard"]) == 6
    assert not ledger.exists()
    assert main(["verify", "-c", str(project)]) == 0
