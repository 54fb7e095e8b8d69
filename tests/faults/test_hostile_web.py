"""One build over a web of more than 120 hostile behaviours: every pair has its reason, and no good one is lost."""

import json
import resource
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.hostile_server import (
    GOOD,
    RESPONSES,
    ROBOTS_RESPONSES,
    HostileServer,
    fixed,
    picture,
    server,  # noqa: F401 a fixture
)

from pipeline.cli.main import main
from pipeline.fetching.fetcher import Fetcher
from pipeline.records import Reason
from queries.allowlist import import_allowlist

MAX_STALL_S = 5.0  # a busy machine adds its own; interim responses without end once held the loop for 24 s
MAX_MEMORY_BYTES = 700 << 20
GOOD_IMAGES = 80
EITHER = {Reason.TRUNCATED, Reason.PROTOCOL_ERROR, Reason.TIMEOUT, Reason.TOO_LARGE}  # by where packets are cut
CHUNKED = {"/chunked-garbage": EITHER, "/endless-trailers": EITHER, "/tiny-chunks": EITHER}


def plant(server: HostileServer) -> dict[str, set[str]]:  # noqa: F811
    """Give each behaviour a host of its own; return URL -> the reasons that it may end with."""
    expected: dict[str, set[str]] = {}
    for number, (path, reason) in enumerate(RESPONSES.items()):
        expected[f"http://bad{number}.example{path}"] = {reason}
    for path, reasons in CHUNKED.items():
        expected[f"http://chunked.example{path}"] = set(reasons)
    for name, (route, reason) in ROBOTS_RESPONSES.items():
        server.hosts[f"{name}.example", "/robots.txt"] = route
        server.hosts[f"{name}.example", f"/{name}.jpg"] = fixed(200, GOOD)
        expected[f"http://{name}.example/{name}.jpg"] = {reason}
    expected["http://paid.example/402"] = {Reason.PAYMENT_REQUIRED}
    for number in range(GOOD_IMAGES):
        server.routes[f"/good/{number}.jpg"] = fixed(200, picture(seed=number + 1))
        expected[f"http://good{number % 20}.example/good/{number}.jpg"] = {"success"}
    return expected


def write_project(folder: Path, urls: list[str], gateway: str) -> Path:
    (folder / "urls.csv").write_text("url,caption\n" + "".join(f"{url},dog {n}\n" for n, url in enumerate(urls)))
    (folder / "words.txt").write_text("dog\n")
    import_allowlist(str(folder / "words.txt"), str(folder / "queries.parquet"))
    config = folder / "wit.toml"
    config.write_text(
        'workspace = "work"\n[allowlist]\npath = "queries.parquet"\n[[sources]]\nkind = "url-table"\n'
        f'paths = ["urls.csv"]\n[fetch]\nparts = 1\ncontact = "mailto:a@example.org"\ngateway = "{gateway}"\n'
        "timeout_s = 20\nretries = 0\nhost_interval_s = 0.0\nmax_bytes = 1000000\nimage_size = 64\n"
    )
    return config


def test_a_hostile_web_ends_in_reasons(
    server: HostileServer,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = plant(server)
    assert len(expected) - GOOD_IMAGES >= 120
    config = write_project(tmp_path, list(expected), server.gateway)
    before_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    fetchers: list[Fetcher] = []
    start = Fetcher.__init__
    monkeypatch.setattr(Fetcher, "__init__", lambda self, *a, **k: (fetchers.append(self), start(self, *a, **k))[1])
    assert main(["build", "-c", str(config), "--quiet"]) == 0
    rows = [row for path in (tmp_path / "work/fetched").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    found = {row["url"]: row["reason"] or row["status"] for row in rows}
    assert found.keys() == expected.keys()
    assert {url: reason for url, reason in found.items() if reason not in expected[url]} == {}
    assert json.loads((tmp_path / "work/report/accounting.json").read_text())["closes"]
    (fetcher,) = fetchers
    assert 0 < fetcher.stats.longest_stall_s <= MAX_STALL_S
    assert fetcher.stats.requests >= len(expected) - len(ROBOTS_RESPONSES)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before_bytes <= MAX_MEMORY_BYTES
    assert not list((tmp_path / "work").rglob("*.journal"))
