"""report/pairs.html: every sample is in each histogram once, and the page stays small and harmless."""

import re
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.recorded_web import make_project

from dedup.eval_sets.index import thumbnail
from pipeline.build import run_build
from pipeline.engine.progress import Progress
from pipeline.engine.workspace import Workspace
from pipeline.project import Project
from pipeline.stages.pairs_page import _ASPECT_LABELS, _ASPECTS, PAIRS_SHOWN, PairFacts, measure_pairs, write_pairs_page

SIZES = st.integers(1, 20_000)
DATES = st.none() | st.datetimes(datetime(2008, 1, 1), datetime(2026, 1, 1))
ROWS = st.lists(st.tuples(SIZES, SIZES, st.text(max_size=40), DATES, st.sampled_from(["en", "de"]), st.booleans()))


def table(rows: list[tuple]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [[]] * 6
    return pa.table(
        {
            "original_width": pa.array(columns[0], pa.int32()),
            "original_height": pa.array(columns[1], pa.int32()),
            "caption": pa.array(columns[2], pa.string()),
            "captured_at": pa.array([d and d.replace(tzinfo=UTC) for d in columns[3]], pa.timestamp("ms", "UTC")),
            "language": pa.array(columns[4], pa.string()),
            "status": pa.array(["success" if kept else "dropped" for kept in columns[5]], pa.string()),
            "url": pa.array([f"http://i.host{n % 3}.example/{n}.jpg" for n in range(len(rows))], pa.string()),
        }
    )


@given(ROWS, ROWS)
def test_every_sample_is_counted_once_in_each_histogram(first: list[tuple], second: list[tuple]) -> None:
    facts = PairFacts()
    for rows in (first, second):
        facts.add(table(rows))
    kept = [row for row in first + second if row[5]]
    assert facts.pairs == len(kept)
    for counts in (facts.sides, facts.aspects, facts.lengths, facts.languages, facts.hosts):
        assert sum(counts.values()) == len(kept)
    dated = [row[3] for row in kept if row[3] is not None]
    assert facts.months == {month: sum(f"{d:%Y-%m}" == month for d in dated) for month in {f"{d:%Y-%m}" for d in dated}}
    charts = dict(facts.charts())
    for bars in charts.values():
        assert sum(bar.value for bar in bars) in (len(kept), len(dated))
        assert all(0 <= bar.x <= bar.x + bar.width <= 400 and 0 <= bar.y <= 70 for bar in bars)


@given(SIZES, SIZES)
def test_the_bucket_of_an_aspect_holds_it(width: int, height: int) -> None:
    facts = PairFacts()
    facts.add(table([(width, height, "", None, "en", True)]))
    (place,) = (place for place, count in facts.aspects.items() if count)
    assert _ASPECTS[place] <= width / height < _ASPECTS[place + 1]
    assert len(_ASPECT_LABELS) == len(_ASPECTS) - 1


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    config = make_project(tmp_path_factory.mktemp("pairs"), 60, parts=3)
    run_build(config, progress=Progress(None))
    return Project.load(config)


def test_the_page_of_a_set(project: Project) -> None:
    workspace: Workspace = project.workspace
    page = workspace.read_bytes("report/pairs.html").decode()
    shards = sorted(name for name in workspace.sizes("shards") if name.endswith(".parquet"))
    facts = measure_pairs(workspace, shards)
    samples = workspace.read_json("shards/manifest.json")["samples"]
    assert facts.pairs == samples
    assert f"{samples} pairs. The histograms count {samples} pairs, those in all shards" in page
    assert page.count("data:image/jpeg;base64,") == min(PAIRS_SHOWN, samples)
    assert set(re.findall(r"<br>\n?([0-9a-f]{32})</span>", page)) <= set(
        uid for name in shards for uid in workspace.read_table(name, ["uid"])["uid"].to_pylist()
    )
    queries = project.load_allowlist().queries
    assert page == write_pairs_page(workspace, shards, len(shards), project.config.seed, queries)
    # A picture takes at most what noise of its size takes: the page cannot reach 20 MB.
    noise = np.random.default_rng(0).integers(0, 256, (192, 192, 3), np.uint8)
    assert PAIRS_SHOWN * len(thumbnail(noise, 192)) * 4 / 3 < 10e6
    assert "<script" not in page
    assert "http-equiv" in page
