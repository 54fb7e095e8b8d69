"""`wit card --eu-summary`: the dataset's part of the public summary of training content that the EU's AI Act requires.

Article 53(1)(d) of Regulation (EU) 2024/1689; the headings are those of the AI Office's template of July 2025. The
provider of a model fills in the parts about provider and model; the parts about the dataset come from its tables.
"""

from collections.abc import Mapping
from math import ceil
from typing import Any

from pipeline.config import Config
from pipeline.config.fetch import FetchConfig
from pipeline.config.sources import SourceConfig
from pipeline.consent.policy import Signal
from pipeline.stages.compliance import Compliance, request_rates, signals_read
from pipeline.stages.data_card import Composition, stored_form
from pipeline.stages.host_tallies import HostTallies

_TOP_FRACTION = 0.1  # of the domains, by content

_KINDS = {
    "wat": "metadata of web pages from web archives (WAT files)",
    "warc": "web pages from web archives (WARC files)",
    "url-table": "tables of image addresses with texts",
    "webdataset": "sets of images with texts that others collected",
}
_SEARCHES = {
    "openverse": "Openverse (openverse.org)",
    "wikimedia-commons": "Wikimedia Commons (commons.wikimedia.org)",
}

_MEASURES = {
    Signal.ROBOTS_TXT: "robots.txt (RFC 9309), rules for our crawler or for all crawlers",
    Signal.ALSO_OBEY: "robots.txt, rules for other crawlers that gather training data",
    Signal.CONTENT_USAGE: "AI usage preferences of the IETF (Content-Usage), in robots.txt and response headers",
    Signal.CONTENT_SIGNAL: "content signals (Content-Signal), in robots.txt and response headers",
    Signal.TDM_RESERVATION: "reservations under the TDM Reservation Protocol",
    Signal.RSL: "machine-readable licences (Really Simple Licensing)",
    Signal.X_ROBOTS_TAG: "noai, noindex and similar directives in the headers of images (X-Robots-Tag), said to our "
    "crawler, to all crawlers or to other crawlers that gather training data",
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
        "This part of the public summary under Article 53(1)(d) of Regulation (EU) 2024/1689 describes one dataset. It "
        "follows the sections of the AI Office's template (July 2025). The figures are counted from the dataset's own "
        "records. Lines with [to fill in] are for the provider of the model.",
        "",
        "Terms: an image-text pair is one image with the text that describes it. A domain is the name of the server "
        "that published the image. To exclude a pair means that neither its image nor its text is in the dataset. "
        "robots.txt is the file in which a site states what automated programs (crawlers) may request from it.",
        "",
        *_general_information(compliance, composition, config, manifest),
        *_data_sources(compliance, config, sources),
        *_data_processing(compliance, config, refused_by_pages),
    ]
    return "\n".join(lines)


def _stored(fetch: FetchConfig) -> str:
    if fetch.resize == "shorter_side" and fetch.format == "jpg":
        return f"stored with a shorter side of at most {fetch.image_size} pixels"
    return f"stored as {stored_form(fetch)}"


def _general_information(
    compliance: Compliance, composition: Composition, config: Config, manifest: Mapping[str, Any]
) -> list[str]:
    samples = manifest["samples"]
    last = compliance.hosts.last
    return [
        "## 1. General information",
        "",
        "### 1.1 Provider identification, 1.2 Model identification",
        "",
        "[to fill in] Provider, authorised representative, model, its versions, date of placing on the market.",
        "",
        "### 1.3 Modalities, size and other characteristics of the training data",
        "",
        "- Modalities: images and text.",
        f"- Size, images: {samples:,} ({_size_range(samples)}).",
        f"- Size, text: {samples:,} image-text pairs, each with one text or more. [to fill in] The range in tokens.",
        f"- Types of content, images: photographs and graphics, {_stored(config.fetch)}.",
        "- Types of content, text: captions, alternative texts and titles of these images.",
        f"- Languages of the texts: {_languages(composition, manifest)}.",
        f"- Latest date of collection: {f'{last:%d %B %Y}' if last is not None else '[to fill in] not recorded'}.",
        "",
    ]


