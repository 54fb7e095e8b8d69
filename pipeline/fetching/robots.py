"""Fetch and keep the robots.txt files of the hosts (RFC 9309); robots_file.py reads them."""

import asyncio
import hashlib
from collections import OrderedDict
from dataclasses import replace
from datetime import UTC, datetime

from pipeline.config.fetch import FetchConfig
from pipeline.consent.ai_crawlers import product_tokens
from pipeline.fetching.addresses import Target
from pipeline.fetching.client import Client, Response
from pipeline.fetching.consent import check_page, check_wall
from pipeline.fetching.outcome import FetchFailure
from pipeline.fetching.responses import is_redirect, redirect_target, retry_after_s
from pipeline.fetching.robots_file import LARGE_BYTES, MAX_BYTES, RobotRules, RobotsFetch, parse_robots
from pipeline.records import Reason

__all__ = ["MAX_BYTES", "RobotRules", "RobotsCache", "fetch_robots", "parse_robots"]

MAX_REDIRECTS = 5  # section 2.3.1.2
LIFETIME_S = 24 * 3600.0  # section 2.4
FAILURE_LIFETIME_S = 600.0

_TOO_MANY_REQUESTS = 429


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
            return await _rules(response, config)
        target = Target.parse(redirect_target(target.url, response.headers))
    return RobotRules(config.agent)  # section 2.3.1.2: as if there were no file


async def _rules(response: Response, config: FetchConfig) -> RobotRules:
    now, status = datetime.now(UTC), response.status
    body = None
    if response.body is not None:
        with response.body as file:
            body = file.read()
    check_wall(status, response.headers, config.consent)
    if body is not None:
        check_page(body, status, config.consent)
        also_obey = product_tokens(config.also_obey)
        if len(body) <= LARGE_BYTES:
            rules = parse_robots(body, config.agent, also_obey)
        else:
            rules = await asyncio.to_thread(parse_robots, body, config.agent, also_obey)
        return replace(rules, fetched=RobotsFetch(now, status, hashlib.sha256(body).hexdigest()))
    if 400 <= status <= 499 and status != _TOO_MANY_REQUESTS:
        return RobotRules(config.agent, fetched=RobotsFetch(now, status, None))  # section 2.3.1.3: there is no file
    raise FetchFailure(
        Reason.ROBOTS_UNREACHABLE,
        f"HTTP status {status}",
        http_status=status,
        is_transient=status >= 400,
        retry_after_s=retry_after_s(response.headers.get("Retry-After"), now),
    )


class RobotsCache:
    """The rules of the authorities seen last, bounded by the size of their files."""

    def __init__(self, max_bytes: int = 64 << 20) -> None:
        self._max_bytes = max_bytes
        self._size_bytes = 0
        self._rules: OrderedDict[str, tuple[RobotRules, float]] = OrderedDict()

    def get(self, origin: str, now_s: float) -> RobotRules | None:
        """Return the rules of `origin`, or None if they must be fetched (again)."""
        entry = self._rules.get(origin)
        if entry is None or entry[1] < now_s:
            return None
        self._rules.move_to_end(origin)
        return entry[0]

    def put(self, origin: str, rules: RobotRules, now_s: float) -> None:
        """Cache the rules of `origin` for as long as allowed."""
        self._forget(origin)
        lifetime_s = FAILURE_LIFETIME_S if rules.refused is not None else LIFETIME_S
        self._rules[origin] = (rules, now_s + lifetime_s)
        self._size_bytes += _cost(rules)
        while self._size_bytes > self._max_bytes and len(self._rules) > 1:
            self._forget(next(iter(self._rules)))

    def forget_failures(self) -> None:
        """Forget the files that could not be fetched."""
        for origin in [origin for origin, (rules, _) in self._rules.items() if rules.refused is not None]:
            self._forget(origin)

    def _forget(self, origin: str) -> None:
        entry = self._rules.pop(origin, None)
        if entry is not None:
            self._size_bytes -= _cost(entry[0])


def _cost(rules: RobotRules) -> int:
    """Return the approximate memory of an entry: parsed rules take some four times their text."""
    return 512 + 5 * (len(rules.text) + rules.usage.size_bytes)
