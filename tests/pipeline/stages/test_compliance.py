"""The record of a finished set: compliance.json, the data card's part, Croissant and the summary for the EU."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlcroissant
import pyarrow as pa
import pytest

from pipeline.cli.main import main
from pipeline.config import Config
from pipeline.config.fetch import FetchConfig
from pipeline.engine.units import UnitOutput
from pipeline.engine.workspace import Workspace
from pipeline.records import LEDGER, SHARD, pair_uid
from pipeline.stages.compliance import Compliance, compliance_json, consent_lines, measure_compliance, request_rates
from pipeline.stages.croissant import croissant
from pipeline.stages.data_card import measure_composition
from pipeline.stages.eu_summary import write_eu_summary
from pipeline.stages.host_tallies import HostTallies
from pipeline.stages.shards import shard_stats

CONFIG = Config.model_validate(
    {
        "workspace": "work",
        "allowlist": {"path": "queries.parquet"},
        "sources": [{"kind": "wat", "paths": ["crawl/*.warc.wat.gz"]}],
        "fetch": {"contact": "mailto:you@example.org", "consent": {"rsl": False}},
    }
)
AT = datetime(2026, 11, 1, 12, tzinfo=UTC)
ROWS = [
    ("http://a.example/1.jpg", None, None, 200, "https://creativecommons.org/licenses/by/4.0/"),
    ("http://a.example/2.jpg", None, None, 200, None),
    ("http://b.example/1.jpg", "opted_out", "content-signal", None, None),
    ("http://b.example/2.jpg", "opted_out", "content-signal", None, None),
    ("http://c.example/1.jpg", "opted_out", "plus-data-mining", 200, None),
    ("http://d.example/1.jpg", "opted_out", "block-list", None, None),
    ("http://e.example/1.jpg", "http_not_found", None, 404, None),
]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A workspace with one shard, its statistics, its ledger and a manifest."""
    made = Workspace(str(tmp_path / "work"))
    rows = [
        dict.fromkeys(SHARD.names)
        | {"uid": pair_uid(url, "x"), "url": url, "reason": reason, "refused_by": signal, "http_status": status}
        | {"status": "failed_to_download" if reason else "success", "license_url": licence, "caption": "x"}
        for url, reason, signal, status, licence in ROWS
    ]
    table = pa.Table.from_pylist(rows, SHARD)
    output = UnitOutput(made)
    output.write_table("shards/00000.parquet", table)
    output.write_json("shards/00000_stats.json", shard_stats(table))
    with output.create("shards/00000.tar") as tar:
        tar.write(b"\0" * 1024)
    ledger = [
        {"url": row[0], "checked_at": AT, "robots_at": AT, "robots_status": 404 if "a." in row[0] else 200}
        for row in ROWS
        if "d.example" not in row[0]
    ]
    output.write_table("consent/part-00000.parquet", pa.Table.from_pylist(ledger, LEDGER))
    files = {name.partition("/")[2]: {"bytes": f.bytes, "sha256": f.sha256} for name, f in output.files.items()}
    manifest = {"samples": 2, "shards": [{"tar": "00000.tar", "samples": 2}], "files": files, "code_version": "9.9"}
    made.write_json("shards/manifest.json", manifest)
    return made


@pytest.fixture
def found(workspace: Workspace) -> Compliance:
    return measure_compliance(workspace, workspace.read_json("shards/manifest.json"))


def test_compliance_counts_refusals_hosts_and_files(found: Compliance) -> None:
    told = compliance_json(found, CONFIG)
    assert told["pairs"] == len(ROWS)
    assert {signal: n for signal, n in told["refused_by"].items() if n} == {
        "content-signal": 2,
        "plus-data-mining": 1,
        "block-list": 1,
    }
    assert told["counted"] == {
        "urls": 7,
        "urls_with_a_response": 4,
        "hosts": 5,
        "hosts_in_the_set": 1,
        "hosts_that_said_no": 2,
        "robots_txt_asked_of": 4,
        "robots_txt_without_a_file": 1,
        "samples_with_a_licence_url": 1,
        "samples_with_a_creator": 0,
    }
    assert told["hosts_that_said_no"] == {"b.example": 2, "c.example": 1}
    assert told["signals"]["rsl"] is False
    assert told["signals"]["pages"] is True
    assert "CCBot" in told["signals"]["also-obey"]
    assert "d.example" not in json.dumps(told)


def test_the_data_card_says_what_was_refused_and_what_was_switched_off(found: Compliance) -> None:
    text = "\n".join(consent_lines(found, CONFIG))
    assert "| content-signal | 2 |" in text
    assert "switched off: rsl." in text


