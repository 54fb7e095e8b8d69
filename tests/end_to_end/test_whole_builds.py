"""Whole builds of a recorded web, through the command a user types."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.recorded_web import caption, image_url, make_project, tree

from pipeline.account import ACCOUNT_LINES
from pipeline.cli.main import main

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A project with its undisturbed build; tests that change something work on copies."""
    config = make_project(tmp_path_factory.mktemp("whole"))
    assert main(["build", "-c", str(config), "--quiet"]) == 0
    return config


def start(config: Path, *options: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "pipeline.cli", "build", "-c", str(config), "--quiet", *options]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)


def copy_project(config: Path, folder: Path) -> Path:
    """Make the same project elsewhere, without its workspace; times of change stay, for they identify the sources."""
    import shutil

    shutil.copytree(config.parent, folder, ignore=shutil.ignore_patterns("work"))
    return folder / "wit.toml"


def test_every_stage_lost_what_it_should(project):
    work = project.parent / "work"
    account = json.loads((work / "report/accounting.json").read_text())
    assert account["closes"]
    stages = {stage["stage"]: stage for stage in account["stages"]}
    assert tuple(stages) == tuple(line for line in ACCOUNT_LINES if line != "filtered")
    assert stages["pairs"]["reasons"]["repeated_text"] == len(range(0, 120, 9))
    fetched = stages["fetched"]["reasons"]
    assert set(fetched) == {"not_in_archives", "broken_image"} or set(fetched) == {"not_in_archives", "truncated"}
    assert stages["dedup"]["reasons"]["exact_duplicate"] > 0
    assert stages["dedup"]["reasons"]["near_duplicate"] > 0
    assert stages["balance"]["kept"] == sum(json.loads((work / "shards/sizes.json").read_text()).values())


def test_samples_are_true(project):
    tables = [pq.read_table(p) for p in sorted((project.parent / "work/shards").glob("*.parquet"))]
    rows = [row for table in tables for row in table.to_pylist() if row["status"] == "success"]
    told = {image_url(i): caption(i) for i in range(120)}
    for row in rows:
        assert row["caption"] == told[row["url"]] or row["caption"].startswith("A second text")
        assert min(row["width"], row["height"]) == 64
        assert max(row["selected_by"]) < 10
    per_query = Counter(query for row in rows for query in row["selected_by"])
    assert max(per_query.values()) == 15
    overlap = pq.read_table(project.parent / "work/dedup/overlap/shapes.parquet").to_pylist()
    assert {row["eval_id"].split("/")[-1] for row in overlap} == {"0.png", "1.png", "2.png"}


def test_a_finished_build_is_left_alone(project):
    before = written(project.parent / "work")
    assert main(["build", "-c", str(project), "--quiet"]) == 0
    assert written(project.parent / "work") == before


def written(work: Path) -> dict[Path, int]:
    """Return when each file and folder was last written, but for the lock and the folder of the build's record."""
    return {p: p.stat().st_mtime_ns for p in work.rglob("*") if p not in (work / ".wit", work / ".wit/lock")}


@pytest.mark.parametrize(
    "options",
    [
        ("--direct_runner_bundle_repeat=2",),
        ("--direct_running_mode=multi_processing", "--direct_num_workers=2"),
    ],
)
def test_other_ways_to_run_give_the_same_tree(project, tmp_path, options):
    config = copy_project(project, tmp_path / "copy")
    assert start(config, *options).wait() == 0
    assert tree(config.parent / "work") == tree(project.parent / "work")


def test_kill_at_any_moment_and_resume(project, tmp_path):
    config = copy_project(project, tmp_path / "killed")
    moments = random.Random(5)
    seen: set[Path] = set()
    kills = 0
    for _ in range(5):
        seen.update((config.parent / "work/.wit").rglob("*.json"))
        build = start(config)
        enough = len(seen) + moments.randint(1, 6)  # units, of any stage
        while build.poll() is None and len(seen) < enough:
            with suppress(FileNotFoundError):  # a stage's folder goes when the stage is done
                seen.update((config.parent / "work/.wit").rglob("*.json"))
            time.sleep(0.01)
        if build.poll() is None:
            os.killpg(build.pid, signal.SIGKILL)
            kills += not (config.parent / "work/report/index.html").exists()
        build.wait()
    assert kills >= 3
    assert start(config).wait() == 0
    assert tree(config.parent / "work") == tree(project.parent / "work")


