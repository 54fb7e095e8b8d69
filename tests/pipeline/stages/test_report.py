"""The report's join of a model's per-example results with the overlap."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dedup.eval_sets.index import index_eval_set
from dedup.eval_sets.read import read_examples
from dedup.published import Published, accuracies
from pipeline.engine.workspace import Workspace
from pipeline.errors import UserError
from pipeline.stages.report import read_results

OVERLAP = pa.table({"eval_id": ["cat/0.png", "cat/1.png", "dog/2.png"], "kept": [True, False, True]})


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Return a workspace with the index of six images, the last of them unreadable."""
    for number in range(6):
        path = tmp_path / "images" / ("cat", "dog")[number // 2 % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (30, 30, 3), np.uint8)).save(path)
    (tmp_path / "images/cat/5.png").write_bytes(b"damaged")
    index_eval_set("pets", "folder", tmp_path / "images", tmp_path / "work" / "evals")
    return Workspace(str(tmp_path / "work"))


def _ids(workspace: Workspace) -> list[str]:
    return [example.eval_id for example in read_examples("folder", str(Path(workspace.root).parent / "images"))]


def _write(
    workspace: Workspace, columns: dict[str, list[object]], name: str = "model", metadata: str | None = None
) -> None:
    folder = Path(workspace.root) / "evals/pets/results"
    folder.mkdir(exist_ok=True)
    table = pa.table(columns).replace_schema_metadata(metadata and {"wit": metadata})
    pq.write_table(table, folder / f"{name}.parquet")


def _read(workspace: Workspace):
    index = workspace.read_table("evals/pets/index.parquet", ["eval_id", "reason", "quality"])
    return accuracies(Published("pets", index, OVERLAP, read_results(workspace, "pets", index)))


def test_results_are_split_by_what_is_in_the_shards(workspace: Workspace):
    assert _read(workspace) == ()
    ids = _ids(workspace)
    assert ids == ["cat/0.png", "cat/1.png", "cat/4.png", "cat/5.png", "dog/2.png", "dog/3.png"]
    _write(workspace, {"eval_id": ids[::-1], "correct": [True, False, True, True, False, True]})
    found = _read(workspace)[0].accuracy
    assert (found.overlap.count, found.overlap.total) == (1, 2)  # cat/0 right, dog/2 wrong
    assert (found.clean.count, found.clean.total) == (2, 3)  # cat/1 and dog/3 right, cat/4 too; cat/5 was not compared
    assert (found.all.count, found.all.total) == (3, 5)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"eval_id": ["cat/0.png", "cat/9.png"], "correct": [True, True]}, "1 of 2 examples are not in .*'cat/9.png'"),
        ({"eval_id": ["cat/0.png", None], "correct": [True, True]}, "1 of 2 examples are not in .*None"),
        ({"eval_id": ["cat/0.png", "cat/0.png"], "correct": [True, True]}, "duplicate eval_ids, or nulls in `correct`"),
        ({"eval_id": ["cat/0.png"], "correct": [None]}, "duplicate eval_ids, or nulls in `correct`"),
        ({"eval_id": ["cat/0.png"]}, "holds no per-example results"),
        ({"eval_id": ["cat/0.png"], "correct": ["maybe"]}, "holds no per-example results"),
    ],
)
def test_results_of_anything_else_are_one_line(workspace: Workspace, columns: dict[str, list[object]], message: str):
    _write(workspace, columns)
    with pytest.raises(UserError, match=rf"evals/pets/results/model\.parquet.*{message}") as caught:
        _read(workspace)
    assert "\n" not in str(caught.value)
    assert "delete the file" in str(caught.value)


def test_a_file_that_was_cut_is_one_line(workspace: Workspace):
    _write(workspace, {"eval_id": ["cat/0.png"], "correct": [True]})
    path = Path(workspace.root) / "evals/pets/results/model.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="holds no per-example results"):
        _read(workspace)


def test_every_model_is_read_and_named(workspace: Workspace):
    ids = _ids(workspace)
    right: dict[str, list[object]] = {"eval_id": list(ids), "correct": [True] * 6}
    wrong: dict[str, list[object]] = {"eval_id": list(ids), "correct": [False] * 6}
    _write(workspace, wrong, "a-baseline")
    _write(workspace, right, "file", json.dumps({"model": "ViT-B/32 of ours"}))
    for number, damaged in enumerate(("{", "[]", '{"model": 3}', "{}")):
        _write(workspace, wrong, f"other{number}", damaged)
    found = {score.model: score.accuracy.all.count for score in _read(workspace)}
    assert found == {"a-baseline": 0, "ViT-B/32 of ours": 5, **{f"other{number}": 0 for number in range(4)}}


def test_two_files_of_one_model_are_one_line(workspace: Workspace):
    columns: dict[str, list[object]] = {"eval_id": ["cat/0.png"], "correct": [True]}
    _write(workspace, columns, "b", json.dumps({"model": "a"}))
    _write(workspace, columns, "a")
    with pytest.raises(
        UserError, match=r"results/a\.parquet and evals/pets/results/b\.parquet both hold results for model 'a'"
    ):
        _read(workspace)
