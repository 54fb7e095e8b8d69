"""The layout of a set is found out from its files, and nothing is left out because of a guess."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dedup.errors import DedupError
from dedup.eval_sets.layout import Source


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_images(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png())
    return folder


def write_table(file: Path, **columns: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file)
    return file


def write_tar(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w:gz" if file.name.endswith("gz") else "w") as tar:
        member = tarfile.TarInfo("0.png")
        member.size = len(png())
        tar.addfile(member, io.BytesIO(png()))
    return file


def write_shard(folder: Path) -> Path:
    """Write a tar and the table beside it, as img2dataset does."""
    return write_table(write_tar(folder / "00000.tar").with_suffix(".parquet"), url=["u"]).parent


def hugging_face() -> pa.Array:
    return pa.array([{"bytes": png(), "path": "0.png"}])


@pytest.mark.parametrize(
    ("make", "kind", "column"),
    [
        (lambda at: write_images(at, "dog/0.PNG", "1.jpg"), "folder", "image"),
        (lambda at: write_table(write_images(at, "0.png") / "metadata.parquet", text=["a"]).parent, "folder", "image"),
        (lambda at: write_tar(at / "0.tar"), "webdataset", "image"),
        (lambda at: write_tar(at / "train" / "0.tar.gz").parents[1], "webdataset", "image"),
        (lambda at: write_tar(at / "0.tgz").parent, "webdataset", "image"),
        (write_shard, "webdataset", "image"),
        (lambda at: write_table(at / "data" / "test-00000-of-00001.parquet", image=[png()]), "parquet", "image"),
        (lambda at: write_table(at / "0.parquet", label=[1], img=hugging_face()).parent, "parquet", "img"),
        (lambda at: write_table(at / "0.parquet", other=hugging_face(), image=hugging_face()), "parquet", "image"),
        (lambda at: write_table(write_images(at, ".x/0.png") / "0.parquet", image=[png()]).parent, "parquet", "image"),
    ],
)
def test_each_layout_is_found(tmp_path, make, kind, column):
    source = Source.of(make(tmp_path / "set"))
    assert (source.kind, source.image_column) == (kind, column)
    read = [one.encoded for one in source.examples() if not one.failure]
    assert read
    assert set(read) == {png()}


def test_two_layouts_at_once_are_refused(tmp_path):
    write_images(tmp_path, "a/0.png", "a/1.png")
    write_tar(tmp_path / "b" / "0.tar")
    with pytest.raises(
        DedupError, match=r"holds \.tar files \(1\) and image files \(2\): give the path of one"
    ) as error:
        Source.of(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert Source.of(tmp_path / "a").kind == "folder"
    write_table(tmp_path / "c" / "0.parquet", image=[png()])
    with pytest.raises(
        DedupError, match=r"\.tar files \(1\) and \.parquet files of images \(1\) and image files \(2\)"
    ):
        Source.of(tmp_path)


def test_a_column_of_another_name_can_be_named(tmp_path):
    file = write_table(tmp_path / "0.parquet", jpg=[png()], text=["a"])
    with pytest.raises(DedupError, match=r"no column of 0\.parquet holds encoded images; name it by --image-column"):
        Source.of(file)
    assert [one.encoded for one in Source.of(file, "jpg").examples()] == [png()]
    with pytest.raises(DedupError, match="no column 'png'; its columns are jpg, text"):
        list(Source.of(file, "png").examples())


@pytest.mark.parametrize("name", ["absent", "empty", "0.png", "0.txt"])
def test_what_is_no_set_is_refused(tmp_path, name):
    write_images(tmp_path, "0.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "0.txt").write_text("text")
    with pytest.raises(DedupError, match=r"no such file|found no images|need a folder of images") as error:
        Source.of(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_damaged_table_is_named(tmp_path):
    (tmp_path / "0.parquet").write_bytes(b"PAR1 no table PAR1")
    with pytest.raises(DedupError, match=r"0\.parquet: not a parquet file"):
        Source.of(tmp_path)
