import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.copies import save_model
from support.shared_data import SHARED

import dedup.eval_sets.index
from dedup.copies.detector import Detector, DetectorError
from dedup.copies.views import VIEWS as COPY_VIEWS
from dedup.eval_sets.index import INDEX, EvalSummary, index_eval_set, read_thumbnails, read_vectors
from dedup.eval_sets.read import read_examples
from dedup.pdq import fingerprint, fingerprint_views


def picture(seed: int, height: int = 60, width: int = 90) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def png(seed: int, **size: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(seed, **size)).save(buffer, "PNG")
    return buffer.getvalue()


def write_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def index(root: Path, kind: str, path: Path | str, **options: str) -> tuple[EvalSummary, list[dict]]:
    summary = index_eval_set("set", kind, path, root / "out", **options)
    return summary, pq.read_table(root / "out" / "set" / "index.parquet", schema=INDEX).to_pylist()


FOLDER = {"cat/1.png": png(1), "cat/2.png": png(2), "dog/deep/3.PNG": png(3), "dog/4.png": png(4, height=9, width=200)}


def test_a_folder_of_classes(tmp_path: Path) -> None:
    summary, rows = index(tmp_path, "folder", write_folder(tmp_path / "in", FOLDER))
    assert summary == EvalSummary("set", 4, 4, {})
    assert [(r["eval_id"], r["label"]) for r in rows] == [
        ("cat/1.png", "cat"),
        ("cat/2.png", "cat"),
        ("dog/4.png", "dog"),
        ("dog/deep/3.PNG", "deep"),
    ]
    assert [(r["width"], r["height"]) for r in rows] == [(90, 60), (90, 60), (200, 9), (90, 60)]


def test_facts_are_those_of_the_fingerprint(tmp_path: Path) -> None:
    _, rows = index(tmp_path, "folder", write_folder(tmp_path / "in", FOLDER))
    assert rows[0]["views"] == b"".join(pdq for _, pdq in fingerprint_views(picture(1)))
    assert rows[0]["quality"] == fingerprint(picture(1)).quality
    assert rows[0]["sha256"] == hashlib.sha256(FOLDER["cat/1.png"]).hexdigest()


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    _, rows = index(tmp_path, "folder", write_folder(tmp_path / "in", {"b.png": png(1), "a.png": png(2)}))
    assert [(r["eval_id"], r["label"]) for r in rows] == [("a.png", None), ("b.png", None)]


def test_nothing_is_lost_silently(tmp_path: Path) -> None:
    files = {
        "x/good.png": png(1),
        "x/cut.png": png(2)[:300],
        "x/page.jpg": b"<html>",
        "README.txt": b"hi",
        ".x/h.png": b"",
    }
    summary, rows = index(tmp_path, "folder", write_folder(tmp_path / "in", files))
    assert summary.counts() == {"inputs": 5, "kept": 1, "broken_image": 1, "not_an_image": 1, "other_file": 2}
    assert {r["eval_id"]: r["reason"] for r in rows} == {
        "x/good.png": None,
        "x/cut.png": "broken_image",
        "x/page.jpg": "not_an_image",
        "README.txt": "other_file",
        ".x/h.png": "other_file",
    }
    assert all((r["views"] is None) == (r["reason"] is not None) for r in rows)


SAMPLES = {
    "a/0.cls": b"7\n",
    "a/0.png": png(1),
    "a/1.jpg": png(2),
    "a/1.json": json.dumps({"label": "dog", "breed": "spitz"}).encode(),
    "a/2.seg.png": png(3),
    "a/2.txt": b"eine Katze",
    "a/3.txt": b"no picture",
    "b/3.webp": png(4),
}


def test_webdataset_tars(tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "sub" / "t-1.tar", SAMPLES)
    write_tar(tmp_path / "in" / "t-0.tar.gz", {"9.png": png(9)}, "w:gz")
    summary, rows = index(tmp_path, "webdataset", tmp_path / "in")
    assert summary.counts() == {"inputs": 6, "kept": 5, "no_image": 1}
    assert [(r["eval_id"], r["label"], r["reason"]) for r in rows] == [
        ("sub/t-1/a/0", "7", None),
        ("sub/t-1/a/1", "dog", None),
        ("sub/t-1/a/2", "eine Katze", None),
        ("sub/t-1/a/3", "no picture", "no_image"),
        ("sub/t-1/b/3", None, None),
        ("t-0/9", None, None),
    ]


def test_the_label_field_of_json_can_be_named(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "one.tar", SAMPLES)
    _, rows = index(tmp_path, "webdataset", tar, label_column="breed")
    assert rows[1]["label"] == "spitz"


