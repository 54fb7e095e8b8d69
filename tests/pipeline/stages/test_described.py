"""Edited copies of evaluation images are found from fetched images on: described once, verified, reported."""

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.copies import save_model, scene
from support.dedup_builds import jpeg, run

from dedup.copies.control import control_image
from dedup.copies.edits import EDITS
from dedup.copies.verify import MIN_PROBABILITY
from dedup.published import derive
from dedup.report import render_html
from dedup.report_data import ReportData
from dedup.reviews import Reviews
from pipeline.config import Config
from pipeline.engine.units import read_markers
from pipeline.engine.workspace import Workspace
from pipeline.errors import ConfigError, UserError
from pipeline.records import pair_uid
from pipeline.shards.tar import TarWriter
from pipeline.stages.described import load_detector
from pipeline.stages.report import read_measured

METADATA = {"wit.side": 16, "wit.sure": 0.999, "wit.propose": 0.2}
PLANTED = ("same", "crop 70%", "flip", "rotate 8", "screenshot", "border 10% white", "meme text", "inverted")


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """Return image files by caption: copies of the evaluation pictures 0, 1, ... and strangers."""
    made = {name: EDITS[name](scene(n), scene(n + 50), random.Random(n)) for n, name in enumerate(PLANTED)}
    made |= {f"stranger {n}": scene(n + 100) for n in range(6)}
    return {caption: jpeg(picture) for caption, picture in made.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("described")
    (folder / "scenes").mkdir()
    for number in range(len(PLANTED) + 2):
        Image.fromarray(scene(number)).save(folder / "scenes" / f"{number}.png")
    save_model(folder / "model.onnx", metadata=METADATA)
    return folder


def overlap(workspace: Workspace) -> dict[str, dict]:
    """Return caption -> its overlap row."""
    captions = {row["uid"]: row["caption"] for row in workspace.read_table("fetched/part-00000.parquet").to_pylist()}
    rows = workspace.read_table("dedup/overlap/scenes.parquet").to_pylist()
    assert len({row["uid"] for row in rows}) == len(rows)
    return {captions[row["uid"]]: row for row in rows}


def test_planted_copies_are_found_with_what_was_done_to_them(folder, files):
    found = overlap(run(folder, "model.onnx", files))
    assert sorted(found) == sorted(PLANTED)
    assert {name: row["eval_id"] for name, row in found.items()} == {n: f"{i}.png" for i, n in enumerate(PLANTED)}
    assert found["same"]["degree"] == "re-encoded"
    assert found["same"]["edit"] == ""
    assert {row["degree"] for name, row in found.items() if name != "same" and name != "meme text"} == {"edited"}
    assert found["flip"]["edit"] == "mirrored"
    assert found["crop 70%"]["edit"] == "cropped to 49%"
    assert found["inverted"]["edit"] == "inverted"
    assert "larger picture" in found["screenshot"]["edit"]
    assert "rotated by" in found["rotate 8"]["edit"]
    for name in ("crop 70%", "screenshot", "rotate 8"):
        row = found[name]
        assert row["distance"] > 31
        assert row["inliers"] >= 5
        assert row["probability"] >= MIN_PROBABILITY
        assert len(row["corners"]) == 8
        assert 0.2 <= row["cosine"] <= 1.01


def test_a_set_of_look_alikes_has_a_stricter_threshold(folder, files, tmp_path):
    for part in ("scenes", "model.onnx"):
        (tmp_path / part).symlink_to(folder / part)
    usual = overlap(run(folder, "model.onnx", files))
    least = sorted(row["probability"] for row in usual.values() if row["probability"])[len(usual) // 2]
    workspace = run(tmp_path, "model.onnx", files, min_probability=least)
    strict = overlap(workspace)
    assert {name for name, row in usual.items() if (row["probability"] or 0) >= least} <= strict.keys() < usual.keys()
    assert all(row["probability"] is None or row["probability"] >= least for row in strict.values())


def test_pdq_alone_finds_the_whole_pictures(folder, files):
    found = overlap(run(folder, "pdq", files))
    assert {"same", "flip"} <= found.keys() < set(PLANTED)
    assert found["flip"]["edit"] == "mirrored"
    assert found["flip"]["cosine"] is None


def test_images_are_described_once_for_each_detector(folder, files):
    workspace = run(folder, "model.onnx", files)
    before = read_markers(workspace, "described"), Path(folder, "work/described/part-00000.parquet").stat().st_mtime_ns
    run(folder, "model.onnx", files)
    assert before[1] == Path(folder, "work/described/part-00000.parquet").stat().st_mtime_ns
    save_model(folder / "other.onnx", side=32, metadata=METADATA | {"wit.side": 32})
    run(folder, "other.onnx", files)
    after = read_markers(workspace, "described")
    assert after.keys() == before[0].keys()
    assert after["part-00000"].digest != before[0]["part-00000"].digest
    described = workspace.read_table("described/part-00000.parquet")
    assert described.num_rows == len(files)


def test_a_second_run_gives_the_same_bytes(folder, files, tmp_path):
    first = run(folder, "model.onnx", files)
    names = [name for name in first.sizes("dedup") | first.sizes("described")]
    contents = {name: first.read_bytes(name) for name in names}
    for part in ("scenes", "model.onnx"):
        (tmp_path / part).symlink_to(folder / part)
    second = run(tmp_path, "model.onnx", files)
    assert {name: second.read_bytes(name) for name in names} == contents


@pytest.mark.parametrize(
    ("detector", "said"), [("none.onnx", "cannot read"), ("text.onnx", "onnxruntime cannot open it")]
)
def test_what_is_no_detector_is_one_line(folder, detector, said):
    (folder / "text.onnx").write_text("text")
    raw = {
        "workspace": "work",
        "allowlist": {"path": "q"},
        "sources": [{"kind": "warc", "paths": ["x"]}],
        "fetch": {"network": False},
        "dedup": {"detector": detector},
    }
    with pytest.raises(ConfigError, match=said) as error:
        load_detector(Config.model_validate(raw), folder)
    assert "\n" not in str(error.value)


def test_another_word_is_refused():
    with pytest.raises(ValueError, match=r'"pdq", "copy", or the path'):
        Config.model_validate({"dedup": {"detector": "sscd"}})


def test_planted_edits_measure_the_recall_of_a_build(folder, files, monkeypatch):
    kinds = {name: EDITS[name] for name in ("same", "crop 80%", "flip")}
    monkeypatch.setattr("dedup.measure.EDITS", kinds)
    monkeypatch.setattr("dedup.measure.UNSEEN_EDITS", {})
    for detector, crops in (("model.onnx", 3), ("pdq", 0)):
        workspace = run(folder, detector, files, planted=3)
        rows = {row["kind"]: row for row in workspace.read_table("measured/scenes.parquet").to_pylist()}
        assert {kind: row["planted"] for kind, row in rows.items()} == dict.fromkeys(kinds, 3)
        assert (rows["same"]["found"], rows["crop 80%"]["found"], rows["flip"]["found"]) == (3, crops, 3)
        assert rows["same"]["confused"] == 0


@pytest.mark.parametrize("detector", ["model.onnx", "pdq"])
def test_matches_of_the_negative_control_are_counted_and_remove_nothing(folder, files, detector):
    leaked = {"a rendered image": jpeg(control_image(1, 0))}
    workspace = run(folder, detector, files | leaked, evals="remove")
    (row,) = workspace.read_table("dedup/control.parquet").to_pylist()
    uid = pair_uid("http://example.org/a rendered image", "a rendered image")
    assert (row["eval_id"], row["uid"], row["kept"]) == ("00001.png", uid, True)
    decisions = {
        one["uid"]: one["reason"] for one in workspace.read_table("dedup/decisions/part-00000.parquet").to_pylist()
    }
    assert decisions[uid] is None
    same = pair_uid("http://example.org/same", "same")
    assert decisions[same] == "eval_overlap"
    assert not workspace.exists("dedup/overlap/_control.parquet")


def test_without_copies_the_negative_control_matches_nothing_and_can_be_switched_off(folder, files, tmp_path):
    for part in ("scenes", "model.onnx"):
        (tmp_path / part).symlink_to(folder / part)
    workspace = run(tmp_path, "model.onnx", files)
    assert workspace.read_table("dedup/control.parquet").num_rows == 0
    assert workspace.read_table("control/rendered/index.parquet").num_rows == 3
    assert not run(tmp_path, "model.onnx", files, control=0).exists("dedup/control.parquet")


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_captions_of_the_set_are_found_with_other_images_too(folder, files, tmp_path, kind):
    text = "A dog and a cat sit in front of a red house"
    captions = [[text, "A dog."], ["Two boats on the river below the old town"], ["A short one"]]
    images = [jpeg(scene(number)) for number in range(3)]
    if kind == "parquet":
        pq.write_table(pa.table({"image": images, "caption": captions}), tmp_path / "set.parquet")
    else:
        with open(tmp_path / "set.tar", "wb") as stream, TarWriter(stream) as tar:
            for number, (image, texts) in enumerate(zip(images, captions, strict=True)):
                tar.add(f"{number}.jpg", image)
                tar.add(f"{number}.json", json.dumps({"caption": texts}).encode())
    path = "set.parquet" if kind == "parquet" else "set.tar"
    found = {f"{text}!!": files["stranger 0"], "Two boats on a river": files["stranger 1"], "same": files["same"]}
    workspace = run(tmp_path, "pdq", found, kind=kind, path=path, caption="caption")
    (row,) = workspace.read_table("dedup/captions/scenes.parquet").to_pylist()
    assert (row["eval_caption"], row["caption"], row["containment"]) == (text, f"{text}!!", 1)
    assert row["uid"] == pair_uid(f"http://example.org/{text}!!", f"{text}!!")
    assert row["kept"]
    published = read_measured(workspace, "scenes", measured=False)
    assert published.examples["long_captions"].to_pylist() == [1, 1, 0]
    report = derive(published, 31, 50, lambda pairs: (), Reviews({}))
    assert (report.captions.overlap, report.captions.compared, report.captions.too_short) == (1, 2, 1)
    assert report.summary.overlap == 1  # "same" is an image of the set, under a caption that is not
    data = ReportData((), (), (report,), 50)
    assert ">1 of 2, 50.0" in render_html(data)
    assert text in render_html(data)


def test_a_folder_has_no_captions(folder, files, tmp_path):
    (tmp_path / "scenes").symlink_to(folder / "scenes")
    with pytest.raises(UserError, match="a folder has no captions"):
        run(tmp_path, "pdq", files, caption="caption")
