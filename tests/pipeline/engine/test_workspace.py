"""Files appear whole or not at all."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from fsspec.implementations.arrow import ArrowFSWrapper
from pyarrow.fs import LocalFileSystem

from pipeline.engine.shuffle import gather, spill
from pipeline.engine.units import UnitOutput
from pipeline.engine.workspace import Workspace


def test_create_reports_what_was_written(tmp_path):
    workspace = Workspace(str(tmp_path))
    with workspace.create("a/b.bin") as out:
        out.write(b"12")
        assert not workspace.exists("a/b.bin")
        out.write(memoryview(b"345"))
    assert workspace.read_bytes("a/b.bin") == b"12345"
    assert (out.facts.bytes, out.facts.sha256) == (5, hashlib.sha256(b"12345").hexdigest())
    assert workspace.sizes("a") == {"a/b.bin": 5}


@pytest.mark.parametrize("protocol", ["", "memory://"])
def test_an_error_leaves_the_old_file(tmp_path, protocol):
    workspace = Workspace(f"{protocol}{tmp_path}")
    workspace.write_json("x.json", 1)

    def write_half() -> None:
        with workspace.create("x.json") as out:
            out.write(b"garbage")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert workspace.read_json("x.json") == 1
    workspace.remove_temporary_files()
    assert list(workspace.sizes("")) == ["x.json"]


def test_equal_values_give_equal_bytes(tmp_path):
    workspace = Workspace(str(tmp_path))
    first = workspace.write_json("a.json", {"b": 1, "a": "é"})
    assert workspace.write_json("b.json", {"a": "é", "b": 1}) == first


@pytest.mark.parametrize("name", ["", "/etc", "a/../../b", ".."])
def test_only_folders_inside_can_be_removed(tmp_path, name):
    with pytest.raises(ValueError, match="not a folder of the workspace"):
        Workspace(str(tmp_path)).remove_folder(name)


class _DiskAsHdfs(ArrowFSWrapper):
    """What fsspec makes of hdfs://: pyarrow's file system in its wrapper, here over a local one."""

    protocol = "hdfs"

    def __init__(self, **options: object) -> None:
        super().__init__(LocalFileSystem(), **options)


def test_files_and_ranges_on_hdfs(tmp_path, monkeypatch):
    monkeypatch.setattr("fsspec.core.url_to_fs", lambda url: (_DiskAsHdfs(), url.removeprefix("hdfs://")))
    workspace = Workspace(f"hdfs://{tmp_path}/work")
    assert not workspace.is_local
    workspace.write_json("a/b.json", [1])
    workspace.write_json("a/b.json", [2])
    assert workspace.read_jsons("a") == {"a/b.json": b"[\n 2\n]\n"}
    schema = pa.schema([("n", pa.int64())])
    spill(UnitOutput(workspace), "x.rows", schema, 3, [(pa.table([[5, 6, 7]], schema=schema), np.array([2, 0, 2]))])
    assert [gather(workspace, ["x.rows"], b, schema)["n"].to_pylist() for b in range(3)] == [[6], [], [5, 7]]
    assert workspace.read_ranges([("a/b.json", 0, 1), ("a/b.json", 3, 4)]) == [b"[", b"2"]
