"""`wit card --eu-summary`: the dataset's part of the public summary of training content that the EU's AI Act requires.

Article 53(1)(d) of Regulation (EU) 2024/1689; the headings are those of the AI Office's template of July 2025. The
provider of a model fills in the parts about provider and model; the parts about the dataset come from its tables.
"""

from collections.abc import Mapping
from typing import Any

from pipeline.config import Config
from pipeline.consent.policy import Signal
from pipeline.stages.compliance import Compliance, signals_read
from pipeline.stages.data_card import Composition

_TOP_FRACTION = 0.1  # of the domains, by content
_MOST_DOMAINS = 1_000

_MEASURES = {
    Signal.ROBOTS_TXT: "robots.txt (RFC 9309), rules for our crawler or for all crawlers",
    Signal.ALSO_OBEY: "robots.txt, rules for other crawlers that gather training data",
    Signal.CONTENT_USAGE: "AI usage preferences of the IETF (Content-Usage), in robots.txt and response headers",
    Signal.CONTENT_SIGNAL: "content signals (Content-Signal), in robots.txt and response headers",
    Signal.TDM_RESERVATION: "reservations under the TDM Reservation Protocol",
    Signal.RSL: "machine-readable licences (Really Simple Licensing)",
    Signal.X_ROBOTS_TAG: "noai, noindex and similar directives in the headers of images",
    Signal.PLUS_DATA_MINING: "data mining statements in image files (IPTC and PLUS)",
    Signal.C2PA: "training and data mining statements in content credentials (C2PA)",
    Signal.PAYMENT_REQUIRED: "demands for payment (HTTP status 402)",
    Signal.BOT_WALL: "challenge pages against automated access (captchas)",
    Signal.TAKEDOWN: "requests to take images out of the finished set",
    Signal.BLOCK_LIST: "lists of opted-out domains, URLs and images",
}


def write_eu_summary(
    compliance: Compliance,
    composition: Composition,
    config: Config,
    manifest: Mapping[str, Any],
    *,
    sources: int,
    refused_by_pages: int,
) -> str:
    """Return the summary as Markdown.

    `sources` is the number of source files, `refused_by_pages` that of pairs refused by the pages that show them.
    """
    lines = [
        "# Summary of training content: image-text pairs from the web",
        "",
        "This part describes one set of training data, from its own records. Lines with [to fill in] are for the "
        "provider of the model.",
        "",
        *_general_information(composition, config, manifest),
        *_data_sources(compliance, composition, config, manifest, sources),
        *_data_processing(compliance, config, manifest, refused_by_pages),
    ]
    return "\n".join(lines)


def _general_information(composition: Composition, config: Config, manifest: Mapping[str, Any]) -> list[str]:
    return [
        "## 1. General information",
        "",
        "- [to fill in] Provider, authorised representative, model, date of placing on the market.",
        "- Modality: images with text.",
        f"- Size: {manifest['samples']:,} images, each with one text or more.",
        "- Images: photographs and graphics, stored with a shorter side of at most "
        f"{config.fetch.image_size} pixels. Texts: captions, alternative texts and titles.",
        f"- Languages: {_languages(composition)}.",
        "",
    ]


def _data_sources(
    compliance: Compliance, composition: Composition, config: Config, manifest: Mapping[str, Any], sources: int
) -> list[str]:
    fetch = config.fetch
    return [
        "## 2. List of data sources",
        "",
        "### 2.1 Publicly available datasets",
        "",
        f"The addresses of the images and their texts were read from {sources:,} files of these kinds: "
        f"{_kinds(config)}. The images themselves are not in these files; section 2.3 says how they were obtained.",
        "",
        "[to fill in] Name, publisher and address of the datasets that these files are from.",
        "",
        "### 2.2 Private non-publicly available datasets obtained from third parties",
        "",
        "None in this dataset.",
        "",
        "### 2.3 Data crawled and scraped from online sources",
        "",
        f"- Crawler: {fetch.agent}{_contact(config)}. It is used only to fetch the images of this dataset.",
        f"- Behaviour: each image is requested once. A site gets at most {fetch.host_concurrency} requests at a time, "
        f"at least {fetch.host_interval_s:g} seconds apart. robots.txt is read first and obeyed. Content behind a "
        "login, a paywall or a captcha is not collected.",
        f"- Period of collection: {_period(compliance)}.",
        "- Content collected: still images, and from the pages that show them the texts that describe the images.",
        f"- Sites: {len(composition.hosts):,} domains with images in the set{_sampled(compliance, manifest)}.",
        "",
        *_domains(composition),
        "### 2.4 User data, 2.5 Synthetic data, 2.6 Other sources",
        "",
        "None in this dataset.",
        "",
    ]


