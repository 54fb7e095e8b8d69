"""A whole build, through the command a user types, on every runner there is: the same shards, byte for byte.

Some images come from an archive, the others from a server that counts: nobody is asked twice for one picture, unless a
process died in between.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.image_server import ImageServer, serve_images
from support.recorded_web import make_images, make_web_project, tree
from support.spark_cluster import LOCAL, end_job_servers, in_mid_run, kill_worker, on_cluster

from pipeline.beam.spark.cluster import Cluster, local_cluster
from pipeline.cli.main import main

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.usefixtures("spark")]

IMAGES = 120


@dataclass
class Rehearsal:
    """A project, its web, and what an undisturbed build on the local engine made of them."""

    config: Path
    web: ImageServer
    shards: dict[str, str]
    requests: Counter[str]

    def build(self, folder: Path, *options: str, to: str = "report") -> int:
        """Build a copy of the project in `folder`, which may hold the workspace of a build before; count afresh."""
        if not folder.exists():
            shutil.copytree(self.config.parent, folder, ignore=shutil.ignore_patterns("work"))
        self.web.requests.clear()
        return main(["build", "-c", str(folder / "wit.toml"), "--quiet", "--to", to, *options])

    def image_requests(self) -> Counter[str]:
        """Return how often each picture was asked for. (Every process asks for a host's robots.txt itself.)"""
        return Counter({url: n for url, n in self.web.requests.items() if not url.endswith("/robots.txt")})


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    folder = tmp_path_factory.mktemp("rehearsal")
    with serve_images(make_images(IMAGES)) as web:
        config = make_web_project(folder / "project", IMAGES, web, parts=6, archives=["web-0.warc.gz"])
        made = Rehearsal(config, web, {}, Counter())
        assert made.build(folder / "project") == 0
        made.shards, made.requests = shards(folder / "project"), made.image_requests()
        yield made


def shards(project: Path) -> dict[str, str]:
    return tree(project / "work" / "shards")


def test_the_rehearsal_asks_once_for_each_picture_that_the_archive_lacks(rehearsal):
    assert set(rehearsal.requests.values()) == {1}
    assert 0 < len(rehearsal.requests) < IMAGES
    assert any(name.endswith(".tar") for name in rehearsal.shards)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["--direct_running_mode=multi_processing", "--direct_num_workers=2"], id="processes"),
        pytest.param(["--direct_runner_bundle_repeat=2"], id="bundle-repeat"),
        pytest.param(LOCAL, id="spark-local"),
    ],
)
def test_same_shards_on(options, rehearsal, tmp_path):
    assert rehearsal.build(tmp_path / "copy", *options) == 0
    assert shards(tmp_path / "copy") == rehearsal.shards
    assert rehearsal.image_requests() == rehearsal.requests


def test_same_shards_on_a_cluster(rehearsal, cluster, tmp_path):
    assert rehearsal.build(tmp_path / "copy", *on_cluster(cluster)) == 0
    assert shards(tmp_path / "copy") == rehearsal.shards
    assert rehearsal.image_requests() == rehearsal.requests


def test_a_worker_and_its_executor_die_in_mid_fetch(rehearsal, tmp_path, monkeypatch):
    """The plan is made before the cluster starts, so that the blow falls while images are fetched."""
    (tmp_path / "cluster").mkdir()
    assert rehearsal.build(tmp_path / "copy", to="plan") == 0
    monkeypatch.setattr(rehearsal.web, "pause_s", 0.2)

    def some_images_are_fetched() -> bool:
        return len(rehearsal.image_requests()) >= len(rehearsal.requests) // 4

    with (
        local_cluster(tmp_path / "cluster") as cluster,
        in_mid_run(some_images_are_fetched, strike_at_worker(cluster)),
    ):
        code = rehearsal.build(tmp_path / "copy", *on_cluster(cluster))
    end_job_servers()
    asked = rehearsal.image_requests()
    assert code == 0
    assert shards(tmp_path / "copy") == rehearsal.shards
    assert set(asked) == set(rehearsal.requests)
    assert max(asked.values()) <= 2


def strike_at_worker(cluster: Cluster) -> Callable[[], None]:
    return lambda: kill_worker(cluster)
