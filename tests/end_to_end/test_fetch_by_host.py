"""Several processes share the hosts of a fetch: the same tree as from one, and no host asked by two."""

from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from support.image_server import ImageServer, serve_images
from support.recorded_web import make_images, make_project, tree

from pipeline.cli.main import main
from pipeline.errors import UserError
from pipeline.fetching.host_cut import cut_hosts
from pipeline.stages import crawl, fetched

pytestmark = pytest.mark.slow

IMAGES = 120


@pytest.fixture(scope="module")
def web():
    with serve_images(make_images(IMAGES)) as server:
        yield server


def project(folder: Path, web: ImageServer) -> Path:
    return make_project(
        folder,
        IMAGES,
        archives=[],
        network=True,
        gateway=web.gateway,
        contact="mailto:test@example.org",
        host_interval_s=0.0,
    )


def build(config: Path, web: ImageServer, *options: str) -> Counter:
    web.requests.clear()
    assert main(["build", "-c", str(config), "--quiet", "--to", "fetched", *options]) == 0
    return Counter(web.requests)


def made(config: Path) -> dict[str, str]:
    return tree(config.parent / "work", "plan", "fetched", ".wit/fetched")


@pytest.fixture(scope="module")
def alone(web, tmp_path_factory):
    """The tree of a build with one process, and its requests."""
    config = project(tmp_path_factory.mktemp("alone") / "project", web)
    requests = build(config, web)
    return made(config), requests


@pytest.fixture
def small_windows(monkeypatch):
    monkeypatch.setattr(fetched, "cut_hosts", partial(cut_hosts, window_urls=10))


def test_processes_share_the_hosts(web, tmp_path, alone):
    config = project(tmp_path / "project", web)
    requests = build(config, web, "--direct_num_workers", "2")
    assert made(config) == alone[0]
    assert requests == alone[1]


def test_windows(web, tmp_path, alone, small_windows):
    config = project(tmp_path / "project", web)
    requests = build(config, web, "--direct_num_workers", "2")
    assert made(config) == alone[0]
    assert requests == alone[1]


def test_a_build_that_stops_before_the_parts_are_made_goes_on_with_any_number_of_processes(
    web, tmp_path, alone, small_windows, monkeypatch
):
    config = project(tmp_path / "project", web)

    def stop(build, step, units, prepare, **options):
        raise UserError("stopped")

    with monkeypatch.context() as stopped:
        stopped.setattr(fetched, "run_units", stop)  # of the parts; the crawl has its own
        web.requests.clear()
        assert main(["build", "-c", str(config), "--quiet", "--to", "fetched", "--direct_num_workers", "2"]) != 0
    assert Counter(web.requests) == alone[1]
    (name,) = crawl.crawls_begun(crawl.Workspace(str(config.parent / "work")))
    assert build(config, web) == Counter()
    assert made(config) == alone[0], name


def test_another_plan_does_not_discard_a_crawl_in_silence(web, tmp_path, alone, monkeypatch, capsys):
    config = project(tmp_path / "project", web)

    def stop(build, step, units, prepare, **options):
        raise UserError("stopped")

    with monkeypatch.context() as stopped:
        stopped.setattr(fetched, "run_units", stop)
        assert main(["build", "-c", str(config), "--quiet", "--to", "fetched", "--direct_num_workers", "2"]) != 0
    config.write_text(config.read_text().replace("cap = 15", "cap = 5"))
    capsys.readouterr()
    assert main(["build", "-c", str(config), "--quiet", "--to", "fetched", "--direct_num_workers", "2"]) == 1
    assert "images of another plan" in capsys.readouterr().err
    config.write_text(config.read_text().replace("cap = 5", "cap = 15"))
    assert build(config, web, "--direct_num_workers", "2") == Counter()
    assert made(config) == alone[0]