def test_statements_of_pages_that_were_not_read_are_named(workspace: Workspace, found: Compliance) -> None:
    fetch = {"contact": "mailto:you@example.org", "consent": {"pages": False}}
    off = CONFIG.model_copy(update={"fetch": FetchConfig.model_validate(fetch)})
    assert compliance_json(found, off)["signals"]["pages"] is False
    assert "switched off: pages." in "\n".join(consent_lines(found, off))
    composition = measure_composition(workspace, ["shards/00000.parquet"])
    manifest = workspace.read_json("shards/manifest.json")
    text = write_eu_summary(found, composition, off, manifest, sources=3, refused_by_pages=0)
    assert "where the source has the page | no | 0 |" in text


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, "at most 4 requests to a site at a time, at least 0.1 seconds apart ("),
        ({"host_interval_s": 1.0}, "at least 1 second apart ("),
        (
            {"host_interval_s": 2.5, "host_concurrency": 1},
            "at most 1 request to a site at a time, at least 2.5 seconds apart",
        ),
        ({"host_interval_s": 0.0}, "at most 4 requests to a site at a time, without a pause between them ("),
        ({"hosts": [{"match": "a.example", "interval_s": 9.0}]}, "; other limits were set for some sites by name)"),
    ],
)
def test_request_rates_in_words(keys: dict[str, Any], words: str) -> None:
    told = request_rates(FetchConfig.model_validate(keys))
    assert words in told
    assert "at least 0 second" not in told


def test_croissant_is_valid(workspace: Workspace, found: Compliance, tmp_path: Path) -> None:
    document = croissant(CONFIG, workspace.read_json("shards/manifest.json"), found)
    path = tmp_path / "work" / "shards" / "croissant.json"
    path.write_text(json.dumps(document))
    dataset = mlcroissant.Dataset(jsonld=path)
    assert not dataset.metadata.issues.errors
    assert {file.sha256 for file in dataset.metadata.file_objects} == {
        workspace.read_json("shards/manifest.json")["files"][name]["sha256"] for name in ("00000.tar", "00000.parquet")
    }
    urls = [record["pairs/url"] for record in dataset.records("pairs")]
    urls = [url.decode() if isinstance(url, bytes) else url for url in urls]
    assert urls == [row[0] for row in ROWS]
    validator = [Path(sys.executable).parent / "mlcroissant", "validate", "--jsonld", path]
    done = subprocess.run(validator, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr

    path.write_text(json.dumps(document | {"distribution": []}))  # its fields refer to files that it does not list
    done = subprocess.run(validator, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr


def test_the_summary_for_the_eu_says_what_a_lawyer_asks(
    workspace: Workspace, found: Compliance, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    composition = measure_composition(workspace, ["shards/00000.parquet"])
    manifest = workspace.read_json("shards/manifest.json")
    text = write_eu_summary(found, composition, CONFIG, manifest, sources=3, refused_by_pages=12)
    assert "- Size, images: 2 (range of the template: less than 1 million)." in text
    assert "- Latest date of collection: 01 November 2026." in text
    assert "- metadata of web pages from web archives (WAT files) [to fill in]" in text
    assert "- Crawler: wit-pipeline, contact mailto:you@example.org." in text
    assert "Period of collection: 01 November 2026 to 01 November 2026." in text
    assert "Domains with images in the dataset: 1." in text
    assert "| a.example | 2 | 100.00% |" in text
    assert "| content signals (Content-Signal), in robots.txt and response headers | yes | 2 |" in text
    assert "| machine-readable licences (Really Simple Licensing) | no | 0 |" in text
    assert "where the source has the page | yes | 12 |" in text
    assert "2 of the 5 domains that the addresses lead to refused the use of at least one image" in text
    assert "| lists of opted-out domains, URLs and images | no list was used | 1 |" in text
    for heading in ("## 1. General information", "### 2.3 Data crawled and scraped", "### 3.1 Respect of reservations"):
        assert heading in text


@pytest.mark.parametrize(("hosts", "shown"), [(1, 1), (10, 1), (11, 2), (25_000, 1_000)])
def test_the_summary_lists_the_tenth_of_the_domains_that_has_the_most_images(
    workspace: Workspace, hosts: int, shown: int
) -> None:
    manifest = workspace.read_json("shards/manifest.json")
    largest = {f"host{number}.example": 30_000 - number for number in range(min(hosts, 1_000))}
    found = Compliance(samples=2, hosts=HostTallies(hosts_in_set=hosts, largest=largest, samples=10**9))
    composition = measure_composition(workspace, ["shards/00000.parquet"])
    text = write_eu_summary(found, composition, CONFIG, manifest, sources=3, refused_by_pages=0)
    rows = [line for line in text.splitlines() if line.startswith("| host")]
    assert len(rows) == shown
    assert rows[0].startswith("| host0.example | 30,000 |")
    assert ("[to fill in] The template requires the top tenth, 2,500 domains" in text) == (hosts == 25_000)


def test_the_card_of_a_finished_set(workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "wit.toml"
    config.write_text(
        f"""workspace = "{workspace.root}"
[allowlist]
path = "queries.parquet"
[[sources]]
kind = "wat"
paths = ["x"]
[fetch]
contact = "mailto:you@example.org"
"""
    )
    assert main(["card", "-c", str(config)]) == 1
    workspace.write_json("report/data_card.md", "card")
    capsys.readouterr()
    assert main(["card", "--eu-summary", "-c", str(config)]) == 0
    assert "# Summary of training content" in capsys.readouterr().out
