"""What a host's robots.txt allows us to request (RFC 9309); protego does the parsing and matching."""

import asyncio
import math
import re
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime

from protego import Protego

from pipeline.config import FetchConfig
from pipeline.fetching.addresses import Target
from pipeline.fetching.client import Client, Response
from pipeline.fetching.outcome import FetchFailure
from pipeline.fetching.responses import is_redirect, redirect_target, retry_after_s
from pipeline.records import Reason

MAX_BYTES = 500 * 1024  # RFC 9309 section 2.5: at least 500 KiB must be parsed; what is beyond is ignored
MAX_REDIRECTS = 5  # section 2.3.1.2
LIFETIME_S = 24 * 3600.0  # section 2.4
FAILURE_LIFETIME_S = 600.0

_TOO_MANY_REQUESTS = 429

_USER_AGENT_LINE = re.compile(
    r"^([ \t]*user[- ]?agent[ \t]*:)[ \t]*(\*|[a-z_-]*)[^\r\n]*", re.IGNORECASE | re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class RobotRules:
    """The rules of one authority. `refused` says why nothing may be requested; without `parsed` everything may."""

    agent: str
    parsed: Protego | None = None
    refused: tuple[Reason, str] | None = None
    size_bytes: int = 0

    @classmethod
    def refusing(cls, agent: str, failure: FetchFailure) -> "RobotRules":
        """Return rules that disallow everything, for a file that cannot be fetched (RFC 9309 section 2.3.1.4)."""
        reason = failure.reason if failure.is_before_request else Reason.ROBOTS_UNREACHABLE
        return cls(agent, refused=(reason, f"robots.txt: {failure.message}"))

    def check(self, url: str) -> None:
        """Return if `url` may be requested.

        Raises:
            FetchFailure: it must not be.
        """
        if self.refused is not None:
            raise FetchFailure(*self.refused)
        if not self.allows(url):
            raise FetchFailure(Reason.ROBOTS_DISALLOWED, "robots.txt disallows it")

    def allows(self, url: str) -> bool:
        """Return whether the file allows `url`."""
        return self.parsed is None or bool(self.parsed.can_fetch(url, self.agent))

    @property
    def crawl_delay_s(self) -> float:
        """The Crawl-delay of our group, seconds between two requests; 0 without one."""
        delay = self.parsed.crawl_delay(self.agent) if self.parsed is not None else None
        return delay if delay and math.isfinite(delay) and delay > 0 else 0.0


def parse_robots(body: bytes, agent: str) -> RobotRules:
    """Return the rules in a robots.txt file; lines that do not parse are skipped, so any bytes are accepted."""
    if len(body) > MAX_BYTES:
        body = body[:MAX_BYTES].rpartition(b"\n")[0]  # half a line could allow or forbid the wrong thing
    text = _name_one_agent(body.decode("utf-8-sig", "replace").replace("\0", ""), agent)
    return RobotRules(agent, parsed=Protego.parse(text), size_bytes=len(body))


def _name_one_agent(text: str, agent: str) -> str:
    """Rewrite the user-agent lines to `agent`, `*`, or nothing (which still ends the group before).

    Protego takes a line for ours where it is part of our name, not where it adds a version to it; the RFC (section
    2.2.1) compares product tokens. And it copies every rule to every agent listed: 500 KiB can cost it a minute.
    """
    kept = {"*": "*", agent.lower(): agent}
    return _USER_AGENT_LINE.sub(lambda match: f"{match[1]} {kept.get(match[2].lower(), '#')}", text)


async def fetch_robots(client: Client, origin: str, config: FetchConfig) -> RobotRules:
    """Fetch the rules of `origin` ("https://example.com"), within one deadline for all redirects.

    Raises:
        FetchFailure: no usable response.
    """
    deadline_s = asyncio.get_running_loop().time() + config.timeout_s
    target = Target.parse(f"{origin}/robots.txt")
    for _ in range(MAX_REDIRECTS + 1):
        response = await client.get(
            target,
            budget_s=deadline_s - asyncio.get_running_loop().time(),
            max_bytes=MAX_BYTES,
            wants_body=lambda status, _: 200 <= status <= 299,
            truncate=True,
        )
        if not is_redirect(response.status):
            return _rules(response, config.agent)
        target = Target.parse(redirect_target(target.url, response.headers))
    return RobotRules(config.agent)  # section 2.3.1.2: as if there were no file


def _rules(response: Response, agent: str) -> RobotRules:
    if response.body is not None:
        with response.body as body:
            return parse_robots(body.read(), agent)
    if 400 <= response.status <= 499 and response.status != _TOO_MANY_REQUESTS:
        return RobotRules(agent)  # section 2.3.1.3: there is no file
    raise FetchFailure(
        Reason.ROBOTS_UNREACHABLE,
        f"HTTP status {response.status}",
        is_transient=response.status >= 400,
        retry_after_s=retry_after_s(response.headers.get("Retry-After"), datetime.now(UTC)),
    )


class RobotsCache:
    """The rules of the authorities seen last, bounded by the size of their files."""

    def __init__(self, max_bytes: int = 64 << 20) -> None:
        self._max_bytes = max_bytes
        self._size_bytes = 0
        self._rules: OrderedDict[str, tuple[RobotRules, float]] = OrderedDict()

    def get(self, origin: str, now_s: float) -> RobotRules | None:
        """Return the rules of `origin`, or None where they must be fetched (again)."""
        entry = self._rules.get(origin)
        if entry is None or entry[1] < now_s:
            return None
        self._rules.move_to_end(origin)
        return entry[0]

    def put(self, origin: str, rules: RobotRules, now_s: float) -> None:
        """Keep the rules of `origin` for as long as they may be kept."""
        self._forget(origin)
        lifetime_s = FAILURE_LIFETIME_S if rules.refused is not None else LIFETIME_S
        self._rules[origin] = (rules, now_s + lifetime_s)
        self._size_bytes += _cost(rules)
        while self._size_bytes > self._max_bytes and len(self._rules) > 1:
            self._forget(next(iter(self._rules)))

    def _forget(self, origin: str) -> None:
        entry = self._rules.pop(origin, None)
        if entry is not None:
            self._size_bytes -= _cost(entry[0])


def _cost(rules: RobotRules) -> int:
    """Return about what an entry takes: parsed rules are some four times the text."""
    return 512 + 4 * rules.size_bytes
