"""Whole builds on an S3 and on a Google Cloud Storage whose requests fail at times: complete, and as on disk."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import fsspec
import pytest
from support.faulty_proxy import Fault, FaultyProxy
from support.gcs_server import gcs_server
from support.recorded_web import make_project, tree
from support.s3_server import s3_server, s3_settings

from pipeline.cli.main import main
from pipeline.engine import store_lock
from pipeline.engine.lock import build_lock
from pipeline.engine.workspace import Workspace
from pipeline.errors import BusyError

pytestmark = pytest.mark.slow

IMAGES, PARTS = 40, 2
TIMEOUT_S = 2.0


@dataclass
class Store:
    """A bucket behind a proxy, whose faults are switched on by `faults`."""

    url: str
    proxy: FaultyProxy
    faults: tuple[Fault, ...]

    def fail(self) -> None:
        self.proxy.faults[:] = self.faults

    def root(self, name: str) -> str:
        return f"{self.url}/{name}"


@pytest.fixture(scope="module")
def s3() -> Iterator[Store]:
    proxy = FaultyProxy("http://127.0.0.1:1", [], silence_s=2 * TIMEOUT_S)
    with pytest.MonkeyPatch.context() as patch, s3_server() as url, proxy.running():
        proxy.upstream = urlsplit(url)
        patch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": TIMEOUT_S}})
        with s3_settings(proxy.url):
            boto3.client("s3").create_bucket(Bucket="wit")
            yield Store("s3://wit", proxy, (Fault.SLOW_DOWN, Fault.RESET, Fault.LOST, Fault.CUT, Fault.SILENT))


@pytest.fixture(scope="module")
def gcs() -> Iterator[Store]:
    pytest.importorskip("gcsfs", reason="needs gcsfs")
    proxy = FaultyProxy("http://127.0.0.1:1", [], silence_s=2 * TIMEOUT_S)
    with pytest.MonkeyPatch.context() as patch, gcs_server("wit", proxy.url) as url, proxy.running():
        proxy.upstream = urlsplit(url)
        patch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        patch.setattr("pipeline.engine.workspace.READ_TIMEOUT_S", TIMEOUT_S)
        fsspec.get_filesystem_class("gs").clear_instance_cache()
        yield Store("gs://wit", proxy, (Fault.UNAVAILABLE, Fault.RESET, Fault.LOST, Fault.CUT, Fault.SILENT))
        fsspec.get_filesystem_class("gs").clear_instance_cache()


@pytest.fixture(params=["s3", "gcs"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    found: Store = request.getfixturevalue(request.param)
    yield found
    found.proxy.faults.clear()


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace of the same build on disk."""
    config = make_project(tmp_path_factory.mktemp("disk") / "project", IMAGES, parts=PARTS)
    assert main(["build", "-c", str(config), "--quiet"]) == 0
    return config.parent / "work"


def project_on(store: Store, folder: Path, name: str) -> Path:
    config = make_project(folder, IMAGES, parts=PARTS)
    config.write_text(config.read_text().replace('workspace = "work"', f'workspace = "{store.root(name)}"'))
    return config


def copy_of(root: str, folder: Path) -> Path:
    """Copy a workspace of a store to disk."""
    workspace = Workspace(root)
    for name in workspace.sizes(""):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(workspace.read_bytes(name))
    return folder


def test_a_build_is_complete_and_as_on_disk(store: Store, on_disk: Path, tmp_path: Path) -> None:
    config = project_on(store, tmp_path / "project", "faults")
    store.fail()
    assert main(["build", "-c", str(config), "--quiet"]) == 0
    assert main(["verify", "-c", str(config)]) == 0
    store.proxy.faults.clear()
    assert set(store.proxy.happened) == set(store.faults)
    copy = copy_of(store.root("faults"), tmp_path / "copy")
    folders = [path.name for path in on_disk.iterdir() if path.name not in (".wit", "consent")]
    assert tree(copy, *folders) == tree(on_disk, *folders)
    assert not (copy / ".wit/lock").exists()


