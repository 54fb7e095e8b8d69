"""Search, query by query: complete, without duplicates and within the budget, whatever the server and the system do."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from support.recorded_web import make_project
from support.search_server import SearchServer, results_of

from pipeline.build import run_build
from pipeline.engine.progress import Progress
from pipeline.engine.workspace import Workspace
from pipeline.errors import ConfigError
from pipeline.search.asking import Asker, SearchEndsError
from pipeline.search.interface import open_api
from pipeline.stages.searched import choose_queries, write_tables

QUERIES = [f"query {n}" for n in range(500)]
APIS = ("wikimedia-commons", "openverse")


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENVERSE_CLIENT_ID", "me")
    monkeypatch.setenv("OPENVERSE_CLIENT_SECRET", "secret")


@pytest.fixture
def server() -> Iterator[SearchServer]:
    with SearchServer().running() as running:
        yield running


def asker(folder: Path, server: SearchServer, api: str = APIS[0], **options: Any) -> Asker:
    settings: dict[str, Any] = {"daily_budget": 100_000, "interval_s": 0.0, "sleep": lambda s: None} | options
    return Asker(Workspace(str(folder)), api, open_api(api, server.url), requests.Session(), **settings)


def found_in(folder: Path, api: str) -> list[tuple[str, str]]:
    write_tables(Workspace(str(folder)), api)
    tables = [pq.read_table(path) for path in sorted((folder / f"searched/{api}").glob("*.parquet"))]
    return [(row["query"], row["url"]) for table in tables for row in table.to_pylist()]


def expected(queries: list[str]) -> list[tuple[str, str]]:
    return sorted((query, one["url"]) for query in queries for one in results_of(query))


@pytest.mark.parametrize("api", APIS)
def test_500_queries_of_a_server_that_fails_are_complete_in_the_end_and_asked_once(tmp_path: Path, api: str) -> None:
    with SearchServer(faults=0.2).running() as server:
        runs = 0
        while todo := [query for query in QUERIES if not asker(tmp_path, server, api).is_done(query)]:
            one = asker(tmp_path, server, api)
            for query in todo:
                one.ask(query, 50)
            runs += 1
            assert runs < 10
        assert sorted(found_in(tmp_path, api)) == expected(QUERIES)
        assert set(server.asked.values()) == {1}, "no page was given twice"
        before = server.requests
        one = asker(tmp_path, server, api)
        assert all(one.ask(query, 50) for query in QUERIES[:20])
        assert server.requests == before


def test_the_budget_holds_over_kills(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[3]); import pipeline.search.asking as a\n"
        "import requests; from pipeline.search.interface import open_api\n"
        "from pipeline.engine.workspace import Workspace\n"
        "asker = a.Asker(Workspace(sys.argv[1]), 'wikimedia-commons', open_api('wikimedia-commons', sys.argv[2]),\n"
        "    requests.Session(), 400, 0.0, sleep=lambda s: None)\n"
        "for n in range(500):\n"
        "    asker.ask(f'query {n}', 50)\n"
    )
    with SearchServer(faults=0.1).running() as server:
        for stop_at in (60, 150, 260, 10**9):
            command = [sys.executable, "-c", script, str(tmp_path), server.url, str(Path(__file__).parents[3])]
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            while process.poll() is None and server.requests < stop_at:
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert 395 <= server.requests <= 400, "each kill may lose the one request that was entered and not yet sent"
        assert set(server.asked.values()) <= {1, 2}
        assert sum(count - 1 for count in server.asked.values()) <= 3
    found = found_in(tmp_path, APIS[0])
    assert len(found) == len(set(found))
    assert set(found) <= set(expected(QUERIES))


def test_the_budget_is_of_a_day(tmp_path: Path, server: SearchServer) -> None:
    day = datetime(2026, 1, 1, 12, tzinfo=UTC)
    for n in range(3):
        one = asker(tmp_path, server, daily_budget=10, now=lambda n=n: day + timedelta(days=n))
        with pytest.raises(SearchEndsError, match="daily budget of 10 requests is used up"):
            assert all(one.ask(query, 50) for query in QUERIES)
        assert server.requests == 10 * (n + 1)


def test_a_short_retry_after_is_waited_for_and_a_long_one_ends_the_search_until_then(
    tmp_path: Path, server: SearchServer
) -> None:
    waits: list[float] = []
    day = datetime(2026, 1, 1, 12, tzinfo=UTC)
    server.forced = ["429 30", "429 900"]
    with pytest.raises(SearchEndsError, match="requests a pause of 900 s"):
        asker(tmp_path, server, sleep=waits.append, now=lambda: day).ask("query 1", 50)
    assert [30 <= wait <= 33 for wait in waits] == [True]
    assert server.requests == 2
    with pytest.raises(SearchEndsError, match="lasts 600 s more"):
        asker(tmp_path, server, now=lambda: day + timedelta(seconds=300)).ask("query 1", 50)
    assert server.requests == 2
    assert asker(tmp_path, server, now=lambda: day + timedelta(seconds=901)).ask("query 1", 50)


def test_pages_are_asked_for_until_there_are_enough(tmp_path: Path, server: SearchServer) -> None:
    query = next(query for query in QUERIES if len(results_of(query)) == 7)
    assert asker(tmp_path, server).ask(query, 4)
    assert len(found_in(tmp_path, APIS[0])) == 4
    assert server.requests == 2


def test_an_api_that_refuses_is_left_alone(tmp_path: Path, server: SearchServer) -> None:
    server.forced = ["403"]
    with pytest.raises(SearchEndsError, match="403"):
        asker(tmp_path, server).ask("query 1", 50)
    assert server.requests == 1


def test_an_expired_token_is_renewed(tmp_path: Path, server: SearchServer) -> None:
    one = asker(tmp_path, server, "openverse")
    one._token = "expired"
    assert one.ask(QUERIES[0], 50)


def test_credentials_and_names_are_checked(
    tmp_path: Path, server: SearchServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENVERSE_CLIENT_SECRET")
    with pytest.raises(ConfigError, match="OPENVERSE_CLIENT_ID and OPENVERSE_CLIENT_SECRET"):
        asker(tmp_path, server, "openverse").ask("dog", 1)
    with pytest.raises(ConfigError, match=r"no such API; there are wikimedia-commons, openverse"):
        open_api("bing", None)


@given(st.lists(st.integers(0, 20), max_size=30), st.integers(1, 20), st.none() | st.integers(1, 10))
def test_queries_with_the_fewest_pairs_come_first(counts: list[int], below: int, limit: int | None) -> None:
    chosen = choose_queries(np.array(counts, np.int64), below, limit)
    under = sorted((count, number) for number, count in enumerate(counts) if count < below)
    assert chosen == [number for _, number in under][:limit]


def test_a_build_fills_what_its_sources_left_open(tmp_path: Path, server: SearchServer) -> None:
    config = make_project(tmp_path, count=30, parts=1)
    search = f'[[search]]\napi = "wikimedia-commons"\nbase_url = "{server.url}"\ninterval_s = 0.0\nbelow = 2\n'
    text = config.read_text().replace("[balance]", f"{search}[balance]")
    config.write_text(text)
    with pytest.raises(ConfigError, match=r"needs fetch\.contact"):
        run_build(config, progress=Progress(None))
    config.write_text(text.replace("[fetch]\n", '[fetch]\ncontact = "mailto:you@example.org"\n'))
    run_build(config, progress=Progress(None))
    assert server.agents == {"wit-pipeline (mailto:you@example.org)"}
    asked = {name.rsplit(" ", 1)[0] for name in server.asked}
    assert "dog" not in asked
    assert asked <= {"unseen", "blue boat", "straße", "猫", "mountain", "river", "tree", "red house"}
    assert "unseen" in asked
    tables = [pq.read_table(path) for path in (tmp_path / "work/pairs").glob("*.parquet")]
    rows = [row for table in tables for row in table.to_pylist() if row["source"].startswith("searched/")]
    wanted = {one["url"] for query in asked for one in results_of(query)}
    assert {row["url"] for row in rows} == wanted
    assert {row["text_field"] for row in rows} <= {"title", "description"}
    assert all('"creator":"Someone"' in row["extra"] and '"license":' in row["extra"] for row in rows)
    before = server.requests
    run_build(config, progress=Progress(None))
    assert server.requests == before
