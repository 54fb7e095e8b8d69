"""A set that grows: a second crawl asks only for what is new, and merged workspaces are one set, with exact caps."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.image_server import ImageServer, serve_images
from support.recorded_web import make_images, make_web_project, tree

from pipeline.cli.main import main
from pipeline.stages.balance.exact import balance
from queries.allowlist import Allowlist

pytestmark = pytest.mark.slow

IMAGES, CAP = 180, 12


@pytest.fixture(scope="module")
def web() -> Iterator[ImageServer]:
    with serve_images(make_images(IMAGES)) as server:
        yield server


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, web: ImageServer) -> Path:
    """The folder of a project that nothing is built in."""
    config = make_web_project(tmp_path_factory.mktemp("growth") / "recipe", IMAGES, web)
    config.write_text(config.read_text().replace("cap = 15", f"cap = {CAP}"))
    return config.parent


def project_of(recipe: Path, folder: Path, *files: str) -> Path:
    shutil.copytree(recipe, folder)
    names = ", ".join(f'"{name}"' for name in files)
    config = folder / "wit.toml"
    config.write_text(config.read_text().replace('paths = ["web-*.warc.gz"]', f"paths = [{names}]"))
    return config


def build(config: Path, web: ImageServer, *command: str) -> set[str]:
    """Run a command, `build` if none is given; return the images that the web was asked for."""
    web.requests.clear()
    assert main([*(command or ("build",)), "-c", str(config), "--quiet"]) == 0
    return {url for url in web.requests if not url.endswith("robots.txt")}


def read_rows(folder: Path) -> list[dict]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def ledger(work: Path) -> list[dict]:
    """Return when the consent of each URL was checked, and what its robots.txt said."""
    return read_rows(work / "consent")


def samples(work: Path) -> dict[str, dict]:
    return {row["uid"]: row for row in read_rows(work / "shards") if row["status"] == "success"}


def check_caps(config: Path) -> None:
    """Compare the set with the selection by brute force: all pairs, then all that survived."""
    work = config.parent / "work"
    queries = Allowlist.load(str(config.parent / "queries.parquet")).queries
    pool = pa.concat_tables([pq.read_table(path) for path in sorted((work / "pairs").glob("*.parquet"))])
    unique = {row["uid"]: row for row in pool.select(["uid", "query_ids"]).to_pylist()}
    pairs = pa.Table.from_pylist(sorted(unique.values(), key=lambda row: row["uid"]))
    planned = balance(pairs, cap=round(CAP * 1.5), seed=3, queries=queries)
    fetched = pa.concat_tables([pq.read_table(path) for path in sorted((work / "fetched").glob("*.parquet"))])
    assert set(planned["uid"].to_pylist()) == set(fetched["uid"].to_pylist())
    copies = set(pq.read_table(work / "dedup/duplicates.parquet")["uid"].to_pylist())
    good = [
        status == "success" and uid not in copies
        for status, uid in zip(fetched["status"].to_pylist(), fetched["uid"].to_pylist(), strict=True)
    ]
    survivors = fetched.filter(pa.array(good)).select(["uid", "query_ids"])
    chosen = balance(survivors, cap=CAP, seed=3, queries=queries)
    assert samples(work).keys() == set(chosen["uid"].to_pylist())
    per_query = [query for row in samples(work).values() for query in row["selected_by"]]
    assert max(map(per_query.count, set(per_query))) == CAP


def test_a_second_crawl_asks_only_for_what_is_new(
    recipe: Path, web: ImageServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grown = project_of(recipe, tmp_path / "grown", "web-0.warc.gz", "web-1.warc.gz")
    first = build(grown, web)
    shutil.copytree(grown.parent / "work/shards", tmp_path / "before")
    grown.write_text(grown.read_text().replace('"web-1.warc.gz"', '"web-1.warc.gz", "web-2.warc.gz"'))
    second = build(grown, web)
    fresh = project_of(recipe, tmp_path / "fresh", "web-0.warc.gz", "web-1.warc.gz", "web-2.warc.gz")
    everything = build(fresh, web)
    assert second
    assert first.isdisjoint(second)
    assert second == everything - first
    check_caps(grown)
    assert tree(grown.parent / "work", "shards", "dedup", "plan") == tree(
        fresh.parent / "work", "shards", "dedup", "plan"
    )

    capsys.readouterr()
    assert main(["diff", str(tmp_path / "before"), str(grown.parent / "work/shards"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["came"].get("not_planned", 0) > 0
    assert found["went"].keys() <= {"not_planned", "over_final_cap", "exact_duplicate", "near_duplicate"} | {
        "other_caption_of_same_image"
    }
    assert list(found["recipe"]) == ["sources"]


def test_merged_workspaces_are_one_set_without_a_request(recipe: Path, web: ImageServer, tmp_path: Path) -> None:
    first = project_of(recipe, tmp_path / "first", "web-0.warc.gz")
    second = project_of(recipe, tmp_path / "second", "web-1.warc.gz", "web-2.warc.gz")
    asked = build(first, web) | build(second, web)
    (tmp_path / "request.txt").write_text("host4.example\n")
    assert main(["takedown", str(tmp_path / "request.txt"), "-c", str(second), "--quiet"]) == 0
    merged = project_of(recipe, tmp_path / "merged", "absent.warc.gz")
    roots = [str(config.parent / "work") for config in (first, second)]
    assert build(merged, web, "merge", *roots) == set()
    work = merged.parent / "work"
    assert not any("//host4.example" in row["url"] for row in samples(work).values())
    manifest = json.loads((work / "shards/manifest.json").read_text())
    assert len(manifest["recipe"]["sources"]) == 2
    theirs = ledger(first.parent / "work") + ledger(second.parent / "work")
    mine = ledger(work)
    assert {row["url"] for row in mine} == {row["url"] for row in read_rows(work / "fetched")}
    assert all(row in theirs for row in mine)
    assert any(row["robots_at"] is not None for row in mine)
    assert main(["verify", "-c", str(merged)]) == 0
    assert main(["status", "-c", str(merged)]) == 0
    finished = tree(work)
    assert build(merged, web, "merge", *roots) == set()
    assert tree(work) == finished

    shutil.rmtree(second.parent / "work/consent/takedown")  # without takedowns it is the set of all sources at once
    shutil.rmtree(merged.parent / "work")
    assert build(second, web) == set()
    assert build(merged, web, "merge", *roots) == set()
    check_caps(merged)
    whole = project_of(recipe, tmp_path / "whole", "web-0.warc.gz", "web-1.warc.gz", "web-2.warc.gz")
    assert build(whole, web) <= asked
    assert samples(work).keys() == samples(whole.parent / "work").keys()


@pytest.mark.parametrize("fault", ["one", "twice", "itself", "unfinished", "another cap"])
def test_what_cannot_be_merged_is_one_line(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    config = project_of(recipe, tmp_path / "merged", "absent.warc.gz")
    a, b = tmp_path / "a", tmp_path / "b"
    for folder in (a, b):
        (folder / "shards").mkdir(parents=True)
        content = {"format": "wit-shards/1", "samples": 0, "shards": [], "recipe": {"balance": {"cap": 1}}}
        (folder / "shards/manifest.json").write_text(json.dumps(content))
    if fault == "unfinished":
        (b / "shards/manifest.json").unlink()
    others = {"one": [a], "twice": [a, a], "itself": [a, tmp_path / "merged/work"]}.get(fault, [b, a])
    said = {"one": "two workspaces", "twice": "given twice", "itself": "choose a new one", "unfinished": "no finished"}
    capsys.readouterr()
    assert main(["merge", *map(str, others), "-c", str(config), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert said.get(fault, "only equal recipes") in error
    assert error.count("\n") == 1
