"""`wit overlap`: the report of two sets of images."""

import io
import json
import random
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.copies import save_model, scene

from dedup.copies.edits import EDITS, UNSEEN_EDITS
from pipeline.cli.main import main

PLANTED = ("same", "crop 70%", "flip", "screenshot")


def png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def _small_control(monkeypatch):
    monkeypatch.setattr("dedup.compare_sets.CONTROL_IMAGES", 5)


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """Write the set A as a folder, B with copies of four of its pictures as a folder, tar and Parquet, and a model."""
    made = {f"{n}.png": png(EDITS[name](scene(n), scene(n + 50), random.Random(n))) for n, name in enumerate(PLANTED)}
    made |= {f"stranger-{n}.png": png(scene(n + 100)) for n in range(3)}
    for folder, files in (("a", {f"{n}.png": png(scene(n)) for n in range(6)}), ("b", made | {"broken.png": b"png"})):
        (tmp_path / folder).mkdir()
        for name, content in files.items():
            (tmp_path / folder / name).write_bytes(content)
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        tar.add(tmp_path / "b", "b")
    images = pa.array([{"bytes": content, "path": name} for name, content in made.items()])
    pq.write_table(pa.table({"image": images}), tmp_path / "b.parquet")
    save_model(tmp_path / "model.onnx", metadata={"wit.side": 16, "wit.sure": 0.999, "wit.propose": 0.2})
    return tmp_path


def run(sets: Path, b: str, *more: str) -> Path:
    out = sets / "out"
    assert main(["overlap", str(sets / "a"), str(sets / b), "--out", str(out), *more]) == 0
    return out


@pytest.mark.parametrize("b", ["b", "b.tar", "b.parquet"])
def test_edited_copies_are_found_in_every_layout(sets, b, capsys):
    out = run(sets, b, "--detector", str(sets / "model.onnx"))
    assert "4 of 6 images" in capsys.readouterr().out
    assert (out / "a.overlap_ids.txt").read_text().split() == ["0.png", "1.png", "2.png", "3.png"]
    assert (out / "a.clean_ids.txt").read_text().split() == ["4.png", "5.png"]
    rows = {row["eval_id"]: row for row in pq.read_table(out / "overlap.parquet").to_pylist()}
    assert rows["1.png"]["edit"] == "cropped to 49%"
    assert rows["2.png"]["edit"] == "mirrored"
    (told,) = json.loads((out / "overlap.json").read_text())["sets"]
    assert (told["overlap"], told["indexed"], len(told["evidence"])) == (4, 6, 4)
    page = (out / "index.html").read_text()
    assert "cropped to 49%" in page
    assert page.count("data:image/jpeg") == 8


def test_whole_pictures_are_found_without_a_detector(sets, capsys):
    out = run(sets, "b", "--detector", "pdq")
    assert "left out: 1 not an image" in capsys.readouterr().out
    assert (out / "a.overlap_ids.txt").read_text().split() == ["0.png", "2.png"]
    assert [row["degree"] for row in pq.read_table(out / "overlap.parquet").to_pylist()] == ["equal bytes", "edited"]


def test_recall_and_false_matches_are_measured(sets, monkeypatch):
    kinds = {name: EDITS[name] for name in ("same", "crop 80%", "inverted")}
    monkeypatch.setattr("dedup.measure.EDITS", kinds)
    monkeypatch.setattr("dedup.measure.UNSEEN_EDITS", {"screen lines": UNSEEN_EDITS["screen lines"]})
    out = run(sets, "b", "--plant", "3", "--detector", str(sets / "model.onnx"))
    told = json.loads((out / "measured.json").read_text())
    assert told["control"] == {
        "pictures": 5,
        "images": 7,
        "matches": 0,
        "rate": 0,
        "high": pytest.approx(0.5218, abs=1e-4),
    }
    assert pq.read_table(out / "control.parquet")["uids"].to_pylist() == [[]] * 5
    assert told["recall"] == {
        "tuned": 1,
        "unseen": 1,
        "confused": 0,
        "kinds": {kind: [3, 3] for kind in [*kinds, "screen lines"]},
    }
    corrected = told["corrected_fraction"]
    assert corrected["value"] == pytest.approx(4 / 6)
    assert corrected["low"] < corrected["value"] < corrected["high"]
    assert "0 of 5 rendered images" in (out / "index.html").read_text()
    assert "Precision and recall of this run" in (out / "index.html").read_text()
    assert main(["report", "verify", str(out)]) == 0
    told = json.loads((run(sets, "b", "--plant", "3", "--detector", "pdq") / "measured.json").read_text())
    assert told["recall"]["kinds"]["crop 80%"] == [0, 3]
    assert told["recall"]["tuned"] == pytest.approx(1 / 3)
    assert told["corrected_fraction"]["value"] > 2 / 6