def _data_processing(
    compliance: Compliance, config: Config, manifest: Mapping[str, Any], refused_by_pages: int
) -> list[str]:
    return [
        "## 3. Data processing aspects",
        "",
        "### 3.1 Respect of reservations of rights (Directive (EU) 2019/790, article 4(3))",
        "",
        "These forms of reservation (opt-out) are checked before and after each request. One reservation of any form "
        "excludes the image; no permission elsewhere overrides it.",
        "",
        "| form of reservation | checked | images excluded |",
        "|---|---|---:|",
        f"| noai, reservations and similar statements of the pages that show the images | yes | {refused_by_pages:,} |",
        *_measures(compliance, config),
        "",
        f"{len(compliance.hosts_that_refused):,} of {len(compliance.hosts):,} domains refused the use of at least one "
        f"image{_sampled(compliance, manifest)}. The forms checked and their statements are recorded for every image.",
        "",
        "Later reservations: the sites can be checked again at any time; images that may no longer be used are "
        "excluded from the next version of the dataset.",
        "",
        "### 3.2 Removal of illegal content",
        "",
        f"{_block_lists(config)} [to fill in] Further measures.",
        "",
        "### 3.3 Other",
        "",
        "Copies of an image are merged into one item. GPS positions in image files are not kept.",
        "",
    ]


def _languages(composition: Composition) -> str:
    languages = composition.columns["language"]
    total = languages.total()
    return ", ".join(f"{name} {count / total:.0%}" for name, count in languages.most_common(10)) or "not known"


def _kinds(config: Config) -> str:
    names = {"wat": "Common Crawl metadata", "warc": "web archives", "url-table": "tables of image URLs"}
    names |= {"common-crawl": "Common Crawl", "webdataset": "image sets collected by others"}
    return ", ".join(sorted({names[source.kind] for source in config.sources}))


def _contact(config: Config) -> str:
    return f", contact {config.fetch.contact}" if config.fetch.contact else ""


def _period(compliance: Compliance) -> str:
    if compliance.first is None or compliance.last is None:
        return "[to fill in] not recorded"
    return f"{compliance.first:%d %B %Y} to {compliance.last:%d %B %Y}"


def _sampled(compliance: Compliance, manifest: Mapping[str, Any]) -> str:
    parts = len(manifest["shards"])
    return (
        "" if compliance.parts == parts else f" (counted in {compliance.parts:,} of {parts:,} random parts of the set)"
    )


def _domains(composition: Composition) -> list[str]:
    """Return the table of the domains with the most images: a tenth of all, at most a thousand."""
    shown = min(_MOST_DOMAINS, max(1, round(len(composition.hosts) * _TOP_FRACTION)))
    total = composition.hosts.total() or 1
    rows = [
        f"| {host or '(none)'} | {count:,} | {count / total:.2%} |"
        for host, count in composition.hosts.most_common(shown)
    ]
    title = f"Domains with the most images, {len(rows):,} of {len(composition.hosts):,}:"
    return [title, "", "| domain | images | share |", "|---|---:|---:|", *rows, ""]


def _measures(compliance: Compliance, config: Config) -> list[str]:
    heeded = signals_read(config.fetch)
    return [
        f"| {words} | {'yes' if heeded[str(signal)] else 'no'} | {compliance.refused[signal]:,} |"
        for signal, words in _MEASURES.items()
    ]


def _block_lists(config: Config) -> str:
    if any(config.fetch.consent.block_lists.values()):
        return "URLs and images on the block lists of the dataset's maker were not stored."
    return "No block list was used."