def test_a_glob_and_a_file_name_the_same_examples(tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "t-0.tar", SAMPLES)
    write_tar(tmp_path / "in" / "other.tar", {"9.png": png(9)})
    by_glob = list(read_examples("webdataset", f"{tmp_path}/in/t-*.tar"))
    assert by_glob == list(read_examples("webdataset", f"{tmp_path}/in/t-0.tar"))
    assert by_glob[0].eval_id == "t-0/a/0"


@pytest.mark.parametrize("cut", [700, 1_024, 3_000, 10_000])
def test_a_cut_tar_is_an_error(tmp_path: Path, cut: int) -> None:
    tar = write_tar(tmp_path / "one.tar", SAMPLES)
    content = tar.read_bytes()
    assert cut < len(content)
    tar.write_bytes(content[:cut] if cut != 1_024 else content[:cut] + b"garbage" * 500)
    with pytest.raises(ValueError, match=r"one\.tar: damaged tar file"):
        list(read_examples("webdataset", str(tar)))


def test_an_archive_behind_the_end_of_another_is_an_error(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "one.tar", SAMPLES)
    tar.write_bytes(tar.read_bytes() * 2)
    with pytest.raises(ValueError, match="damaged tar file"):
        list(read_examples("webdataset", str(tar)))


def test_parquet_with_bytes(tmp_path: Path) -> None:
    table = pa.table({"img": [png(i) for i in range(70)] + [None], "cls": [*range(70), None]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=33)
    summary, rows = index(tmp_path, "parquet", tmp_path / "t.parquet", image_column="img", label_column="cls")
    assert summary.counts() == {"inputs": 71, "kept": 70, "no_image": 1}
    assert [r["eval_id"] for r in rows] == [f"t/{i:07d}" for i in range(71)]
    assert [r["label"] for r in rows] == [*map(str, range(70)), None]


def test_parquet_of_hugging_face(tmp_path: Path) -> None:
    images = pa.array([{"bytes": png(1), "path": "1.png"}, {"bytes": None, "path": "gone.png"}])
    features = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"image": images, "label": [1, 0]}).replace_schema_metadata(metadata)
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in" / "test-0.parquet")
    _, rows = index(tmp_path, "parquet", tmp_path / "in")
    assert [(r["label"], r["reason"]) for r in rows] == [("dog", None), ("cat", "no_image")]


def read_labels(path: Path, labels: pa.Array, feature: object = None) -> list[str | None]:
    table = pa.table({"image": [b"x"] * len(labels), "label": labels})
    about = {"huggingface": json.dumps({"info": {"features": {"label": feature}}})}
    pq.write_table(table.replace_schema_metadata(about), path)
    return [example.label for example in read_examples("parquet", str(path))]


def test_labels_of_any_type_are_text_or_nothing(tmp_path: Path) -> None:
    path, names = tmp_path / "t.parquet", {"names": ["cat", "dog"], "_type": "ClassLabel"}
    assert read_labels(path, pa.array([1, 0, -1, None, 2]), names) == ["dog", "cat", "-1", None, "2"]
    assert read_labels(path, pa.array([True, False, None])) == ["1", "0", None]
    assert read_labels(path, pa.array([3.0, float("nan"), None, 0.5])) == ["3", None, None, "0.5"]
    assert read_labels(path, pa.array([["cat", "dog"], ["dog"], [], None])) == ["cat,dog", "dog", None, None]
    assert read_labels(path, pa.array([[0, 1], [1]]), {"feature": names, "_type": "Sequence"}) == ["cat,dog", "dog"]
    assert read_labels(path, pa.array([[0, 1], [1]]), [names]) == ["0,1", "1"]  # metadata of a form we do not know
    samples = {"a.jpg": b"x", "a.json": b'{"label": ["cat", "dog"]}', "b.jpg": b"x", "b.json": b'{"label": {"a": 1}}'}
    tar = write_tar(tmp_path / "t.tar", samples)
    assert [example.label for example in read_examples("webdataset", str(tar))] == ["cat,dog", "{'a': 1}"]


