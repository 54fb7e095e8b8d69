"""The one further request that a robots.txt can cause: tdmrep.json, or a machine-readable licence (RSL)."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.config.fetch import ConsentConfig, FetchConfig
from pipeline.consent.policy import Statement
from pipeline.consent.robots_rules import UsageRules
from pipeline.consent.rsl import MAX_BYTES, RslContent, read_rsl, rsl_statement
from pipeline.consent.tdm import FILE_PATH, TdmRule, read_tdm_file, statement_of_file
from pipeline.fetching.addresses import Target
from pipeline.fetching.client import Client
from pipeline.fetching.outcome import FetchFailure
from pipeline.fetching.responses import is_redirect, redirect_target
from pipeline.web.urls import normalize_url

_MAX_REDIRECTS = 5


@dataclass(frozen=True, slots=True)
class SiteTerms:
    """The content of the documents. A `licence_url` without a `licence` is an unreadable one, which refuses."""

    tdm_rules: tuple[TdmRule, ...] = ()
    licence_url: str | None = None
    licence: tuple[RslContent, ...] | None = None

    def statements(self, url: str) -> Iterator[Statement]:
        """Yield the statements of the documents about a URL."""
        stated = statement_of_file(self.tdm_rules, url)
        if stated is not None:
            yield stated
        if self.licence_url is not None:
            stated = rsl_statement(self.licence, self.licence_url, url)
            if stated is not None:
                yield stated


NO_TERMS = SiteTerms()


Licences = dict[str, tuple[RslContent, ...] | None]
"""Cache of licences by URL: many sites use the same one."""

_MAX_LICENCES = 10_000
_KNOWN_LICENCES = (
    "https://creativecommons.org/",
    "http://creativecommons.org/",
)  # for human readers; training is allowed


def asks_for_more(usage: UsageRules, config: ConsentConfig) -> bool:
    """Return whether a robots.txt causes a request by `fetch_terms`."""
    is_hinted = config.tdm_file == "always" or (config.tdm_file == "hinted" and usage.names_tdm_file)
    wants_tdm_file = config.tdm and is_hinted and not usage.reserves_mining
    return (config.rsl and bool(usage.licences)) or wants_tdm_file


async def fetch_terms(
    client: Client, origin: str, usage: UsageRules, config: FetchConfig, licences: Licences
) -> SiteTerms:
    """Return the terms that a robots.txt refers to.

    One document per host: a licence named by robots.txt, else tdmrep.json if the file mentions it or the config
    requires it. An unavailable document has no statements, except a licence: unreadable terms are not met.
    """
    consent = config.consent
    if consent.rsl and usage.licences:
        return await fetch_licence(client, usage.licences[0], origin, config, licences)
    body = await _fetch(client, origin + FILE_PATH, config)
    return SiteTerms(tdm_rules=() if body is None else read_tdm_file(body))


async def fetch_licence(
    client: Client, named: str, base_url: str, config: FetchConfig, licences: Licences
) -> SiteTerms:
    """Return the terms of a licence, `named` relative to `base_url`."""
    url = normalize_url(named, base_url)
    if url is not None and url.startswith(_KNOWN_LICENCES):
        return NO_TERMS
    if url is not None and url not in licences and config.network:
        body = await _fetch(client, url, config)
        if len(licences) >= _MAX_LICENCES:
            licences.clear()
        licences[url] = None if body is None else read_rsl(body, url)
    return SiteTerms(licence_url=named, licence=None if url is None else licences.get(url))


async def _fetch(client: Client, url: str, config: FetchConfig) -> bytes | None:
    """Return the body of a document, None if it does not exist; `config.timeout_s` is for all redirects."""
    deadline_s = asyncio.get_running_loop().time() + config.timeout_s
    try:
        target = Target.parse(url)
        for _ in range(_MAX_REDIRECTS + 1):
            response = await client.get(
                target,
                budget_s=deadline_s - asyncio.get_running_loop().time(),
                max_bytes=MAX_BYTES,
                wants_body=lambda status, _: 200 <= status <= 299,
            )
            if response.body is not None:
                with response.body as body:
                    return body.read()
            if not is_redirect(response.status):
                return None
            target = Target.parse(redirect_target(target.url, response.headers))
    except FetchFailure:
        return None
    return None
