"""What the fetch loop works on: parts that are being fetched, and the URLs on their way."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field

from pipeline.config.fetch import FetchConfig
from pipeline.fetching.addresses import Target
from pipeline.fetching.client import Headers
from pipeline.fetching.consent import ConsentRecord
from pipeline.fetching.host_rules import HostRules
from pipeline.fetching.outcome import FetchFailure, Outcome
from pipeline.fetching.part import Part, PartStats
from pipeline.fetching.responses import redirect_target
from pipeline.records import Reason
from pipeline.web.urls import normalize_url

_TICK_S = 0.05
PART_GRACE_S = 3600.0  # see `part_limit_s`


@dataclass(slots=True, eq=False)
class Run:
    """One part being fetched; `done` is resolved with the last of its URLs.

    `held` are outcomes without an HTTP response, which stand once a response comes from anywhere.
    """

    part: Part
    ends_at_s: float
    done: "asyncio.Future[None]"
    held: list[tuple["Job", Outcome]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Job:
    """A URL on its way. `left_s` is what remains of its deadline, for its requests and the waits between retries."""

    run: Run
    number: int
    target: Target
    left_s: float
    redirects: int = 0
    retries: int = 0
    is_looked_up: bool = False
    consent: ConsentRecord = field(default_factory=ConsentRecord)

    def redirect(self, headers: Headers, most: int) -> None:
        """Go on to where a redirect leads. Raises: FetchFailure: nowhere, or it is one more than `most`."""
        if self.redirects == most:
            raise FetchFailure(Reason.TOO_MANY_REDIRECTS, f"more than {most}")
        self.redirects += 1
        self.target = Target.parse(redirect_target(self.target.url, headers))
        self.is_looked_up = False


def part_limit_s(targets: list[Target], config: FetchConfig) -> float:
    """Return after how many seconds a part ends the URLs whose turn has not come.

    An hour, and what the part would take if every URL took its whole deadline, and twice what pacing takes for the
    slowest host: only hosts that slow us down themselves (crawl delays, slow responses for many URLs) reach it.
    """
    rules = HostRules(config)
    urls = Counter(target.host for target in targets)
    pacing_s = 2 * max((rules.limits(host).time_s(count) for host, count in urls.items()), default=0.0)
    return PART_GRACE_S + len(targets) * config.timeout_s / config.concurrency + pacing_s


def target_or_failure(url: str) -> Target | FetchFailure:
    """Take a URL apart, or say why that is not possible."""
    normal = normalize_url(url)
    if normal is not None:
        return Target.parse(normal)
    reason = Reason.BAD_URL if url.lower().startswith(("http:", "https:")) else Reason.BAD_SCHEME
    return FetchFailure(reason, "not an http(s) URL")


async def watch_stalls(stats: PartStats) -> None:
    """Measure how late the event loop wakes a task that only sleeps."""
    loop = asyncio.get_running_loop()
    while True:
        due_s = loop.time() + _TICK_S
        await asyncio.sleep(_TICK_S)
        stats.longest_stall_s = max(stats.longest_stall_s, loop.time() - due_s)
