"""Interpret a robots.txt file: whether a URL may be requested (RFC 9309), and, with pipeline/consent/, used.

Protego matches paths. The groups are chosen here, for two reasons: the RFC (section 2.2.1) compares product tokens,
while Protego treats "*bot" as everyone; and Protego copies every rule to every agent of its group, so that a file of
500 KiB can take a minute. It only gets the rules of the groups that apply to us.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property

from protego import Protego

from pipeline.consent.policy import Signal, Statement
from pipeline.consent.robots_rules import NOTHING, UsageRules, read_usage_rules
from pipeline.fetching.outcome import FetchFailure
from pipeline.fetching.site_terms import NO_TERMS, SiteTerms
from pipeline.records import Reason

MAX_BYTES = 500 * 1024  # RFC 9309 section 2.5: at least 500 KiB must be parsed; the rest is ignored
LARGE_BYTES = 8 * 1024  # a longer text is parsed and matched outside the event loop: 40 ms a URL in the worst case

_LINE_END = re.compile(r"\r\n?|\n")
_NOT_LINE_ENDS = re.compile("[\v\f\x1c-\x1e\x85\u2028\u2029]")  # Protego treats them as line ends
_RULE = re.compile(r"[^:]*:|(?:allow|d[is]{2,4}al+[ao]w|crawl[- ]delay)\s", re.IGNORECASE)
_USER_AGENT = re.compile(r"user[- ]?agent(?:\s*:\s*|\s+|$)(.*)", re.IGNORECASE)
_SITE_WIDE = re.compile(r"(?:sitemaps?|site-map|host)\s*(?::|\s|$)", re.IGNORECASE)
_TOKEN = re.compile(r"[a-z_-]+")


@dataclass(frozen=True, slots=True)
class RobotsFetch:
    """The response to the request for robots.txt, for the record; `sha256` is None if there was no file."""

    at: datetime
    status: int | None
    sha256: str | None


@dataclass(frozen=True)
class RobotRules:
    """The rules of one authority. `refused` is why nothing may be requested; without `text` everything may. `text` has
    only the rules that apply to `agent`, as a robots.txt file.
    """

    agent: str
    text: str = ""
    refused: tuple[Reason, str, Signal | None] | None = None
    usage: UsageRules = NOTHING
    terms: SiteTerms = NO_TERMS
    fetched: RobotsFetch | None = None

    @classmethod
    def refusing(cls, agent: str, failure: FetchFailure) -> "RobotRules":
        """Return rules that disallow everything, for a file that cannot be fetched (RFC 9309 section 2.3.1.4)."""
        says_more = failure.is_before_request or failure.refused_by is not None
        reason = failure.reason if says_more else Reason.ROBOTS_UNREACHABLE
        refused = (reason, f"robots.txt: {failure.message}", failure.refused_by)
        return cls(agent, refused=refused, fetched=RobotsFetch(datetime.now(UTC), failure.http_status, None))

    @property
    def is_large(self) -> bool:
        """Whether parsing and matching take long enough to keep out of the event loop."""
        return len(self.text) > LARGE_BYTES or self.usage.size_bytes > LARGE_BYTES

    def check(self, url: str) -> None:
        """Return if `url` may be requested.

        Raises:
            FetchFailure: it must not be.
        """
        if self.refused is not None:
            reason, message, refused_by = self.refused
            raise FetchFailure(reason, message, is_before_request=True, refused_by=refused_by)
        if not self.allows(url):
            raise FetchFailure(Reason.ROBOTS_DISALLOWED, "robots.txt disallows it", refused_by=Signal.ROBOTS_TXT)

    def statements(self, url: str) -> list[Statement]:
        """Return the statements of the file, and of the terms that it refers to, about the use of `url`."""
        return [*self.usage.statements(url), *self.terms.statements(url)]

    def allows(self, url: str) -> bool:
        """Return whether the file allows `url`."""
        return self._parsed is None or bool(self._parsed.can_fetch(url, self.agent))

    @property
    def crawl_delay_s(self) -> float:
        """The Crawl-delay of our group, seconds between two requests; 0 without one."""
        delay = self._parsed.crawl_delay(self.agent) if self._parsed is not None else None
        return delay if delay and math.isfinite(delay) and delay > 0 else 0.0

    @cached_property
    def _parsed(self) -> Protego | None:
        return Protego.parse(self.text) if self.text else None


@dataclass(slots=True)
class _Group:
    """Product tokens in lower case, `*` among them, and the lines of their rules."""

    agents: set[str] = field(default_factory=set)
    lines: list[str] = field(default_factory=list)


def parse_robots(body: bytes, agent: str, also_obey: frozenset[str] = frozenset()) -> RobotRules:
    """Return the rules in a robots.txt file; lines that do not parse are skipped, so any bytes are accepted.

    `also_obey` are the product tokens, in lower case, of other crawlers whose rules bind us too.
    """
    if len(body) > MAX_BYTES:
        whole, end, _ = body[:MAX_BYTES].replace(b"\r", b"\n").rpartition(b"\n")
        body = whole + end  # a truncated line could allow or forbid the wrong URLs
    whole_text = body.decode("utf-8-sig", "replace").replace("\0", "")
    lines = _lines_for(list(_groups(whole_text)), agent.lower())
    text = f"User-agent: {agent}\n" + "".join(f"{line}\n" for line in lines) if lines else ""
    rules = RobotRules(agent, text, usage=read_usage_rules(whole_text, agent.lower(), also_obey))
    rules.allows("http://example.com/")  # parse now: later calls only match
    return rules


def _lines_for(groups: Sequence[_Group], agent: str) -> list[str]:
    """Return the rules of all groups that name `agent`, else of those for everyone (RFC 9309 section 2.2.1)."""
    name = agent if any(agent in group.agents for group in groups) else "*"
    return list(dict.fromkeys(line for group in groups if name in group.agents for line in group.lines))


def _groups(text: str) -> Iterator[_Group]:
    """Yield the groups of a file: user-agent lines, then rules. Sitemap and Host lines belong to no group."""
    group = _Group()
    for raw in _LINE_END.split(text):
        line = _NOT_LINE_ENDS.sub(" ", raw.partition("#")[0]).strip()
        match = _USER_AGENT.match(line)
        if match is None:
            if _RULE.match(line) and not _SITE_WIDE.match(line):
                group.lines.append(line)
            continue
        if group.lines:
            yield group
            group = _Group()
        group.agents.add(_product_token(match[1]))
    yield group


def _product_token(value: str) -> str:
    """Return the token of `wit-pipeline/1.0 (any)` in lower case; "*" only for that word (Google's parser: `* bot`)."""
    token = _TOKEN.match(value.lower())
    return token[0] if token else next(iter(value.split()), "")