def test_indexing_again_gives_the_same_bytes_and_leaves_nothing_else(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", FOLDER)
    trees = []
    for _ in range(2):
        index(tmp_path, "folder", source)
        trees.append({p.name: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()})
    assert trees[0] == trees[1]
    assert set(trees[0]) == {"index.parquet", "thumbnails.parquet"}


def test_thumbnails_are_small_and_picked_by_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dedup.eval_sets.index, "_BATCH", 2)
    monkeypatch.setattr(dedup.eval_sets.index, "_INDEX_ROWS", 3)
    files = {f"{i}.png": png(i, height=300, width=200) for i in range(7)} | {"small.png": png(9, height=8, width=5)}
    index(tmp_path, "folder", write_folder(tmp_path / "in", files))
    file = tmp_path / "out" / "set" / "thumbnails.parquet"
    assert pq.ParquetFile(file).num_row_groups == 4
    shown = read_thumbnails(file, ["6.png", "1.png", "nobody.png", "small.png"])
    assert {k: Image.open(io.BytesIO(v)).size for k, v in shown.items()} == {
        "6.png": (107, 160),
        "1.png": (107, 160),
        "small.png": (5, 8),
    }
    assert fingerprint(np.asarray(Image.open(io.BytesIO(shown["6.png"])))).quality > 50


def test_an_index_of_another_detector_is_refused(tmp_path: Path) -> None:
    used, other = (
        Detector.load(
            save_model(tmp_path / f"{propose}.onnx", metadata={"wit.side": 16, "wit.sure": 1, "wit.propose": propose})
        )
        for propose in (0.2, 0.3)
    )
    folder = write_folder(tmp_path / "set", {"a.png": png(1), "b.png": png(2)})
    index_eval_set("set", "folder", folder, tmp_path, detector=used)
    table = pq.read_table(tmp_path / "set" / "vectors.parquet")
    assert read_vectors(table, used).shape == (2 * len(COPY_VIEWS), used.card.dimensions)
    with pytest.raises(
        DetectorError, match=f"made by the copy detector {used.sha256[:12]}, not by {other.sha256[:12]}"
    ):
        read_vectors(table, other)


def missing(root: Path) -> Path:
    return root / "nowhere"


def empty_folder(root: Path) -> Path:
    (root / "in").mkdir()
    return root / "in"


def only_text(root: Path) -> Path:
    return write_folder(root / "in", {"a.txt": b"x"})


def a_file(root: Path) -> Path:
    return write_folder(root, {"a.png": png(1)}) / "a.png"


def a_table(root: Path) -> Path:
    pq.write_table(pa.table({"picture": [png(1)], "n": [1]}), root / "t.parquet")
    return root / "t.parquet"


def no_table(root: Path) -> Path:
    return write_folder(root, {"t.parquet": b"nothing"}) / "t.parquet"


@pytest.mark.parametrize(
    ("kind", "make", "options", "message"),
    [
        ("folder", missing, {}, "nowhere: no such folder"),
        ("folder", empty_folder, {}, "in: no readable image found (it is empty)"),
        ("folder", only_text, {}, "in: no readable image found (1 other_file)"),
        ("folder", a_file, {}, "a.png: a file, not a folder"),
        ("webdataset", missing, {}, "no such file, or no .tar or .tar.gz or .tgz file in it"),
        ("webdataset", only_text, {}, "no such file, or no .tar"),
        ("webdataset", a_file, {}, "a.png: damaged tar file"),
        ("parquet", missing, {}, "no such file, or no .parquet file"),
        ("parquet", a_table, {}, "t.parquet: no column 'image'; its columns are picture, n"),
        ("parquet", a_table, {"image_column": "n"}, "column 'n' is int64; need encoded images"),
        (
            "parquet",
            a_table,
            {"image_column": "picture", "label_column": "y"},
            "no column 'y'; its columns are picture, n",
        ),
        ("parquet", no_table, {}, "t.parquet: not a parquet file"),
        ("zip", missing, {}, "unknown kind 'zip': choose one of folder, webdataset, parquet"),
    ],
)
def test_mistakes_are_told_in_one_line(
    tmp_path: Path, kind: str, make: Callable[[Path], Path], options: dict[str, str], message: str
) -> None:
    with pytest.raises((FileNotFoundError, ValueError)) as caught:
        index(tmp_path, kind, make(tmp_path), **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").rglob("*"))


def test_a_failure_leaves_the_earlier_index(tmp_path: Path) -> None:
    index(tmp_path, "folder", write_folder(tmp_path / "in", FOLDER))
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    with pytest.raises(FileNotFoundError):
        index(tmp_path, "folder", tmp_path / "nowhere")
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == before
    assert len(before) == 2


def test_a_real_shard_of_another_tool(tmp_path: Path) -> None:
    shard = SHARED / "shards" / "cc12m_32.tar"
    if not shard.exists():
        pytest.skip("no third-party shard (../shared/data/shards/cc12m_32.tar)")
    summary, rows = index(tmp_path, "webdataset", shard)
    assert summary.counts() == {"inputs": 32, "kept": 32}
    assert all(r["label"] for r in rows)
