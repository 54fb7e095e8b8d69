"""report/compliance.json: the requests made, the refusals by signal, and the request rates.

Refusals are counted over all pairs. Hosts and robots.txt files are counted in the first `SAMPLED_SHARDS` parts, like
the hosts in the data card: each part is a random sample, and smaller sets are counted in full.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import Config, FetchConfig
from pipeline.consent.ai_crawlers import PRESET, preset_tokens
from pipeline.consent.content_usage import ATTACH_DRAFT, VOCABULARY_DRAFT
from pipeline.consent.policy import Signal
from pipeline.engine.workspace import Workspace
from pipeline.stages.data_card import SAMPLED_SHARDS

_MOST_HOSTS = 1_000  # named in compliance.json

_OUR_OWN = (Signal.BLOCK_LIST, Signal.TAKEDOWN)
"""What was said to us, not on the host."""

_COLUMNS = ["url", "status", "http_status", "refused_by", "license_url", "creator"]


@dataclass
class Compliance:
    """Counts over the pairs of a finished set; from `urls` on, over its first parts. `first`, `last`: crawl times."""

    pairs: int = 0
    samples: int = 0
    refused: Counter[str] = field(default_factory=Counter)  # pairs by signal
    parts: int = 0
    urls: int = 0
    responses: int = 0
    hosts: set[str] = field(default_factory=set)
    hosts_that_refused: Counter[str] = field(default_factory=Counter)  # URLs by host
    robots_files: int = 0  # authorities whose robots.txt was requested
    robots_without_file: int = 0
    with_licence: int = 0
    with_creator: int = 0
    first: datetime | None = None
    last: datetime | None = None


def measure_compliance(workspace: Workspace, manifest: Mapping[str, Any]) -> Compliance:
    """Read the statistics of all shards, and the tables and ledgers of the first ones, one at a time."""
    compliance = Compliance(samples=manifest["samples"])
    stems = [shard["tar"].removesuffix(".tar") for shard in manifest["shards"]]
    for stem in stems:
        stats = workspace.read_json(f"shards/{stem}_stats.json")
        compliance.pairs += stats["count"]
        compliance.refused.update(stats["refused_by"])
    authorities: dict[str, int | None] = {}
    for stem in stems[:SAMPLED_SHARDS]:
        _count_rows(workspace.read_table(f"shards/{stem}.parquet", _COLUMNS), compliance)
        ledger = f"consent/part-{stem}.parquet"
        if workspace.exists(ledger):
            _count_ledger(workspace.read_table(ledger), authorities, compliance)
        compliance.parts += 1
    compliance.robots_files = len(authorities)
    compliance.robots_without_file = sum(status is None or status >= 300 for status in authorities.values())
    return compliance


def _count_rows(rows: pa.Table, compliance: Compliance) -> None:
    by_url = {row["url"]: row for row in rows.to_pylist() if row["url"]}  # empty if taken down
    compliance.urls += len(by_url)
    for url, row in by_url.items():
        host = urlsplit(url).hostname or ""
        compliance.hosts.add(host)
        compliance.responses += row["http_status"] is not None
        if row["refused_by"] is not None and row["refused_by"] not in _OUR_OWN:
            compliance.hosts_that_refused[host] += 1
        if row["status"] == "success":
            compliance.with_licence += row["license_url"] is not None
            compliance.with_creator += row["creator"] is not None


def _count_ledger(ledger: pa.Table, authorities: dict[str, int | None], compliance: Compliance) -> None:
    asked = ledger.filter(pc.is_valid(ledger["robots_at"]))
    for url, status in zip(asked["url"].to_pylist(), asked["robots_status"].to_pylist(), strict=True):
        parts = urlsplit(url)
        authorities[f"{parts.scheme}://{parts.netloc}"] = status
    times = pc.min_max(ledger["checked_at"]).as_py()
    if times["min"] is not None:
        compliance.first = min(times["min"], compliance.first or times["min"])
        compliance.last = max(times["max"], compliance.last or times["max"])


def compliance_json(compliance: Compliance, config: Config) -> dict[str, Any]:
    """Return the content of compliance.json; without times, so the same responses give the same content."""
    fetch = config.fetch
    return {
        "crawler": {"product_token": fetch.agent, "contact": fetch.contact},
        "pairs": compliance.pairs,
        "samples": compliance.samples,
        "refused_by": {str(signal): compliance.refused[signal] for signal in Signal},
        "counted": {
            "parts": compliance.parts,
            "urls": compliance.urls,
            "urls_with_a_response": compliance.responses,
            "hosts": len(compliance.hosts),
            "hosts_that_said_no": len(compliance.hosts_that_refused),
            "robots_txt_asked_of": compliance.robots_files,
            "robots_txt_without_a_file": compliance.robots_without_file,
            "samples_with_a_licence_url": compliance.with_licence,
            "samples_with_a_creator": compliance.with_creator,
        },
        "hosts_that_said_no": dict(
            sorted(compliance.hosts_that_refused.items(), key=lambda item: (-item[1], item[0]))[:_MOST_HOSTS]
        ),
        "signals": signals_read(fetch),
        "drafts": {"content-usage": [ATTACH_DRAFT, VOCABULARY_DRAFT]},
        "rates": {
            "least_seconds_between_requests_to_a_host": fetch.host_interval_s,
            "most_requests_to_a_host_at_a_time": fetch.host_concurrency,
            "crawl_delay_and_retry_after": "kept",
            "requests_for_a_url": "one; transient failures again up to fetch.retries times",
        },
    }


def signals_read(fetch: FetchConfig) -> dict[str, Any]:
    """Return which signals, and which other crawlers' rules, were obeyed."""
    obeyed = [token for name in fetch.also_obey for token in (preset_tokens() if name == PRESET else (name,))]
    heeded: dict[str, Any] = {str(signal): fetch.consent.reads(signal) for signal in Signal}
    return heeded | {str(Signal.ALSO_OBEY): sorted(set(obeyed), key=str.lower)}


def consent_lines(compliance: Compliance, config: Config) -> list[str]:
    """Return the section of the data card."""
    off = [signal for signal, is_read in signals_read(config.fetch).items() if not is_read]
    refused = [f"| {signal} | {count:,} |" for signal, count in sorted(compliance.refused.items(), key=lambda i: -i[1])]
    counted = "" if compliance.parts == 0 else f" (counted in {compliance.parts:,} parts)"
    return [
        "## Consent",
        "",
        "Checked before and after each request; the most restrictive statement applies. Details: compliance.json, and "
        "the columns `refused_by`, `consent_checked` and `consent_said` of each pair.",
        "",
        f"- Hosts: {len(compliance.hosts):,}, of which {len(compliance.hosts_that_refused):,} refused{counted}.",
        f"- robots.txt was requested from {compliance.robots_files:,} authorities; "
        f"{compliance.robots_without_file:,} had none.",
        f"- Samples whose file states a licence: {compliance.with_licence:,}; a creator: {compliance.with_creator:,}.",
        f"- Signals that were switched off: {', '.join(off) or 'none'}.",
        "",
        "| refused by | pairs |",
        "|---|---:|",
        *(refused or ["| (nothing) | 0 |"]),
        "",
    ]