def review(pairs: list[dict], judge: str, *verdicts: str) -> str:
    said = [
        {"eval": "a", "eval_id": pair["eval_id"], "uid": pair["uid"], "verdict": verdict}
        for pair, verdict in zip(pairs, verdicts, strict=True)
    ]
    return json.dumps({"judge": judge, "verdicts": said})


def test_two_judges_give_the_precision(sets, capsys):
    out = run(sets, "b", "--detector", "pdq")
    (told,) = json.loads((out / "overlap.json").read_text())["sets"]
    pairs = told["evidence"]
    assert len(pairs) == 2
    (sets / "ada.json").write_text(review(pairs, "Ada", "same", "same"))
    (sets / "bob.json").write_text(review(pairs, "Bob", "same", "different"))
    files = [str(sets / f"{name}.json") for name in ("ada", "bob")]
    capsys.readouterr()
    run(sets, "b", "--detector", "pdq", "--reviews", *files)
    assert (
        "precision as judged: 100.0\u00a0% (2.5\u00a0% – 100.0\u00a0%); judges agree on 1 of 2 pairs"
        in capsys.readouterr().out
    )
    assert main(["report", "verify", str(out)]) == 0
    (sets / "other.json").write_text(review([{"eval_id": "x", "uid": "y"}], "Cleo", "same"))
    capsys.readouterr()
    run(sets, "b", "--detector", "pdq", "--reviews", str(sets / "other.json"))
    assert "none of the reviews is of a pair that this report shows" in capsys.readouterr().out


def test_the_page_speaks_of_two_sets(sets):
    page = (run(sets, "b", "--detector", "pdq") / "index.html").read_text()
    assert "2 of 6" in page
    for word in ("final shards", "[[evals]]", "registered sets", "fetched images", "wit report"):
        assert word not in page


def test_a_registered_set_has_its_own_thresholds(sets):
    (sets / "a").rename(sets / "mnist")
    for more, bits, least in (((), 15, 0.998), (("--max-distance-bits", "20", "--min-probability", "0.9"), 20, 0.9)):
        args = ["overlap", str(sets / "mnist"), str(sets / "b"), "--out", str(sets / "out"), *more]
        assert main([*args, "--detector", str(sets / "model.onnx")]) == 0
        (told,) = json.loads((sets / "out" / "overlap.json").read_text())["sets"]
        assert (told["max_distance_bits"], told["min_probability"]) == (bits, least)


def test_wrong_arguments_are_one_line_before_anything_is_read(sets, capsys):
    (sets / "review.json").write_text("{}")
    wrong = {
        "--plant -1": "it must be 0 or more",
        "--min-probability 2": "between 0.5 and 1",
        "--detector none.onnx": "cannot read the copy detector",
        f"--reviews {sets}/absent.json": "absent.json: no such file",
        f"--reviews {sets}/review.json": "it names no judge",
        f"--out {sets}/b/report": "choose another folder",
        "--image-column picture": "is Parquet",
    }
    for more, said in wrong.items():
        args = ["overlap", str(sets / "a"), str(sets / "b"), "--out", str(sets / "out"), *more.split(" ", 1)]
        assert main(args) == 1
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert not (sets / "out").exists()


def test_running_again_gives_the_same_files(sets):
    def contents(out: Path) -> dict[str, bytes]:
        return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}

    first = contents(run(sets, "b", "--detector", str(sets / "model.onnx")))
    assert contents(run(sets, "b", "--detector", str(sets / "model.onnx"))) == first


def test_names_that_are_not_utf_8(sets, capsys):
    named = sets / "n\udcff"
    (sets / "a").rename(named)
    assert main(["overlap", str(named), str(named), "--out", str(sets / "out"), "--detector", "pdq"]) == 0
    assert "6 of 6 images" in capsys.readouterr().out
    assert r"n\xff" in (sets / "out/index.html").read_text()
    assert (sets / r"out/n\xff.overlap_ids.txt").exists()


@pytest.mark.parametrize("b", ["nothing", "empty", "texts"])
def test_what_is_no_set_is_one_line(sets, b, capsys):
    (sets / "empty").mkdir()
    (sets / "texts").mkdir()
    (sets / "texts" / "a.txt").write_text("a")
    assert main(["overlap", str(sets / "a"), str(sets / b), "--out", str(sets / "out")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert b in error
