"""Another cap, after everything was fetched: only what is new is asked for, and the set is that of a fresh build."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.image_server import ImageServer, serve_images
from support.recorded_web import make_images, make_web_project, tree

from pipeline.cli.main import main
from pipeline.errors import UserError
from pipeline.stages import fetched

pytestmark = pytest.mark.slow

IMAGES = 120


@pytest.fixture(scope="module")
def web() -> Iterator[ImageServer]:
    with serve_images(make_images(IMAGES)) as server:
        yield server


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, web: ImageServer) -> Path:
    config = make_web_project(tmp_path_factory.mktemp("built") / "project", IMAGES, web)
    assert build(config, web, cap=15)
    return config


@pytest.fixture
def project(tmp_path: Path, built: Path) -> Path:
    """A project whose set is built, with a cap of 15."""
    return Path(shutil.copytree(built.parent, tmp_path / "project")) / built.name


def build(config: Path, web: ImageServer, *options: str, cap: int) -> list[str]:
    """Build with another cap; return the URLs that the web was asked for."""
    lines = [f"cap = {cap}" if line.startswith("cap =") else line for line in config.read_text().splitlines()]
    config.write_text("\n".join(lines))
    web.requests.clear()
    assert main(["build", "-c", str(config), "--quiet", *options]) == 0
    return sorted(url for url in web.requests.elements() if not url.endswith("robots.txt"))


def fresh(config: Path, web: ImageServer, folder: Path, cap: int) -> tuple[Path, list[str]]:
    shutil.copytree(config.parent, folder, ignore=shutil.ignore_patterns("work"))
    asked = build(folder / "wit.toml", web, cap=cap)
    return folder / "work", asked


def _with_consent(work: Path) -> dict[str, list[str]]:
    """Return part -> the URLs of which the ledger has when consent was looked for."""
    return {path.name: pq.read_table(path)["url"].to_pylist() for path in (work / "consent").glob("*.parquet")}


def stop_fetching(project: Path, web: ImageServer, monkeypatch: pytest.MonkeyPatch, units_done: int = 0) -> None:
    """Change the cap, so that the images of the earlier plan are put aside, and stop after some units of the fetch."""
    run_units = fetched.run_units

    def stop(build, step, units, prepare, **options):
        run_units(build, step, units[:units_done], prepare, **options)
        raise UserError("stopped")

    with monkeypatch.context() as stopped:
        stopped.setattr(fetched, "run_units", stop)
        with pytest.raises(AssertionError):
            build(project, web, cap=5)


def test_another_cap_asks_only_for_what_is_new(project: Path, web: ImageServer, tmp_path: Path) -> None:
    _, asked_at_15 = fresh(project, web, tmp_path / "15", 15)
    small, asked_at_5 = fresh(project, web, tmp_path / "5", 5)
    large, asked_at_30 = fresh(project, web, tmp_path / "30", 30)
    assert set(asked_at_5) < set(asked_at_15) < set(asked_at_30)

    assert build(project, web, cap=30) == sorted(set(asked_at_30) - set(asked_at_15))
    assert tree(project.parent / "work") == tree(large)
    assert build(project, web, cap=5) == []
    assert tree(project.parent / "work") == tree(small)


def test_a_plan_that_outgrows_its_parts_asks_only_for_what_is_new(
    tmp_path: Path, web: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.stages.plan_parts.PAIRS_PER_PART", 20)
    project = make_web_project(tmp_path / "project", IMAGES, web, parts=None)
    asked: set[str] = set()
    numbers = []
    builds: dict[int, tuple[Path, list[str]]] = {}
    for cap in (5, 30, 5, 2):
        requests = build(project, web, cap=cap)
        if cap not in builds:
            builds[cap] = fresh(project, web, tmp_path / str(cap), cap)
        whole, asked_fresh = builds[cap]
        assert requests == sorted(set(asked_fresh) - asked)
        assert tree(project.parent / "work") == tree(whole)
        assert _with_consent(project.parent / "work") == _with_consent(whole)
        asked = set(asked_fresh)  # what was fetched for the plan before is kept for the next one
        numbers.append(len(list((whole / "fetched").glob("*.tar"))))
    assert numbers[1] > numbers[0] == numbers[2] > numbers[3]


@pytest.mark.parametrize("units_done", [0, 3])
def test_a_change_that_is_stopped_and_taken_back_costs_nothing(
    project: Path, web: ImageServer, monkeypatch: pytest.MonkeyPatch, units_done: int
) -> None:
    before = tree(project.parent / "work")
    stop_fetching(project, web, monkeypatch, units_done)
    assert build(project, web, cap=15) == []
    assert tree(project.parent / "work") == before


def test_a_flipped_bit_of_an_earlier_plan_is_not_reused(
    project: Path, web: ImageServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_fetching(project, web, monkeypatch)
    assert main(["verify", "-c", str(project)]) == 0
    aside = sorted((project.parent / "work/.wit/earlier").rglob("part-*.tar"))
    content = bytearray(aside[0].read_bytes())
    content[len(content) // 2] ^= 4
    aside[0].write_bytes(content)
    capsys.readouterr()
    assert main(["build", "-c", str(project), "--quiet"]) == 1
    assert f"{aside[0].name} is damaged" in capsys.readouterr().err
    assert main(["verify", "-c", str(project), "--discard"]) == 6
    asked = build(project, web, cap=5)
    assert asked
    other, _ = fresh(project, web, project.parent.parent / "fresh", 5)
    data = ("fetched", "dedup", "shards")
    assert tree(project.parent / "work", *data) == tree(other, *data)


@pytest.mark.parametrize("refetch", [(), ("--refetch",)])
def test_a_change_that_is_stopped_lends_nothing_to_other_settings(
    project: Path, web: ImageServer, monkeypatch: pytest.MonkeyPatch, refetch: tuple[str, ...]
) -> None:
    stop_fetching(project, web, monkeypatch)
    project.write_text(project.read_text().replace("image_size = 64", "image_size = 32"))
    if not refetch:
        assert main(["build", "-c", str(project), "--quiet"]) == 1
        return
    assert build(project, web, *refetch, cap=15)
    for table in (project.parent / "work/fetched").glob("*.parquet"):
        rows = pq.read_table(table).to_pylist()
        assert {min(row["width"], row["height"]) for row in rows if row["status"] == "success"} <= {32}


def test_a_part_that_was_half_moved_comes_back(project: Path, web: ImageServer) -> None:
    before = tree(project.parent / "work")
    work = project.parent / "work"
    marker = json.loads((work / ".wit/fetched/part-00002.json").read_text())
    settings, _, plan = marker["digest"].rpartition("-")
    aside = work / ".wit/earlier" / settings / f"part-00002.{plan[-16:]}.tar"
    aside.parent.mkdir(parents=True)
    (work / "fetched/part-00002.tar").rename(aside)
    assert build(project, web, cap=15) == []
    assert tree(work) == before


def test_other_settings_are_refused_before_anything_changes(
    project: Path, web: ImageServer, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(project.parent / "work")
    text = project.read_text()
    changes = [
        ("image_size = 64", "image_size = 80"),
        ("parts = 6", "parts = 5"),
        ("seed = 3", "seed = 4"),
        ("network = true", "network = false"),
    ]
    for change in changes:
        project.write_text(text.replace(*change))
        assert main(["build", "-c", str(project), "--quiet"]) == 1
        assert "6 parts in fetched/ were fetched with other settings" in capsys.readouterr().err
        assert tree(project.parent / "work") == before
    project.write_text(text.replace(*changes[0]))
    assert build(project, web, "--refetch", cap=15)
