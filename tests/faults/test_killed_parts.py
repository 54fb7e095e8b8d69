"""`kill -9` at ten random moments of a part with 2,000 URLs: no URL that was answered is requested again."""

import random
import time
from collections import Counter
from pathlib import Path

import boto3
import fsspec
import pytest
from support.image_server import ImageServer, serve_images
from support.killable import kill, start_build
from support.recorded_web import make_images, make_web_project, tree
from support.s3_server import s3_server, s3_settings

from pipeline.cli.main import main

pytestmark = pytest.mark.slow

URLS, KILLS, CONCURRENCY = 2_000, 10, 8
SEED = 20_261_128


@pytest.fixture(scope="module")
def web():
    with serve_images(make_images(URLS)) as server:
        yield server


def project(folder: Path, web: ImageServer, workspace: str = "work") -> Path:
    config = make_web_project(
        folder, URLS, web, parts=1, files=1, concurrency=CONCURRENCY, host_concurrency=CONCURRENCY
    )
    text = config.read_text().replace("cap = 15", f"cap = {2 * URLS}")
    config.write_text(text.replace('workspace = "work"', f'workspace = "{workspace}"'))
    return config


def kill_at_random_moments(config: Path, web: ImageServer) -> int:
    """Start the build again and again, and kill it; return how often it was killed while it was fetching."""
    web.requests.clear()
    kills = 0
    for moment in sorted(random.Random(SEED).sample(range(1, URLS), KILLS)):
        process = start_build(config, "--to", "fetched")
        while web.requests.total() < moment and process.is_alive():
            time.sleep(0.003)
        kills += kill(process)
    last = start_build(config, "--to", "fetched")
    last.join(120)
    assert last.exitcode == 0
    return kills


def check_requests(requests: Counter[str], once: Counter[str], kills: int) -> None:
    """Check that every URL was requested, and again only those in flight at a kill."""
    images = {url: count for url, count in requests.items() if not url.endswith("/robots.txt")}
    assert images.keys() == {url for url in once if not url.endswith("/robots.txt")}
    assert len(images) == URLS
    again = sum(images.values()) - URLS
    assert again <= kills * CONCURRENCY, f"{again} requests again after {kills} kills"
    robots = {url: count for url, count in requests.items() if url.endswith("/robots.txt")}
    assert sum(robots.values()) <= len(robots) + kills


@pytest.fixture(scope="module")
def whole(web: ImageServer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Counter[str], dict[str, str]]:
    """The requests and the files of a build that nothing interrupts."""
    config = project(tmp_path_factory.mktemp("whole"), web)
    web.requests.clear()
    assert main(["build", "-c", str(config), "--to", "fetched", "--quiet"]) == 0
    return Counter(web.requests), tree(config.parent / "work", "plan", "fetched")


def test_on_local_disk(web, whole, tmp_path):
    once, files = whole
    config = project(tmp_path, web)
    kills = kill_at_random_moments(config, web)
    assert kills >= KILLS - 2
    check_requests(web.requests, once, kills)
    assert tree(config.parent / "work", "plan", "fetched") == files
    assert not list((config.parent / "work").rglob("*.journal"))


def test_on_an_s3_server(web, whole, tmp_path, monkeypatch):
    once, files = whole
    with s3_server() as url, s3_settings(url):
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        boto3.client("s3").create_bucket(Bucket="wit")
        config = project(tmp_path / "project", web, "s3://wit/work")
        kills = kill_at_random_moments(config, web)
        assert kills >= KILLS - 2
        check_requests(web.requests, once, kills)
        fs = fsspec.filesystem("s3")
        for folder in ("plan", "fetched"):
            fs.get(f"wit/work/{folder}", str(tmp_path / "copy" / folder), recursive=True)
        assert tree(tmp_path / "copy") == files
        assert not fs.find("wit/work/.wit/journal")
