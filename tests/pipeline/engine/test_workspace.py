"""Files appear whole or not at all."""

import hashlib

import pytest

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
