"""A process that is killed while it fetches, or by the image it decodes: the journal takes the part to its end."""

import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.fetch_process import fetch, start, write_job
from support.hostile_server import HostileServer, Request, fixed, picture, server  # noqa: F401
from support.killable import kill
from support.killable import start as start_forked

CONCURRENCY = 4
URLS = [f"http://host{number % 7}.example/{number}.jpg" for number in range(48)]


def serve_pictures(server: HostileServer) -> None:  # noqa: F811
    for number in range(len(URLS)):
        kind = "PNG" if number % 3 == 0 else "JPEG"
        body = picture(300, 260 + number, seed=number, image_format=kind)
        server.routes[f"/{number}.jpg"] = fixed(404) if number % 11 == 5 else fixed(200, body)
    server.hosts["host3.example", "/robots.txt"] = fixed(200, b"User-agent: *\nDisallow: /10.jpg\n")


def result(folder: Path) -> tuple[bytes, list[dict[str, object]]]:
    return (folder / "out.tar").read_bytes(), pq.read_table(folder / "out.parquet").to_pylist()


def test_after_kills_at_any_moment_little_is_requested_again(server: HostileServer, tmp_path: Path) -> None:  # noqa: F811
    serve_pictures(server)
    settings = {"gateway": server.gateway, "concurrency": CONCURRENCY, "timeout_s": 20}
    fetch(write_job(tmp_path / "whole", URLS, **settings))
    once = {url for url in server.hits if not url.endswith("robots.txt")}
    robots = {url for url in server.hits if url.endswith("robots.txt")}
    server.hits.clear()
    kills = 0
    job = write_job(tmp_path / "killed", URLS, **settings)
    for upto in (1, 5, 14, 20, 33, 50):
        process = start_forked(fetch, job)
        while sum(server.hits.values()) < upto and process.is_alive():
            time.sleep(0.002)
        kills += kill(process)
    assert kills >= 4
    fetch(job)
    assert result(tmp_path / "killed") == result(tmp_path / "whole")
    assert {url for url in server.hits if not url.endswith("robots.txt")} == once
    again = sum(server.hits.values()) - len(once) - len(robots)
    assert again <= kills * CONCURRENCY


CRASH = """
import signal, threading
import PIL.Image
real = PIL.Image.open
def open_or_crash(file, *args, **options):
    if b"CRASH" in file.getvalue():
        signal.pthread_kill(threading.get_ident(), signal.{signal})
    return real(file, *args, **options)
PIL.Image.open = open_or_crash
"""


@pytest.mark.parametrize("signal", ["SIGSEGV", "SIGKILL", "SIGABRT"])
def test_an_image_that_crashes_the_decoder_is_found_and_the_part_goes_on(
    server: HostileServer,  # noqa: F811
    tmp_path: Path,
    signal: str,
) -> None:
    serve_pictures(server)
    server.routes["/crash.png"] = fixed(200, picture(image_format="PNG") + b"CRASH")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(CRASH.format(signal=signal))
    urls = [*URLS[:9], "http://host1.example/crash.png", *URLS[9:20]]
    settings = {"gateway": server.gateway, "concurrency": CONCURRENCY, "timeout_s": 20}
    folder = tmp_path / "part"
    assert start(folder, urls, path=(tmp_path / "site",), **settings).wait(120) < 0
    assert start(folder, urls, path=(tmp_path / "site",), **settings).wait(120) == 0
    _, rows = result(folder)
    crashed = {row["url"]: row for row in rows if row["reason"] == "decoder_crashed"}
    assert set(crashed) == {"http://host1.example/crash.png"}
    (row,) = crashed.values()
    assert (row["error_message"], row["status"]) == (f"the decoder ended with {signal}", "failed_to_resize")
    assert len(str(row["sha256"])) == 64
    assert sum(row["status"] == "success" for row in rows) >= 16
