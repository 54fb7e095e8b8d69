"""One index for all evaluation sets: each set's matches are those that it has alone, and only what must is redone."""

import functools
import random
from pathlib import Path

import pytest
from PIL import Image
from support.copies import save_model, scene
from support.dedup_builds import jpeg, run

from dedup.copies.edits import EDITS
from dedup.copies.search import VectorIndex
from pipeline.engine.units import read_markers
from pipeline.engine.workspace import Workspace
from pipeline.errors import DamagedFileError

SETS = {"first": range(8), "second": range(4, 10), "third": range(30, 42)}
KINDS = ("same", "crop 80%", "flip", "rotate 8", "border 10% white", "inverted")


@pytest.fixture(autouse=True)
def two_kinds_are_planted(monkeypatch):
    monkeypatch.setattr("dedup.measure.EDITS", {name: EDITS[name] for name in ("same", "crop 80%")})
    monkeypatch.setattr("dedup.measure.UNSEEN_EDITS", {})


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    made = {name: EDITS[name](scene(n + 3), scene(n + 60), random.Random(n)) for n, name in enumerate(KINDS)}
    return {caption: jpeg(picture) for caption, picture in (made | {"stranger": scene(200)}).items()}


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, numbers in SETS.items():
        (tmp_path / name).mkdir()
        for number in numbers:
            Image.fromarray(scene(number)).save(tmp_path / name / f"{number}.png")
    save_model(tmp_path / "model.onnx", metadata={"wit.side": 16, "wit.sure": 0.999, "wit.propose": 0.2})
    return tmp_path


def results(workspace: Workspace, name: str) -> tuple[bytes, bytes]:
    return tuple(workspace.read_bytes(f"{kind}/{name}.parquet") for kind in ("dedup/overlap", "measured"))


def written(workspace: Workspace, folder: str) -> dict[str, int]:
    """Return the files under a folder, with the times at which they were written."""
    return {name: Path(workspace.path(name)).stat().st_mtime_ns for name in workspace.sizes(folder)}


def test_a_set_finds_among_others_what_it_finds_alone_and_only_what_must_is_redone(folder, files):
    alone = {}
    for name in ("first", "second"):
        workspace = run(folder, "model.onnx", files, planted=2, sets=[name], workspace=str(folder / f"alone-{name}"))
        assert workspace.read_table(f"dedup/overlap/{name}.parquet").num_rows == 5
        alone[name] = results(workspace, name)
    workspace = run(folder, "model.onnx", files, planted=2, sets=["first", "third"])
    before = [written(workspace, kind) for kind in ("evals", "measured", "control")]
    index = read_markers(workspace, "lookup/vectors")["all"]
    workspace = run(folder, "model.onnx", files, planted=2, sets=list(SETS))
    assert {name: results(workspace, name) for name in alone} == alone
    after = [written(workspace, kind) for kind in ("evals", "measured", "control")]
    assert all(old.items() <= new.items() for old, new in zip(before, after, strict=True))
    grown = read_markers(workspace, "lookup/vectors")["all"]
    assert (index.counts["kept"], grown.counts["kept"]) == (8 + 12 + 3, 8 + 6 + 12 + 3)
    workspace = run(folder, "model.onnx", files, planted=2, sets=["first", "third"])
    assert read_markers(workspace, "lookup/vectors")["all"] == index
    assert [written(workspace, kind) for kind in ("evals", "measured", "control")] == before
    assert results(workspace, "first") == alone["first"]
    run(folder, "pdq", files, sets=["first", "third"])
    assert workspace.sizes("lookup") == {}


def test_in_cells_each_set_is_measured_again_when_another_joins(folder, files, monkeypatch):
    small = functools.partial(VectorIndex.build, searched_rows=150)
    monkeypatch.setattr("pipeline.stages.lookup.VectorIndex.build", small)
    monkeypatch.setattr("dedup.copies.search._ROWS_IN_CELL", 16)
    workspace = run(folder, "model.onnx", files, planted=2, sets=["first", "third"])
    assert read_markers(workspace, "lookup/vectors")["all"].counts["cells"] > 4
    found = workspace.read_table("dedup/overlap/first.parquet")
    assert {"0.png"} < {f"{number}.png" for number in SETS["first"]} >= set(found["eval_id"].to_pylist()) != set()
    before = {name: marker.digest for name, marker in read_markers(workspace, "measured").items()}
    workspace = run(folder, "model.onnx", files, planted=2, sets=list(SETS))
    after = {name: marker.digest for name, marker in read_markers(workspace, "measured").items()}
    assert all(before[name] != after[name] for name in before)


def test_mapped_hashes_give_the_same_bytes(folder, files, monkeypatch):
    usual = run(folder, "pdq", files, planted=2, sets=list(SETS))
    expected = {name: results(usual, name) for name in SETS}
    assert not usual.sizes("lookup/hashes")
    monkeypatch.setattr("dedup.hamming.SCANNED_ROWS", 50)
    monkeypatch.setattr("pipeline.stages.lookup.SCANNED_ROWS", 50)
    workspace = run(folder, "pdq", files, planted=2, sets=list(SETS), workspace=str(folder / "mapped"))
    assert {name: results(workspace, name) for name in SETS} == expected
    assert len(workspace.sizes("lookup/hashes/first")) == 3
    assert not workspace.sizes("lookup/hashes/second")  # 6 images
    run(folder, "pdq", files, sets=["second"], workspace=str(folder / "mapped"))
    assert not workspace.sizes("lookup/hashes")


def test_a_damaged_index_is_named(folder, files):
    workspace = run(folder, "model.onnx", files, sets=["first"])
    vectors = Path(workspace.path("lookup/vectors/vectors.npy"))
    content = bytearray(vectors.read_bytes())
    content[-1] ^= 1
    vectors.write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"lookup/vectors/vectors\.npy"):
        run(folder, "model.onnx", files | {"another": files["stranger"]}, sets=["first"])
