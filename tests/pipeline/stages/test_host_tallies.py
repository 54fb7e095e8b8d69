"""Counts per host over all parts, against the same counts in plain Python."""

from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pytest

from pipeline.consent.policy import Signal
from pipeline.engine.units import UnitOutput
from pipeline.engine.workspace import Workspace
from pipeline.records import LEDGER, SHARD
from pipeline.stages import host_tallies
from pipeline.stages.host_tallies import HostTallies, measure_hosts

AT = datetime(2026, 11, 1, 12, tzinfo=UTC)
HOSTS = [f"host{number}.example" for number in range(40)]
AUTHORITIES = [*HOSTS, "host0.example:8080", "[2001:db8::1]", "[2001:db8::1]:81", "HOST1.example"]
SIGNALS = [None, None, Signal.CONTENT_USAGE, Signal.BLOCK_LIST, Signal.TAKEDOWN]

Part = tuple[list[dict[str, Any]], list[dict[str, Any]]]


def random_part(random: np.random.Generator, number: int) -> Part:
    """Return the rows and the ledger of a part; some URLs have several pairs, some pairs were taken down."""
    rows, ledger = [], []
    for of_part in range(60):
        authority = AUTHORITIES[random.integers(len(AUTHORITIES))]
        url = f"{'https' if random.integers(2) else 'http'}://{authority}/{number}-{of_part}.jpg?a:b@c"
        status = 200 if random.integers(2) else None
        for _ in range(random.integers(1, 4)):
            row = {"url": url, "http_status": status, "refused_by": SIGNALS[random.integers(len(SIGNALS))]}
            row |= {"status": "success" if random.integers(2) else "dropped"}
            row |= {"license_url": "https://l.example" if random.integers(3) == 0 else None}
            row |= {"creator": "Ana" if random.integers(3) == 0 else None}
            rows.append(row | ({"url": ""} if random.integers(20) == 0 else {}))
        asked = AT + timedelta(minutes=int(random.integers(10_000))) if random.integers(4) else None
        ledger.append(
            {
                "url": url,
                "checked_at": asked,
                "robots_at": asked,
                "robots_status": [None, 200, 404, 503][random.integers(4)],
            }
        )
    return rows, ledger


def counted(parts: list[Part]) -> HostTallies:
    """Count as `measure_hosts` must, with everything in memory."""
    by_url: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for rows, _ in parts:
        for row in rows:
            if row["url"]:
                by_url[row["url"]].append(row)
    checks = [check for _, ledger in parts for check in ledger if check["robots_at"] is not None]
    served: dict[str, bool] = {}
    for check in checks:
        url = urlsplit(check["url"])
        authority = f"{url.scheme}://{url.netloc}".lower()
        is_served = check["robots_status"] is not None and check["robots_status"] < 300
        served[authority] = served.get(authority, False) or is_served
    samples, refused = Counter[str](), Counter[str]()
    said = {str(signal) for signal in SIGNALS if signal} - {"block-list", "takedown"}
    hosts = set()
    for url, rows in by_url.items():
        host = url.partition("://")[2].partition("/")[0].lower()
        host = host[: host.index("]") + 1] if host.startswith("[") else host.partition(":")[0]
        hosts.add(host)
        samples[host] += sum(row["status"] == "success" for row in rows)
        refused[host] += any(row["refused_by"] in said for row in rows)
    kept = [row for rows in by_url.values() for row in rows if row["status"] == "success"]

    def largest(counts: Counter[str]) -> dict[str, int]:
        return dict(sorted(((h, n) for h, n in counts.items() if n), key=lambda i: (-i[1], i[0]))[:MOST])

    return HostTallies(
        urls=len(by_url),
        responses=sum(any(row["http_status"] for row in rows) for rows in by_url.values()),
        hosts=len(hosts),
        hosts_that_refused=sum(map(bool, refused.values())),
        hosts_in_set=sum(map(bool, samples.values())),
        largest=largest(samples),
        most_refusing=largest(refused),
        samples=len(kept),
        robots_files=len(served),
        robots_without_file=sum(not is_served for is_served in served.values()),
        with_licence=sum(row["license_url"] is not None for row in kept),
        with_creator=sum(row["creator"] is not None for row in kept),
        first=min(check["checked_at"] for check in checks),
        last=max(check["checked_at"] for check in checks),
    )


MOST = 5


@pytest.mark.parametrize("parts_at_once", [1, 3, 64])
def test_the_counts_are_exact_over_all_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts_at_once: int
) -> None:
    monkeypatch.setattr(host_tallies, "MOST_HOSTS", MOST)
    random = np.random.default_rng(7)
    parts = [random_part(random, number) for number in range(9)]
    output = UnitOutput(Workspace(str(tmp_path / "work")))
    for number, (rows, ledger) in enumerate(parts):
        table = pa.Table.from_pylist([dict.fromkeys(SHARD.names) | row for row in rows], SHARD)
        output.write_table(f"shards/{number:05d}.parquet", table)
        output.write_table(f"consent/part-{number:05d}.parquet", pa.Table.from_pylist(ledger, LEDGER))
    found = measure_hosts(output.workspace, [f"{number:05d}" for number in range(len(parts))], parts_at_once)
    assert found == counted(parts)


def test_a_set_without_parts_and_a_part_without_a_ledger(tmp_path: Path) -> None:
    output = UnitOutput(Workspace(str(tmp_path / "work")))
    assert measure_hosts(output.workspace, []) == HostTallies()
    output.write_table("shards/00000.parquet", SHARD.empty_table())
    assert measure_hosts(output.workspace, ["00000"]) == HostTallies()
