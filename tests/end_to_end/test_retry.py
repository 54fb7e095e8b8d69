"""`wit build --retry`: only the named failures are requested again, and the set is that of a build without them."""

from pathlib import Path

import pytest
from support.image_server import ImageServer, serve_images
from support.recorded_web import image_url, make_images, make_web_project, tree

from pipeline.cli.main import main

pytestmark = pytest.mark.slow

IMAGES = 120
DOWN = {image_url(i) for i in range(0, IMAGES, 4)}


@pytest.fixture
def web():
    with serve_images(make_images(IMAGES)) as server:
        yield server


def project(folder: Path, web: ImageServer) -> Path:
    return make_web_project(folder, IMAGES, web, retries=0)


def build(config: Path, web: ImageServer, *options: str) -> set[str]:
    web.requests.clear()
    assert main(["build", "-c", str(config), "--quiet", *options]) == 0
    assert not web.requests or max(web.requests.values()) == 1
    return {url for url in web.requests if not url.endswith("robots.txt")}


def made(config: Path) -> dict[str, str]:
    """Return the finished files; markers of sources know when those were written."""
    return tree(config.parent / "work", "plan", "fetched", "dedup", "shards")


NOW = ("--retry", "http_server_error", "--retry-older-than", "0s")


def test_only_what_failed_is_requested_again_and_joins_the_set(web, tmp_path, capsys):
    everything = build(project(tmp_path / "fresh", web), web)
    whole = made(tmp_path / "fresh" / "wit.toml")

    config = project(tmp_path / "project", web)
    web.unavailable = DOWN
    assert build(config, web) == everything
    assert made(config) != whole
    capsys.readouterr()
    assert main(["status", "-c", str(config)]) == 0
    assert "`wit build --retry http_server_error` requests them again" in capsys.readouterr().out

    assert build(config, web, "--retry", "http_server_error") == set()  # too young
    web.unavailable = set()
    assert build(config, web, *NOW) == everything & DOWN
    assert made(config) == whole
    assert build(config, web) == build(config, web, *NOW) == set()


def test_what_fails_again_stays_and_a_refusal_is_final(web, tmp_path, capsys):
    config = project(tmp_path / "project", web)
    web.unavailable = DOWN
    everything = build(config, web)
    before = made(config)
    assert build(config, web, *NOW) == everything & DOWN
    assert made(config) == before
    for wrong in ("http_not_found", "opted_out", "robots_disallowed", "nonsense", ""):
        capsys.readouterr()
        assert main(["build", "-c", str(config), "--retry", wrong]) != 0
        assert capsys.readouterr().err.count("\n") == 1
    assert main(["build", "-c", str(config), "--retry", "timeout", "--retry-older-than", "soon"]) != 0


def test_two_processes_request_only_what_failed(web, tmp_path):
    config = project(tmp_path / "project", web)
    two = ("--to", "fetched", "--direct_num_workers", "2")
    web.unavailable = DOWN
    everything = build(config, web, *two)
    web.unavailable = set()
    assert build(config, web, *NOW, *two) == everything & DOWN
    assert build(config, web, *NOW, *two) == set()
