"""One build at a time: on disk, and on stores."""

import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import boto3
import pytest
from support.s3_server import s3_server, s3_settings

from pipeline.engine import store_lock
from pipeline.engine.lock import build_lock
from pipeline.engine.workspace import Workspace
from pipeline.errors import ConfigError, UserError


@pytest.fixture(scope="module")
def s3_bucket() -> Iterator[str]:
    with s3_server() as url, s3_settings(url):
        boto3.client("s3").create_bucket(Bucket="wit")
        yield "s3://wit"


@pytest.fixture(params=["disk", "memory", "s3"])
def workspace(request: pytest.FixtureRequest, tmp_path) -> Workspace:
    if request.param == "disk":
        return Workspace(str(tmp_path / "work"))
    base = "memory://lock" if request.param == "memory" else request.getfixturevalue("s3_bucket")
    return Workspace(f"{base}/{uuid.uuid4().hex}")


def test_the_second_build_gets_one_line(workspace: Workspace) -> None:
    with (
        build_lock(workspace),
        pytest.raises(UserError, match="another build is running in this workspace") as error,
        build_lock(workspace),
    ):
        pass
    assert "\n" not in str(error.value)
    with build_lock(workspace):  # it is free again
        pass


def test_a_workspace_that_cannot_be_written_is_named() -> None:
    with pytest.raises(ConfigError, match="cannot write to workspace '/proc/wit'"), build_lock(Workspace("/proc/wit")):
        pass


def lock_of(workspace: Workspace, **changes: object) -> None:
    told = {"token": "x", "host": "elsewhere", "pid": 1, "touched": datetime.now(UTC).isoformat()} | changes
    workspace.fs.pipe_file(workspace.path(".wit/lock"), json.dumps(told).encode())


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture(params=["memory", "s3"])
def store(request: pytest.FixtureRequest) -> Workspace:
    base = "memory://lock" if request.param == "memory" else request.getfixturevalue("s3_bucket")
    return Workspace(f"{base}/{uuid.uuid4().hex}")


@pytest.mark.parametrize(
    ("changes", "is_held"),
    [
        ({}, True),
        ({"touched": (datetime.now(UTC) - timedelta(hours=1)).isoformat()}, False),
        ({"place": store_lock._place(), "pid": os.getpid()}, True),
        ({"place": store_lock._place(), "pid": None}, False),
        ({"host": store_lock.socket.gethostname(), "place": "another container", "pid": None}, True),
        ({"touched": (datetime.now(UTC) + timedelta(hours=1)).isoformat()}, False),
    ],
)
def test_a_lock_that_a_killed_build_left_is_taken_over(
    store: Workspace, monkeypatch: pytest.MonkeyPatch, changes: dict, is_held: bool
) -> None:
    monkeypatch.setattr(store_lock, "WATCH_S", 0.0)
    if "pid" in changes and changes["pid"] is None:
        changes = changes | {"pid": ended_process()}  # now: after some minutes another process may have its number
    lock_of(store, **changes)
    if is_held:
        with pytest.raises(UserError, match="another build"), build_lock(store):
            pass
    else:
        with build_lock(store):
            assert json.loads(store.read_bytes(".wit/lock"))["pid"] == os.getpid()
        assert not store.exists(".wit/lock")


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_running_build_keeps_its_lock_though_its_clock_is_wrong(
    store: Workspace, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    touched = datetime.now(UTC) + timedelta(hours=hours)
    lock_of(store, touched=touched.isoformat())

    def touch(_: float) -> None:
        lock_of(store, touched=(touched + timedelta(seconds=30)).isoformat())

    monkeypatch.setattr(store_lock.time, "sleep", touch)
    with pytest.raises(UserError, match="another build is running"), build_lock(store):
        pass
    assert json.loads(store.read_bytes(".wit/lock"))["token"] == "x"


def test_an_empty_lock_of_an_earlier_version_is_free(store: Workspace) -> None:
    store.fs.pipe_file(store.path(".wit/lock"), b"")
    with build_lock(store):
        pass


def test_of_many_builds_that_start_at_once_one_gets_the_lock(s3_bucket: str) -> None:
    root = f"{s3_bucket}/{uuid.uuid4().hex}"
    code = (
        "import sys\nfrom pipeline.engine.lock import build_lock\nfrom pipeline.engine.workspace import Workspace\n"
        "from pipeline.errors import UserError\n"
        "try:\n    with build_lock(Workspace(sys.argv[1])):\n        print('held', flush=True); sys.stdin.read()\n"
        "except UserError:\n    print('refused', flush=True)\n"
    )
    command = [sys.executable, "-c", code, root]
    builds = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
        for _ in range(3)
    ]
    answers = [build.stdout.readline().strip() for build in builds if build.stdout]
    for build in builds:
        build.communicate()
    assert sorted(answers) == ["held", "refused", "refused"]


def test_a_build_whose_lock_was_taken_over_ends(store: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_lock, "TOUCH_S", 0.05)

    def build() -> None:
        with build_lock(store):
            lock_of(store)
            for _ in range(600):
                time.sleep(0.05)

    with pytest.raises(UserError, match="taken this workspace over"):
        build()
    assert json.loads(store.read_bytes(".wit/lock"))["host"] == "elsewhere"  # the other's lock is left alone


def test_a_running_build_touches_its_lock_through_an_outage(store: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_lock, "TOUCH_S", 0.02)
    touched, failing = threading.Event(), [2]
    pipe_file = store.fs.pipe_file

    def unreliable(path: str, value: bytes, **options: object) -> object:
        if threading.current_thread() is not threading.main_thread():
            if failing[0]:
                failing[0] -= 1
                raise OSError("the store does not answer")
            touched.set()
        return pipe_file(path, value, **options)

    with build_lock(store):
        monkeypatch.setattr(store.fs, "pipe_file", unreliable)
        assert touched.wait(30)
    assert not store.exists(".wit/lock")
