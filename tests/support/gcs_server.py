"""A Google Cloud Storage on this machine: the emulator fake-gcs-server, a Go program that `make emulators` builds."""

import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_START_S = 30


def emulator() -> str:
    """Return the program; skip the test where it is missing."""
    places = [os.environ.get("XDG_CACHE_HOME", ""), str(Path.home() / ".cache")]
    folders = [f"{place}/wit/bin" for place in places if os.path.isabs(place)]
    found = shutil.which("fake-gcs-server", path=os.pathsep.join([*folders, os.environ["PATH"]]))
    if found is None:
        pytest.skip("needs fake-gcs-server: `make emulators` builds it, with Go")
    return found


@contextmanager
def gcs_server(bucket: str, url: str = "") -> Iterator[str]:
    """Run an emulator with one bucket, in memory; yield its URL. `url` is the one that clients know, of a proxy."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = f"http://127.0.0.1:{port}"
    known = url or own
    command = [emulator(), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"]
    command += ["-external-url", known, "-public-host", known.removeprefix("http://"), "-log-level", "error"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _make_bucket(own, bucket, process)
        yield own
    finally:
        process.terminate()
        process.wait()


def _make_bucket(url: str, bucket: str, process: "subprocess.Popen[bytes]") -> None:
    give_up = time.monotonic() + _START_S
    while True:
        request = urllib.request.Request(
            f"{url}/storage/v1/b?project=test",
            data=f'{{"name": "{bucket}"}}'.encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            urllib.request.urlopen(request, timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError):
            if process.poll() is not None or time.monotonic() > give_up:
                raise
            time.sleep(0.05)