def _data_sources(compliance: Compliance, config: Config, sources: int) -> list[str]:
    return [
        "## 2. List of data sources",
        "",
        "### 2.1 Publicly available datasets",
        "",
        *_listed_sources(config, sources),
        "",
        "### 2.2 Private non-publicly available datasets obtained from third parties",
        "",
        "[to fill in] If a source of section 2.1 is not publicly available, name it here instead. No other dataset was "
        "used.",
        "",
        "### 2.3 Data crawled and scraped from online sources",
        "",
        *_crawl(compliance, config),
        *_domains(compliance.hosts),
        "### 2.4 User data, 2.5 Synthetic data, 2.6 Other sources",
        "",
        "None in this dataset.",
        "",
    ]


def _listed_sources(config: Config, sources: int) -> list[str]:
    """Return what the sources are, by kind, and which of them hold images."""
    named = list(dict.fromkeys(_name_of(source) for source in config.sources))
    named += list(dict.fromkeys(f"search results of {_SEARCHES.get(s.api, s.api)}" for s in config.search))
    has_tars = any(source.kind == "webdataset" for source in config.sources)
    lines = [
        f"{sources:,} {'file was' if sources == 1 else 'files were'} read:",
        "",
        *(f"- {name}" for name in named),
        "",
    ]
    if _requests_images(config):
        but = "Except for the sets of images, these" if has_tars else "These"
        lines.append(
            f"{but} sources have the addresses of images on the web, with texts, and not the images. Section 2.3 says "
            "how the images were obtained."
        )
    if any("[to fill in]" in name for name in named):
        lines += ["", "[to fill in] Name, publisher and address of the sources that are marked so."]
    return lines


def _requests_images(config: Config) -> bool:
    return config.requests_images or bool(config.search)


def _name_of(source: SourceConfig) -> str:
    if source.kind == "common-crawl":
        crawls = source.crawls if isinstance(source.crawls, str) else ", ".join(source.crawls)
        return f"Common Crawl (commoncrawl.org), crawls {crawls}"
    if source.preset is not None:
        return f"the published list of image addresses {source.preset}"
    return f"{_KINDS[source.kind]} [to fill in]"


def _crawl(compliance: Compliance, config: Config) -> list[str]:
    fetch = config.fetch
    if not _requests_images(config):
        return ["None: all images are from the sets of images in section 2.1.", ""]
    lines = [
        f"- Crawler: {fetch.agent}{_contact(config)}. It is used only to fetch the images of this dataset.",
        "- Purpose: to download images whose addresses the sources of section 2.1 list. It follows no links from page "
        "to page.",
        f"- Behaviour: before the first request to a site its robots.txt is read, and obeyed. Each image is requested "
        f"once; a failed request is repeated at most {fetch.retries} times. There are {request_rates(fetch)}. Content "
        "behind a login, a payment or a captcha is not collected.",
        f"- Period of collection: {_period(compliance)}.",
        "- Types of content: still images with the texts that describe them.",
    ]
    if fetch.archives:
        lines.append(
            "- Images that are in recorded web archives were taken from there. The archives' own crawlers had "
            "requested them; [to fill in] name and period of these archives."
        )
    return [*lines, ""]


