"""The one further request that a robots.txt can lead to: tdmrep.json, or a licence for machines (RSL)."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.config import ConsentConfig, FetchConfig
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
    """What the documents say. `licence_url` with no `licence` is one that could not be read, which refuses."""

    tdm_rules: tuple[TdmRule, ...] = ()
    licence_url: str | None = None
    licence: tuple[RslContent, ...] | None = None

    def statements(self, url: str) -> Iterator[Statement]:
        """Yield what the documents say about a URL."""
        stated = statement_of_file(self.tdm_rules, url)
        if stated is not None:
            yield stated
        if self.licence_url is not None:
            stated = rsl_statement(self.licence, self.licence_url, url)
            if stated is not None:
                yield stated


NO_TERMS = SiteTerms()


Licences = dict[str, tuple[RslContent, ...] | None]
"""Licences by URL, read before: many sites name the same one."""

_MAX_LICENCES = 10_000
_KNOWN_LICENCES = ("https://creativecommons.org/", "http://creativecommons.org/")  # for people, and free to train on


def asks_for_more(usage: UsageRules, config: ConsentConfig) -> bool:
    """Return whether a robots.txt leads to a request of `fetch_terms`."""
    is_hinted = config.tdm_file == "always" or (config.tdm_file == "hinted" and usage.names_tdm_file)
    wants_tdm_file = config.tdm and is_hinted and not usage.reserves_mining
    return (config.rsl and bool(usage.licences)) or wants_tdm_file


async def fetch_terms(
    client: Client, origin: str, usage: UsageRules, config: FetchConfig, licences: Licences
) -> SiteTerms:
    """Return the terms that a robots.txt leads to.

    One document a host: a licence that robots.txt names, else tdmrep.json where the file hints at it or the config says
    so. What cannot be had says nothing, except a licence: terms that nobody can read are not met.
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
    """Return the body of a document, None where there is none; `config.timeout_s` is for all redirects."""
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
