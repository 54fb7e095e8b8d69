"""`wit consent recheck`: what was refused since, or passed over when it was fetched, becomes a block list."""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.hostile_server import HostileServer, fixed, picture, server

from pipeline.cli.main import main
from pipeline.consent.block_lists import BlockLists
from pipeline.consent.policy import Signal
from pipeline.engine.workspace import Workspace
from pipeline.records import SHARD, pair_uid
from pipeline.stages.listed import find_listed
from pipeline.stages.shards import drop_listed

__all__ = ["server"]

STILL = "http://still.example/a.jpg"
HEADER = "http://header.example/a.jpg"
ROBOTS = "http://robots.example/a.jpg"
PASSED_OVER = "http://passed.example/a.jpg"
GONE = "http://gone.example/a.jpg"


def write_set(root: Path, urls: list[str]) -> Workspace:
    workspace = Workspace(str(root))
    rows = [
        dict.fromkeys(SHARD.names)
        | {"uid": pair_uid(url, "x"), "url": url, "caption": "x", "page_url": "", "status": "success"}
        | {"sha256": hashlib.sha256(url.encode()).hexdigest(), "pdq": bytes(32)}
        | {"consent_said": "content-signal: train-ai=n (header) [not heeded]" if url == PASSED_OVER else None}
        for url in urls
    ]
    with workspace.create("shards/00000.parquet") as out:
        pq.write_table(pa.Table.from_pylist(rows, SHARD), out)
    workspace.write_json("shards/manifest.json", {"shards": [{"tar": "00000.tar"}]})
    return workspace


@pytest.fixture
def config(server: HostileServer, tmp_path: Path) -> Path:
    """A project whose set has one picture that is free still, and others that are not."""
    server.routes["/a.jpg"] = fixed(200, picture(64, 48))
    server.hosts["header.example", "/a.jpg"] = fixed(200, picture(64, 48), Content_Usage="train-ai=n")
    server.hosts["robots.example", "/robots.txt"] = fixed(200, b"User-agent: CCBot\nDisallow: /\n")
    server.hosts["gone.example", "/a.jpg"] = fixed(404)
    write_set(tmp_path / "work", [STILL, HEADER, ROBOTS, PASSED_OVER, GONE])
    path = tmp_path / "wit.toml"
    path.write_text(
        f"""workspace = "work"
[allowlist]
path = "queries.parquet"
[[sources]]
kind = "wat"
paths = ["x"]
[fetch]
gateway = "{server.gateway}"
contact = "mailto:you@example.org"
host_interval_s = 0.0
"""
    )
    return path


def withdrawn(config: Path) -> list[str]:
    lines = (config.parent / "work/consent/withdrawn.txt").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_what_is_refused_now_becomes_a_block_list(config: Path, server: HostileServer) -> None:
    assert main(["consent", "recheck", "-c", str(config)]) == 0
    assert withdrawn(config) == [HEADER, ROBOTS]
    assert server.hits["robots.example/a.jpg"] == 0
    ledger = pq.read_table(config.parent / "work/consent/part-00000.parquet").to_pylist()
    assert {row["url"] for row in ledger if row["robots_at"] is not None} == {STILL, HEADER, ROBOTS, PASSED_OVER, GONE}

    lists = BlockLists.read({"urls": (config.parent / "work/consent/withdrawn.txt").read_text().splitlines()})
    table = pq.read_table(config.parent / "work/shards/00000.parquet")
    rows = drop_listed(table, find_listed(table, [(Signal.BLOCK_LIST, lists)])).to_pylist()
    assert [row["url"] for row in rows if row["status"] == "success"] == [STILL, PASSED_OVER, GONE]
    assert {row["refused_by"] for row in rows if row["status"] == "dropped"} == {"block-list"}


def test_from_the_record_nobody_is_asked(config: Path, server: HostileServer) -> None:
    assert main(["consent", "recheck", "--from-record", "-c", str(config)]) == 0
    assert withdrawn(config) == [PASSED_OVER]
    assert not server.hits
