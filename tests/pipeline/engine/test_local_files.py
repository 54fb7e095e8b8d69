"""Files of a store are copied to a machine once, for all its processes, and removed when none uses them."""

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipeline.engine.local_files import local_folder
from pipeline.engine.workspace import Workspace
from pipeline.errors import DamagedFileError
from pipeline.private_folder import remove_leftovers

CONTENTS = {"a/one.npy": b"1" * 5_000, "two": b"2"}
SHA256 = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENTS.items()}


@pytest.fixture
def store(tmp_path, monkeypatch) -> Workspace:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    workspace = Workspace(f"memory://{tmp_path.name}")
    for name, content in CONTENTS.items():
        with workspace.create(name) as out:
            out.write(content)
    return workspace


def test_the_files_of_a_local_workspace_stay_where_they_are(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b").write_bytes(b"x")
    workspace = Workspace(str(tmp_path))
    assert (local_folder(workspace, {"a/b": hashlib.sha256(b"x").hexdigest()}) / "a/b").samefile(tmp_path / "a/b")
    with pytest.raises(DamagedFileError, match="a/b"):
        local_folder(workspace, {"a/b": "0" * 64})


def test_files_of_a_store_are_copied_once(store, monkeypatch):
    folder = local_folder(store, SHA256)
    assert {name: (folder / name).read_bytes() for name in CONTENTS} == CONTENTS
    monkeypatch.setattr(Workspace, "open", lambda *_: pytest.fail("requested again"))
    assert local_folder(store, SHA256) == folder
    remove_leftovers()  # this process still uses them
    assert {name: (folder / name).read_bytes() for name in CONTENTS} == CONTENTS
    (folder / "two").write_bytes(b"3")
    with pytest.raises(DamagedFileError, match="two"):
        local_folder(store, SHA256)


def test_a_damaged_file_of_a_store_is_not_kept(store):
    wrong = SHA256 | {"two": "0" * 64}
    with pytest.raises(DamagedFileError, match="two"):
        local_folder(store, wrong)
    with pytest.raises(DamagedFileError, match="two"):
        local_folder(store, wrong)


def test_the_copies_of_a_process_that_ended_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = (
        "import sys; from pipeline.private_folder import shared_folder\n"
        "print(shared_folder('files'), flush=True); sys.stdin.read()"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, **pipes) as other:
        folder = Path(other.stdout.readline().decode().strip())
        (folder / "file").touch()
        remove_leftovers()
        assert (folder / "file").exists()
        other.communicate()
    remove_leftovers()
    assert not folder.exists()