def test_a_changed_config_redoes_what_it_touches(project, tmp_path):
    config = copy_project(project, tmp_path / "changed")
    assert main(["build", "-c", str(config), "--quiet"]) == 0
    work = config.parent / "work"
    fetched = {p: p.stat().st_mtime_ns for p in (work / "fetched").iterdir()}
    text = config.read_text()

    config.write_text(text.replace("[dedup]", "[dedup]\nmax_distance_bits = 8"))
    assert main(["build", "-c", str(config), "--quiet"]) == 0
    assert {p: p.stat().st_mtime_ns for p in (work / "fetched").iterdir()} == fetched

    # Nothing here is from the web: other images are read from the archives without asking for --refetch.
    config.write_text(text.replace("image_size = 64", "image_size = 32"))
    assert main(["build", "-c", str(config), "--quiet"]) == 0
    assert {p: p.stat().st_mtime_ns for p in (work / "fetched").iterdir()}.items().isdisjoint(fetched.items())
    config.write_text(text)
    assert main(["build", "-c", str(config), "--quiet"]) == 0
    assert tree(work) == tree(project.parent / "work")


def test_results_of_a_model_are_split_in_the_report_and_others_refused(project, tmp_path, capsys):
    import shutil

    shutil.copytree(project.parent, tmp_path / "evaluated")
    config, work = tmp_path / "evaluated/wit.toml", tmp_path / "evaluated/work"
    overlap = pq.read_table(work / "dedup/overlap/shapes.parquet").to_pylist()
    found = {row["eval_id"] for row in overlap if row["kept"]}
    ids = [
        row["eval_id"] for row in pq.read_table(work / "evals/shapes/index.parquet").to_pylist() if not row["reason"]
    ]
    assert 0 < len(found) < len(ids)
    results = work / "evals/shapes/results/model.parquet"
    results.parent.mkdir()
    pq.write_table(pa.table({"eval_id": ids, "correct": [eval_id in found for eval_id in ids]}), results)
    assert main(["report", "-c", str(config)]) == 0
    (shapes,) = json.loads((work / "report/overlap.json").read_text())["sets"]
    (score,) = shapes["accuracies"]
    split = {part: (score[part]["count"], score[part]["total"]) for part in ("overlap", "clean")}
    assert split == {"overlap": (len(found), len(found)), "clean": (0, len(ids) - len(found))}
    pq.write_table(pa.table({"eval_id": [*ids, "class0/gone.png"], "correct": [True] * (len(ids) + 1)}), results)
    before = (work / "report/overlap.json").read_bytes()
    capsys.readouterr()
    assert main(["report", "-c", str(config)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"1 of {len(ids) + 1} examples are not in evals/shapes/index.parquet, such as 'class0/gone.png'" in error
    assert (work / "report/overlap.json").read_bytes() == before
    assert main(["build", "-c", str(config), "--quiet"]) == 1
    results.unlink()
    assert main(["build", "-c", str(config), "--quiet"]) == 0


def test_new_results_of_any_model_renew_the_report(project, tmp_path):
    import shutil

    shutil.copytree(project.parent, tmp_path / "evaluated")
    config, work = tmp_path / "evaluated/wit.toml", tmp_path / "evaluated/work"
    index = pq.read_table(work / "evals/shapes/index.parquet").to_pylist()
    ids = [row["eval_id"] for row in index if not row["reason"]]

    def build_with(model: str, right: int) -> dict[str, int]:
        """Return how many right answers of which model the report shows."""
        results = work / f"evals/shapes/results/{model}.parquet"
        results.parent.mkdir(exist_ok=True)
        correct = [number < right for number in range(len(ids))]
        table = pa.table({"eval_id": ids, "correct": correct}).replace_schema_metadata(
            {"wit": f'{{"model": "{model}"}}'}
        )
        pq.write_table(table, results)
        sizes.add(results.stat().st_size)
        assert main(["build", "-c", str(config), "--quiet"]) == 0
        page = (work / "report/index.html").read_text()
        (shapes,) = json.loads((work / "report/overlap.json").read_text())["sets"]
        assert all(f"<bdi>{score['model']}</bdi>" in page for score in shapes["accuracies"])
        return {score["model"]: score["all"]["count"] for score in shapes["accuracies"]}

    sizes: set[int] = set()
    assert build_with("other", 3) == {"other": 3}
    assert build_with("model", 2) == {"model": 2, "other": 3}
    assert build_with("model", 1) == {"model": 1, "other": 3}
    assert len(sizes) == 1