def _data_processing(compliance: Compliance, config: Config, refused_by_pages: int) -> list[str]:
    hosts = compliance.hosts
    return [
        "## 3. Data processing aspects",
        "",
        "### 3.1 Respect of reservations of rights (Directive (EU) 2019/790, Article 4(3))",
        "",
        "[to fill in] Whether the provider has signed the Code of Practice for general-purpose AI models.",
        "",
        "The table has the forms of reservation (opt-out), and whether they were looked for and obeyed, before and "
        "after each request. One reservation of any form excludes the pair; no permission elsewhere overrides it.",
        "",
        "| form of reservation | looked for and obeyed | pairs excluded for it |",
        "|---|---|---:|",
        "| statements of the pages that show the images (noai, TDM reservation, AI usage preferences), where the "
        f"source has the page | {_observed_in_pages(config)} | {refused_by_pages:,} |",
        *_measures(compliance, config),
        "",
        f"{hosts.hosts_that_refused:,} of the {hosts.hosts:,} domains that the addresses lead to refused the use of at "
        "least one image. Which forms were looked for, what was found and when is recorded for every image.",
        "",
        "Later reservations: [to fill in] how owners can reach the provider, and how often the sites are checked "
        "again. The program can check all images of the dataset again, and take out those that may no longer be used "
        f"({compliance.refused[Signal.TAKEDOWN]:,} pairs so far).",
        "",
        "### 3.2 Removal of illegal content",
        "",
        f"{_block_lists(config)} [to fill in] Further measures.",
        "",
        "### 3.3 Other information",
        "",
        "Copies of an image are merged into one item. Positions (GPS) that cameras note in image files are not kept.",
        "",
    ]


def _observed_in_pages(config: Config) -> str:
    if not any(source.has_pages for source in config.sources):
        return "no source has pages"
    return "yes" if config.fetch.consent.pages else "no"


def _size_range(images: int) -> str:
    """Return the range of the template that a number of images is in."""
    if images < 10**6:
        return "range of the template: less than 1 million"
    return f"range of the template: {'1 million to 1 billion' if images <= 10**9 else 'more than 1 billion'}"


def _languages(composition: Composition, manifest: Mapping[str, Any]) -> str:
    languages = composition.columns["language"]
    total = languages.total()
    named = [
        f"{'not determined' if name == 'und' else name} {count / total:.0%}"
        for name, count in languages.most_common(10)
    ]
    if not named:
        return "not known"
    is_sample = composition.samples < manifest["samples"]
    note = f"; estimated from a random sample of {composition.samples:,} pairs" if is_sample else ""
    return f"{', '.join(named)} (ISO 639 codes{note})"


def _contact(config: Config) -> str:
    return f", contact {config.fetch.contact}" if config.fetch.contact else ""


def _period(compliance: Compliance) -> str:
    first, last = compliance.hosts.first, compliance.hosts.last
    if first is None or last is None:
        return "[to fill in] not recorded"
    return f"{first:%d %B %Y} to {last:%d %B %Y}"


def _domains(hosts: HostTallies) -> list[str]:
    """Return the table of the domains with the most images: a tenth of all, at most MOST_HOSTS."""
    tenth = ceil(hosts.hosts_in_set * _TOP_FRACTION)
    shown = list(hosts.largest.items())[:tenth]
    total = hosts.samples or 1
    lines = [
        f"Domains with images in the dataset: {hosts.hosts_in_set:,}. The tenth with the most images ({len(shown):,}):",
        "",
    ]
    lines += ["| domain | images | share of the dataset |", "|---|---:|---:|"]
    lines += [f"| {host or '(none)'} | {count:,} | {count / total:.2%} |" for host, count in shown]
    if len(shown) < tenth:
        lines += [
            "",
            f"[to fill in] The template requires the top tenth, {tenth:,} domains, from providers that are not small "
            f"or medium-sized enterprises; this table has the first {len(shown):,}.",
        ]
    return [*lines, ""]


def _measures(compliance: Compliance, config: Config) -> list[str]:
    heeded = signals_read(config.fetch)
    answers = {signal: "yes" if heeded[str(signal)] else "no" for signal in _MEASURES}
    if not _has_block_lists(config):
        answers[Signal.BLOCK_LIST] = "no list was used"
    return [f"| {words} | {answers[signal]} | {compliance.refused[signal]:,} |" for signal, words in _MEASURES.items()]


def _has_block_lists(config: Config) -> bool:
    return any(config.fetch.consent.block_lists.values())


def _block_lists(config: Config) -> str:
    if _has_block_lists(config):
        return "URLs and images on the block lists of the dataset's maker were not stored."
    return "No block list was used."
