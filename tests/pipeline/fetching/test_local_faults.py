"""Failures of this machine stop the part with one line; they never become the outcome of a URL."""

import errno
import io
import os
import resource
import tempfile
from pathlib import Path
from typing import Any

import pytest
from support.fetching import config, fetch, fetch_urls, plan_of
from support.hostile_server import HostileServer, fixed, picture

from pipeline.errors import UserError
from pipeline.fetching import client, decode
from pipeline.fetching.fetcher import Fetcher
from pipeline.fetching.journal import Journal
from pipeline.fetching.local_faults import local_fault

OURS = ["ENOSPC", "EDQUOT", "EIO", "EROFS", "EMFILE", "ENFILE", "ENOMEM", "ENOBUFS"]
THE_WEBS = ["ECONNREFUSED", "ECONNRESET", "EHOSTUNREACH", "ENETUNREACH", "ETIMEDOUT", "EPIPE", "EADDRNOTAVAIL"]


def failing(name: str) -> Any:
    def write(*_: object) -> None:
        raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))

    return write


@pytest.mark.parametrize("name", OURS)
def test_faults_are_told_from_the_web(name: str) -> None:
    fault = local_fault(OSError(getattr(errno, name), "x"))
    assert fault is not None
    assert "run again" in str(fault)
    assert "\n" not in str(fault)


@pytest.mark.parametrize("name", THE_WEBS)
def test_troubles_of_the_web_are_not_ours(name: str) -> None:
    assert local_fault(OSError(getattr(errno, name), "x")) is None


@pytest.mark.parametrize("name", OURS)
def test_a_body_that_cannot_be_kept_stops_the_part(
    server: HostileServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(tempfile.SpooledTemporaryFile[bytes]):
        write = failing(name)

    monkeypatch.setattr(client, "SpooledTemporaryFile", Broken)
    with pytest.raises(UserError, match=r"^fetch stopped: .* on this machine"):
        fetch_urls([server.url(f"/ok.jpg?{number}") for number in range(5)])


@pytest.mark.parametrize("name", ["ENOSPC", "EIO"])
def test_an_image_that_cannot_be_kept_stops_the_part(
    server: HostileServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Journal, "add_outcome", failing(name))
    with pytest.raises(UserError, match=r"^fetch stopped: .* on this machine"):
        fetch_urls([server.url("/ok.jpg")])


def test_a_full_disk_is_found_by_the_system_itself(server: HostileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")

    def full(*_: object, **__: object) -> Any:
        return open("/dev/full", "r+b", buffering=0)

    monkeypatch.setattr(client, "SpooledTemporaryFile", full)
    with pytest.raises(UserError, match="No space left on device"):
        fetch_urls([server.url("/ok.jpg")])


def test_no_more_open_files_stop_the_part_and_the_next_goes_on(server: HostileServer) -> None:
    plan = plan_of([server.url("/ok.jpg")])
    with Fetcher(config()) as fetcher, tempfile.TemporaryDirectory() as folder:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        taken = [os.open(os.devnull, os.O_RDONLY) for _ in range(4)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (taken[-1] + 1, limits[1]))
        os.close(taken.pop())  # for the part's own file; none is left for a socket
        try:
            with pytest.raises(UserError, match="Too many open files"):
                fetcher.fetch_part(plan, tar_stream=io.BytesIO(), scratch_dir=Path(folder))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for number in taken:
                os.close(number)
        assert fetch(fetcher, plan).reasons == ["success"]


def test_a_decoder_without_memory_stops_the_part(server: HostileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def store_image(*_: object) -> None:
        raise MemoryError("to decode 9000 x 9000 pixels")

    monkeypatch.setattr(decode, "store_image", store_image)
    with pytest.raises(UserError, match="Cannot allocate memory"):
        fetch_urls([server.url("/ok.jpg")])


def test_bodies_on_disk_and_in_memory_give_the_same(server: HostileServer) -> None:
    server.routes["/big.png"] = fixed(200, picture(900, 700, image_format="PNG") + bytes(2 << 20))
    (row,) = fetch_urls([server.url("/big.png")], max_bytes=5_000_000).table.to_pylist()
    assert (row["status"], row["http_status"]) == ("success", 200)
