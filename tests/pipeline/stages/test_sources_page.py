"""The page about sources and `wit peek`, on a whole build: true numbers, every pair as likely, nothing unescaped."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.recorded_web import make_project

from pipeline.build import run_build
from pipeline.cli.main import main
from pipeline.engine.progress import Progress
from pipeline.engine.units import Marker, read_markers
from pipeline.engine.workspace import Workspace
from pipeline.filters.examples import DROPPED
from pipeline.records import Reason
from pipeline.stages.peek import peek
from pipeline.stages.sources_page import measure_sources, write_sources_page
from queries.allowlist import Allowlist

EVIL = '"><script>alert(1)</script>\u202e'


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = make_project(tmp_path_factory.mktemp("sources"), 60, parts=3)
    config.write_text(f'{config.read_text()}[filters]\nblock_hosts = ["host1.example"]\nmin_words = 6\n')
    run_build(config, progress=Progress(None))
    return config


@pytest.fixture
def workspace(config: Path) -> Workspace:
    return Workspace(str(config.parent / "work"))


def shard_tables(workspace: Workspace) -> list[str]:
    return sorted(name for name in workspace.sizes("shards") if name.endswith(".parquet"))


def test_every_row_and_pair_is_of_a_source(workspace: Workspace) -> None:
    page = workspace.read_bytes("report/sources.html").decode()
    rows = re.findall(r'<a href="#source-\d+"><bdi>([^<]*)</bdi></a></td>((?:<td[^<]*</td>){5})', page)
    numbers = {name: [int(n.replace(",", "")) for n in re.findall(r">([\d,]+)<", cells)] for name, cells in rows}
    kept = Counter()
    for name in shard_tables(workspace):
        table = workspace.read_table(name)
        kept.update(row["source"] for row in table.to_pylist() if row["status"] == "success")
    markers = read_markers(workspace, "pairs")
    expected = {m.about: [1, m.counts["inputs"], m.counts["kept"], kept[m.about]] for m in markers.values()}
    assert len(expected) == 3
    assert numbers == expected


def test_the_report_links_its_other_pages(workspace: Workspace) -> None:
    index = workspace.read_bytes("report/index.html").decode()
    linked = set(re.findall(r'<a href="([^"#:]+)"', index))
    assert linked == {"sources.html", "pairs.html", "data_card.md", "compliance.json"}
    assert all(workspace.exists(f"report/{name}") for name in linked)


def test_dropped_rows_are_shown_but_not_those_of_blocked_hosts(workspace: Workspace) -> None:
    page = workspace.read_bytes("report/sources.html").decode()
    section = page[page.index("Some of the rows") :]
    shown = set(re.findall(r"<h3>([^<]+)</h3>", section))
    assert {"too few words", "not in archives"} <= shown
    assert "blocked host" not in shown
    assert "host1.example" not in section
    assert "blocked_host" in page


def test_what_strangers_wrote_is_escaped(config: Path, tmp_path: Path) -> None:
    workspace = Workspace(str(tmp_path / "work"))
    for name in ("a", "b"):
        about = f"{EVIL}/{name}.csv"
        Marker("d", {}, {"inputs": 2, "kept": 1, "no_match": 1}, about).write(workspace, "pairs", name)
    table = pa.table([[Reason.NO_MATCH], [f"javascript:{EVIL}"], [EVIL], ["s"]], DROPPED)
    (tmp_path / "work/dropped").mkdir()
    pq.write_table(table, tmp_path / "work/dropped/a.parquet")
    page = write_sources_page(workspace, [], 0)
    assert "<script" not in page
    assert "\u202e" not in page
    assert 'href="javascript' not in page
    assert page.count("&lt;script&gt;") >= 4


def test_many_files_are_one_source_for_each_folder() -> None:
    counts = {"inputs": 3, "kept": 2, "no_match": 1}
    markers = {f"{f}-{n}": Marker("d", {}, counts, f"{f}/part{n}.warc.gz") for f in ("x", "y/z") for n in range(40)}
    groups, sources = measure_sources(markers)
    assert {name: (s.files, s.rows, s.pairs) for name, s in sources.items()} == {
        "x/*.warc.gz": (40, 120, 80),
        "y/z/*.warc.gz": (40, 120, 80),
    }
    assert groups["y/z/part7.warc.gz"] == "y/z/*.warc.gz"
    many = {f"{n}": Marker("d", {}, counts, f"folder{n}/a.csv") for n in range(99)}
    assert list(measure_sources(many)[1]) == ["all sources"]


def test_a_peek_is_a_uniform_sample_of_the_kept_pairs(config: Path, workspace: Workspace) -> None:
    queries = Allowlist.load(str(config.parent / "queries.parquet")).queries
    everything, total = peek(workspace, 10_000, 0, queries)
    kept = {
        row["uid"]: row
        for name in shard_tables(workspace)
        for row in workspace.read_table(name).to_pylist()
        if row["status"] == "success"
    }
    assert len(everything) == total == len(kept)
    for pair in everything:
        row = kept[pair["uid"]]
        assert (pair["caption"], pair["url"]) == (row["caption"], row["url"])
        assert pair["queries"] == [queries[query] for query in row["selected_by"]]
        assert pair["jpeg"].startswith(b"\xff\xd8")
    seen = Counter(pair["uid"] for seed in range(200) for pair in peek(workspace, 2, seed, queries)[0])
    mean = 400 / total
    assert max(abs(seen[uid] - mean) for uid in kept) < 5.5 * np.sqrt(mean)
    assert peek(workspace, 5, 7, queries) == peek(workspace, 5, 7, queries)


def test_the_command_prints_or_writes_a_page(config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["peek", "-c", str(config), "-n", "3"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("selected by") == 3
    assert main(["peek", "-c", str(config), "-n", "3", "--page", str(tmp_path / "peek.html")]) == 0
    page = (tmp_path / "peek.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 3
    assert "<script" not in page
    assert main(["peek", "-c", str(config), "-n", "0"]) == 2
    assert "--pairs 0: must be from 1" in capsys.readouterr().err
