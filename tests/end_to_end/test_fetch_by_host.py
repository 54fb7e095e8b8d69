"""Several processes share the hosts of a fetch: the same tree as from one, and no host asked by two."""

import hashlib
import io
import json
import tarfile
from collections import Counter
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from support.image_server import ImageServer, serve_images
from support.recorded_web import WORDS, image_url, make_images, make_web_project, tree

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
    return make_web_project(folder, IMAGES, web)


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


def mixed(folder: Path, web: ImageServer, count: int = 60) -> Path:
    """A project with some images in a tar of its own, some with right and wrong hashes stated, others in pages."""
    images = make_images(IMAGES)
    config = project(folder, web)
    with tarfile.open(folder / "mine.tar", "w") as tar:
        for i in range(0, count, 4):
            body = images.get(image_url(i), b"missing")
            facts = json.dumps({"url": image_url(i)}).encode()
            for name, content in ((f"{i}.jpg", body), (f"{i}.txt", f"A {WORDS[0]} {i}".encode()), (f"{i}.json", facts)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    rows = [
        (image_url(i), f"A {WORDS[1]} {i}", sha256(images.get(image_url(i), b"")) if i % 3 else "ab" * 32)
        for i in range(0, count, 2)
    ]
    names = ("url", "caption", "sha256")
    pq.write_table(pa.table(dict(zip(names, zip(*rows, strict=True), strict=True))), folder / "list.parquet")
    config.write_text(
        config.read_text().replace("cap = 15", "cap = 200")
        + '[[sources]]\nkind = "webdataset"\npaths = ["mine.tar"]\n'
        + '[[sources]]\nkind = "url-table"\npaths = ["list.parquet"]\nsha256 = "sha256"\n'
    )
    return config


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_images_in_tars_are_not_requested_and_stated_hashes_hold(web, tmp_path, small_windows):
    config = mixed(tmp_path / "one", web)
    requests = build(config, web)
    table = pa.concat_tables([pq.read_table(path) for path in (tmp_path / "one/work/fetched").glob("*.parquet")])
    stored = set(table["url"].filter(pc.is_valid(table["image_bytes"])).to_pylist())
    wrong = {row["url"]: row["reason"] for row in table.to_pylist() if row["stated_hash"] == f"sha256:{'ab' * 32}"}
    assert stored
    assert not stored & requests.keys()
    assert {reason for url, reason in wrong.items() if url not in stored} >= {"hash_mismatch"}
    assert not {url for url, reason in wrong.items() if url not in stored and reason is None}
    several = mixed(tmp_path / "two", web)
    assert build(several, web, "--direct_num_workers", "2") == requests
    assert made(several) == made(config)


def test_a_hash_that_is_stated_later_is_compared_by_a_further_fetch(web, tmp_path, small_windows):
    config = mixed(tmp_path / "project", web)
    with_hashes = config.read_text()
    config.write_text(with_hashes.replace('sha256 = "sha256"\n', ""))
    build(config, web, "--direct_num_workers", "2")
    config.write_text(with_hashes)
    requests = build(config, web, "--direct_num_workers", "2")
    fresh = mixed(tmp_path / "fresh", web)
    build(fresh, web)
    assert made(config) == made(fresh)
    wrong = {image_url(i) for i in range(0, 60, 6) if i % 4}
    assert {url for url in requests if url.endswith(".jpg")} <= wrong
