"""`wit forecast`: a sample of the plan is fetched, and what it says holds for the build."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.image_server import ImageServer, serve_images
from support.recorded_web import make_images, make_project, make_web_project

from pipeline.cli.main import main
from pipeline.stages.forecast import HostClass, _stratified

pytestmark = pytest.mark.slow

IMAGES = 240


@pytest.fixture(scope="module")
def web() -> Iterator[ImageServer]:
    with serve_images(make_images(IMAGES)) as server:
        yield server


@pytest.fixture
def project(tmp_path: Path, web: ImageServer) -> Path:
    config = make_web_project(tmp_path / "project", IMAGES, web)
    config.write_text(config.read_text().replace("cap = 15", "cap = 60"))
    return config


def forecast(config: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict:
    capsys.readouterr()
    assert main(["forecast", "-c", str(config), "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_outcome_lies_within_the_forecast(
    project: Path, web: ImageServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", "-c", str(project), "--quiet", "--to", "plan"]) == 0
    web.requests.clear()
    found = forecast(project, capsys, "--sample", "90", "--workers", "4")
    asked = [url for url in web.requests if not url.endswith("robots.txt")]
    assert len(asked) == found["sampled"] == 90
    again = forecast(project, capsys, "--sample", "90")
    assert {**again, "workers": 0} | {k: 0 for k in again if k.startswith(("hours", "dollars"))} == {
        **found, "workers": 0
    } | {k: 0 for k in again if k.startswith(("hours", "dollars"))}  # fmt: skip
    plan = [row for path in (project.parent / "work/plan").glob("part-*") for row in pq.read_table(path).to_pylist()]
    assert found["planned_urls"] == len({row["url"] for row in plan})
    assert sum(c["urls"] for c in found["classes"]) == found["planned_urls"]
    assert sum(c["sampled"] for c in found["classes"]) == found["sampled"]

    capsys.readouterr()
    assert main(["build", "-c", str(project), "--quiet"]) == 0
    assert "as forecast" in capsys.readouterr().out
    tables = (project.parent / "work/fetched").glob("*.parquet")
    rows = [row for path in tables for row in pq.read_table(path).to_pylist()]
    good = {row["url"] for row in rows if row["status"] == "success"}
    share = len(good) / found["planned_urls"]
    assert found["success"]["low"] <= share <= found["success"]["high"]
    stored = sum(path.stat().st_size for path in (project.parent / "work/fetched").glob("*.tar")) / 1e9
    assert found["stored_gb"]["low"] * 0.8 <= stored <= found["stored_gb"]["high"] * 1.2
    per_query = np.zeros(found["queries"], int)
    for row in rows:
        if row["status"] == "success":
            per_query[row["selected_by"]] += 1
    assert found["queries_empty"]["low"] - 1 <= (per_query == 0).sum() <= found["queries_empty"]["high"] + 1
    assert found["queries_at_cap"]["low"] - 1 <= (per_query >= 60).sum() <= found["queries_at_cap"]["high"] + 1


def test_images_in_tars_are_read_without_requests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = make_project(tmp_path / "first")
    assert main(["build", "-c", str(first), "--quiet", "--to", "shards"]) == 0
    config = make_project(tmp_path / "again", 10, archives=[], host_interval_s=3600.0)
    tars = f'kind = "webdataset"\npaths = ["{first.parent}/work/shards/*.tar"]'
    config.write_text(config.read_text().replace('kind = "warc"\npaths = ["web-*.warc.gz"]', tars))
    assert main(["build", "-c", str(config), "--quiet", "--to", "plan"]) == 0
    found = forecast(config, capsys, "--sample", "20")
    assert [(c["name"], c["urls"]) for c in found["classes"]] == [("images in tars", found["planned_urls"])]
    assert (found["sampled"], found["classes"][0]["succeeded"]) == (24, 24)
    assert (found["busiest_host_urls"], found["hours_by_busiest_host"]) == (0, 0)
    assert main(["forecast", "-c", str(config)]) == 0
    said = capsys.readouterr().out
    assert "all are in tars: no requests" in said
    assert "of one host" not in said


def test_the_interval_of_a_stratified_sample_holds_the_truth_nearly_always() -> None:
    random = np.random.default_rng(5)
    sizes, shares = np.array([3_000, 20_000, 50_000]), np.array([0.3, 0.65, 0.9])
    truth = float((sizes * shares).sum() / sizes.sum())
    held = 0
    for _ in range(400):
        sampled = random.multinomial(300, sizes / sizes.sum())
        succeeded = random.binomial(sampled, shares)
        classes = [HostClass("", int(n), int(s), int(k)) for n, s, k in zip(sizes, sampled, succeeded, strict=True)]
        interval = _stratified(classes)
        held += interval.low <= truth <= interval.high
    assert held >= 0.93 * 400
    assert _stratified([HostClass("", 10, 0, 0)]).low == 0.0


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ((), 1, "run `wit build --to plan` first"),
        (("--sample", "none"), 2, "not a number from 1"),
        (("--worker-hour", "-1"), 2, "not a price"),
    ],
)
def test_what_cannot_be_forecast_is_one_line(
    project: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], code: int, said: str
) -> None:
    try:
        ended = main(["forecast", "-c", str(project), *options])
    except SystemExit as stop:  # argparse's own
        ended = int(stop.code or 0)
    assert ended == code
    assert said in capsys.readouterr().err


def test_archives_need_no_forecast(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_project(tmp_path / "archives")
    assert main(["build", "-c", str(config), "--quiet", "--to", "plan"]) == 0
    assert main(["forecast", "-c", str(config)]) == 2
    assert "fetch.archives" in capsys.readouterr().err