def test_a_second_build_ends_with_one_line(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = project_on(store, tmp_path / "project", "busy")
    store.fail()
    with build_lock(Workspace(store.root("busy"))):
        assert main(["build", "-c", str(config), "--quiet"]) == 5
    error = capsys.readouterr().err
    assert "another build is running in this workspace (process " in error
    assert error.count("\n") == 1


def test_of_builds_that_start_at_once_one_gets_the_lock(store: Store) -> None:
    code = (
        "import sys\nfrom pipeline.engine.lock import build_lock\nfrom pipeline.engine.workspace import Workspace\n"
        "from pipeline.errors import BusyError\n"
        "workspace = Workspace(sys.argv[1])\nworkspace.exists('x')\nprint('ready', flush=True); sys.stdin.readline()\n"
        "try:\n    with build_lock(workspace):\n        print('held', flush=True); sys.stdin.read()\n"
        "except BusyError:\n    print('refused', flush=True)\n"
    )
    command = [sys.executable, "-c", code, store.root("race")]
    builds = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
        for _ in range(3)
    ]
    for build in builds:
        assert build.stdout is not None
        assert build.stdout.readline() == "ready\n"
    for build in builds:
        assert build.stdin is not None
        build.stdin.write("go\n")
        build.stdin.flush()
    answers = [build.stdout.readline().strip() for build in builds if build.stdout]
    for build in builds:
        build.communicate()
    assert sorted(answers) == ["held", "refused", "refused"]


@pytest.mark.parametrize("is_old", [True, False])
def test_the_lock_of_a_lost_machine_is_taken_over_when_it_is_old(
    store: Store, monkeypatch: pytest.MonkeyPatch, is_old: bool
) -> None:
    monkeypatch.setattr(store_lock, "WATCH_S", 0.0)
    workspace = Workspace(store.root(f"takeover-{is_old}"))
    touched = datetime.now(UTC) - timedelta(seconds=(2 if is_old else 0.5) * store_lock.STALE_S)
    told = {"token": "x", "host": "elsewhere", "pid": 1, "touched": touched.isoformat()}
    workspace.fs.pipe_file(workspace.path(".wit/lock"), json.dumps(told).encode())
    store.fail()
    if is_old:
        with build_lock(workspace):
            assert workspace.read_json(".wit/lock")["pid"] == os.getpid()
        assert not workspace.exists(".wit/lock")
    else:
        with pytest.raises(BusyError, match="process 1 on elsewhere"), build_lock(workspace):
            pass
        assert workspace.read_json(".wit/lock")["token"] == "x"


class TestLostResponses:
    """A request that the store carried out, and whose response was lost, is sent again by the store's client."""

    @pytest.fixture(autouse=True)
    def _every_response_is_lost_once(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(store.proxy, "share", 1.0)
        monkeypatch.setattr("support.faulty_proxy._MOST_FAILURES", 1)
        store.proxy.seen.clear()
        store.proxy.faults[:] = [Fault.LOST]

    def test_a_lock_is_still_its_builds_own(self, store: Store) -> None:
        workspace = Workspace(store.root("lost"))
        with build_lock(workspace), pytest.raises(BusyError), build_lock(workspace):
            pass
        assert not workspace.exists(".wit/lock")

    def test_files_are_written_moved_and_removed(self, store: Store) -> None:
        workspace = Workspace(store.root("files"))
        workspace.write_json("a/1.json", 1)
        workspace.write_json("a/2.json", 2)
        workspace.move({"a/1.json": "b/1.json"})
        assert workspace.read_jsons("b") == {"b/1.json": b"1\n"}
        workspace.remove(["b/1.json"])
        workspace.remove(["a/2.json", "a/3.json"])
        workspace.remove_folder("a")
        assert workspace.sizes("") == {}
