"""report/compliance.json: the requests made, the refusals by signal, and the request rates, over the whole set."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.config import Config
from pipeline.config.fetch import FetchConfig
from pipeline.consent.ai_crawlers import PRESET, preset_tokens
from pipeline.consent.content_usage import ATTACH_DRAFT, VOCABULARY_DRAFT
from pipeline.consent.policy import Signal
from pipeline.engine.workspace import Workspace
from pipeline.fetching.host_rules import image_cdns
from pipeline.stages.host_tallies import HostTallies, measure_hosts


@dataclass
class Compliance:
    """Counts over the pairs of a finished set."""

    pairs: int = 0
    samples: int = 0
    refused: Counter[str] = field(default_factory=Counter)  # pairs by signal
    hosts: HostTallies = field(default_factory=HostTallies)


def measure_compliance(workspace: Workspace, manifest: Mapping[str, Any]) -> Compliance:
    """Read the statistics, tables and ledgers of all shards."""
    compliance = Compliance(samples=manifest["samples"])
    stems = [shard["tar"].removesuffix(".tar") for shard in manifest["shards"]]
    for stem in stems:
        stats = workspace.read_json(f"shards/{stem}_stats.json")
        compliance.pairs += stats["count"]
        compliance.refused.update(stats["refused_by"])
    compliance.hosts = measure_hosts(workspace, stems)
    return compliance


def compliance_json(compliance: Compliance, config: Config) -> dict[str, Any]:
    """Return the content of compliance.json; without times, so the same responses give the same content."""
    fetch, hosts = config.fetch, compliance.hosts
    return {
        "crawler": {"product_token": fetch.agent, "contact": fetch.contact},
        "pairs": compliance.pairs,
        "samples": compliance.samples,
        "refused_by": {str(signal): compliance.refused[signal] for signal in Signal},
        "counted": {
            "urls": hosts.urls,
            "urls_with_a_response": hosts.responses,
            "hosts": hosts.hosts,
            "hosts_in_the_set": hosts.hosts_in_set,
            "hosts_that_said_no": hosts.hosts_that_refused,
            "robots_txt_asked_of": hosts.robots_files,
            "robots_txt_without_a_file": hosts.robots_without_file,
            "samples_with_a_licence_url": hosts.with_licence,
            "samples_with_a_creator": hosts.with_creator,
        },
        "hosts_that_said_no": hosts.most_refusing,
        "signals": signals_read(fetch),
        "drafts": {"content-usage": [ATTACH_DRAFT, VOCABULARY_DRAFT]},
        "rates": {
            "in_words": request_rates(fetch),
            "least_seconds_between_requests_to_a_host": fetch.host_interval_s,
            "most_requests_to_a_host_at_a_time": fetch.host_concurrency,
            "crawl_delay_and_retry_after": "kept",
            "requests_for_a_url": "one; transient failures again up to fetch.retries times",
        },
    }


def request_rates(fetch: FetchConfig) -> str:
    """Return the limits of requests as a part of a sentence."""
    cdn = image_cdns()[0]
    concurrency = max(fetch.host_concurrency, cdn.concurrency or 1)
    interval_s = min(fetch.host_interval_s, cdn.interval_s or 0.0)
    named = "; other limits were set for some sites by name" if fetch.hosts else ""
    return (
        f"{_limits(fetch.host_concurrency, fetch.host_interval_s, 'to a site')} "
        f"(to known image delivery networks {_limits(concurrency, interval_s)}{named})"
    )


def _limits(concurrency: int, interval_s: float, to_whom: str = "") -> str:
    requests = " ".join(filter(None, ("1 request" if concurrency == 1 else f"{concurrency} requests", to_whom)))
    pause = f", at least {interval_s:g} {'second' if interval_s == 1 else 'seconds'} apart" if interval_s else ""
    return f"at most {requests} at a time{pause or ', without a pause between them'}"


def signals_read(fetch: FetchConfig) -> dict[str, Any]:
    """Return which signals, which other crawlers' rules, and whether statements of pages, were obeyed."""
    obeyed = [token for name in fetch.also_obey for token in (preset_tokens() if name == PRESET else (name,))]
    heeded: dict[str, Any] = {str(signal): fetch.consent.reads(signal) for signal in Signal}
    of_others = {str(Signal.ALSO_OBEY): sorted(set(obeyed), key=str.lower)}
    return heeded | of_others | {"pages": fetch.consent.pages}


def consent_lines(compliance: Compliance, config: Config) -> list[str]:
    """Return the section of the data card."""
    off = [signal for signal, is_read in signals_read(config.fetch).items() if not is_read]
    refused = [f"| {signal} | {count:,} |" for signal, count in sorted(compliance.refused.items(), key=lambda i: -i[1])]
    hosts = compliance.hosts
    return [
        "## Consent",
        "",
        "Checked before and after each request; the most restrictive statement applies. Details: compliance.json, and "
        "the columns `refused_by`, `consent_checked` and `consent_said` of each pair.",
        "",
        f"- Hosts: {hosts.hosts:,}; {hosts.hosts_that_refused:,} refused, {hosts.hosts_in_set:,} have samples.",
        f"- robots.txt was requested from {hosts.robots_files:,} authorities; {hosts.robots_without_file:,} had none.",
        f"- Samples whose file states a licence: {hosts.with_licence:,}; a creator: {hosts.with_creator:,}.",
        f"- Signals that were switched off: {', '.join(off) or 'none'}.",
        "",
        "| refused by | pairs |",
        "|---|---:|",
        *(refused or ["| (nothing) | 0 |"]),
        "",
    ]
