"""When each host may get its next request: concurrency, pacing and a circuit breaker per host.

A host is a host name, regardless of scheme and port. The limits of a host hold as they are in the process that owns it,
which alone has planned URLs of it; other processes come to it by redirects, with limits divided among all of them. A
job waits here and not in one of the request slots, so a slow host never holds up others.
No clock and no I/O: every time is given, in seconds on one monotonic clock.
"""

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, TypeVar

SHUT_S = 600.0  # how long the circuit breaker of a host that keeps failing stays open

_MOST_SLOWED = 64.0

Job = TypeVar("Job")


@dataclass(frozen=True, slots=True)
class HostLimits:
    """Request limits for one host."""

    concurrency: int
    interval_s: float
    failures: int

    def shared(self, workers: int) -> "HostLimits":
        """Divide the limits among `workers` processes; each keeps at least one request in flight."""
        return HostLimits(max(1, self.concurrency // workers), self.interval_s * workers, self.failures)

    def time_s(self, urls: int) -> float:
        """Return how long this many requests take at least."""
        return urls * self.interval_s


@dataclass(slots=True)
class _Host(Generic[Job]):
    limits: HostLimits
    is_owned: bool = False
    slowed: float = 1.0
    queue: list[tuple[float, int, Job]] = field(default_factory=list)  # heap of (not before, order of arrival, job)
    active: int = 0
    next_start_s: float = 0.0
    crawl_delay_s: float = 0.0  # of all processes together
    consecutive_failures: int = 0
    shut_until_s: float = 0.0
    offered_at_s: float | None = None  # when its one live entry in the schedule's heap is due


class HostSchedule(Generic[Job]):
    """The queues of all hosts. `must_be_alone` names jobs that start only while nothing else of their host runs.

    The queue called `unpaced` is not a host: its jobs start at once.
    """

    def __init__(
        self,
        limits_of: Callable[[str], HostLimits],
        workers: int,
        must_be_alone: Callable[[Job], bool],
        unpaced: str | None = None,
    ) -> None:
        self._limits_of = limits_of
        self._unpaced = unpaced
        self._workers = workers
        self._must_be_alone = must_be_alone
        self._hosts: dict[str, _Host[Job]] = {}
        self._offers: list[tuple[float, int, str]] = []  # (when due, order, host)
        self._ready: list[tuple[float, int, float, str]] = []  # due ones: (minus the time its queue takes, order, ...)
        self._order = count()

    def add(self, name: str, job: Job, not_before_s: float = 0.0, *, is_planned: bool = True) -> None:
        """Queue a job for a host; jobs that may start at the same time start in the order they came.

        `is_planned`: the job is there because this process owns the host, and not by a redirect.
        """
        host = self._host(name)
        if is_planned and not host.is_owned:
            host.is_owned, host.limits = True, self._limits_of(name)
        heapq.heappush(host.queue, (not_before_s, next(self._order), job))
        self._offer(name, host)

    def take(self, now_s: float) -> tuple[str, Job] | None:
        """Start the next job that may start, or return None. `release` must follow.

        Of the hosts that may be asked now, the one that needs most time for its queue comes first: it decides when
        everything is done, and would fall behind if it waited for thousands of others.
        """
        while self._offers and self._offers[0][0] <= now_s:
            due_s, order, name = heapq.heappop(self._offers)
            host = self._hosts.get(name)
            if host is not None and host.offered_at_s == due_s:
                heapq.heappush(self._ready, (-len(host.queue) * self._interval_s(host), order, due_s, name))
        while self._ready:
            _, _, due_s, name = heapq.heappop(self._ready)
            host = self._hosts.get(name)
            if host is None or host.offered_at_s != due_s:
                continue
            host.offered_at_s = None
            if not self._may_start(name, host):
                continue
            if self._due_s(host) <= now_s:
                return name, self._start(name, host, now_s)
            self._offer(name, host)
        return None

    def next_start_s(self) -> float | None:
        """Return when `take` should be called next if nothing else happens, or None until a release or an add."""
        moments = [self._ready[0][2]] if self._ready else []
        moments += [self._offers[0][0]] if self._offers else []
        return min(moments, default=None)

    def release(self, name: str) -> None:
        """A job of a host has ended its request."""
        host = self._hosts[name]
        host.active -= 1
        self._offer(name, host)

    def queued(self, name: str) -> int:
        """Return how many jobs wait for a host."""
        host = self._hosts.get(name)
        return len(host.queue) if host is not None else 0

    def remove(self, is_removed: Callable[[Job], bool]) -> Iterable[Job]:
        """Take jobs out of all queues and return them."""
        removed = []
        for host in self._hosts.values():
            removed += [job for _, _, job in host.queue if is_removed(job)]
            host.queue = [entry for entry in host.queue if not is_removed(entry[2])]
            heapq.heapify(host.queue)
        return removed

    def set_crawl_delay(self, name: str, delay_s: float) -> None:
        """Keep at least `delay_s` between two requests of all processes together to a host."""
        host = self._hosts[name]
        if delay_s <= host.crawl_delay_s:
            return
        before_s = self._interval_s(host)
        host.crawl_delay_s = delay_s
        host.next_start_s += self._interval_s(host) - before_s

    def slow_down(self, name: str) -> None:
        """Double the interval of a host that says that it gets too many requests."""
        host = self._hosts[name]
        host.slowed = min(2 * host.slowed, _MOST_SLOWED)

    def postpone(self, name: str, until_s: float) -> None:
        """Start nothing more of a host before `until_s`."""
        self._hosts[name].next_start_s = max(self._hosts[name].next_start_s, until_s)

    def shut(self, name: str, until_s: float) -> None:
        """Open the circuit breaker until `until_s`; queued jobs become ready at once for the caller to end."""
        host = self._host(name)  # it can be forgotten before its last response is understood
        host.shut_until_s = max(host.shut_until_s, until_s)
        self._offer(name, host)

    def is_shut(self, name: str, now_s: float) -> bool:
        """Return whether the circuit breaker of a host is open."""
        host = self._hosts.get(name)
        return host is not None and host.shut_until_s > now_s

    def record(self, name: str, now_s: float, *, is_failure: bool) -> None:
        """Count a request; `limits.failures` failures in a row open the circuit breaker."""
        host = self._hosts[name]
        host.consecutive_failures = host.consecutive_failures + 1 if is_failure else 0
        if host.consecutive_failures >= host.limits.failures:
            host.consecutive_failures = 0
            self.shut(name, now_s + SHUT_S)

    def reopen(self) -> None:
        """Close all circuit breakers, and forget the failures that lead to them."""
        for name, host in self._hosts.items():
            host.shut_until_s, host.consecutive_failures = 0.0, 0
            self._offer(name, host)

    def forget_idle(self, now_s: float) -> None:
        """Drop the hosts with no queue and no state to keep."""
        for name, host in list(self._hosts.items()):
            if not host.queue and not host.active and max(host.next_start_s, host.shut_until_s) <= now_s:
                del self._hosts[name]

    def _host(self, name: str) -> _Host[Job]:
        host = self._hosts.get(name)
        if host is None:
            host = self._hosts[name] = _Host(self._limits_of(name).shared(self._workers))
        return host

    def _interval_s(self, host: _Host[Job]) -> float:
        crawl_delay_s = host.crawl_delay_s * (1 if host.is_owned else self._workers)
        return max(host.limits.interval_s, crawl_delay_s) * host.slowed

    def _offer(self, name: str, host: _Host[Job]) -> None:
        if not self._may_start(name, host):
            return
        due_s = self._due_s(host)
        if host.offered_at_s is None or due_s < host.offered_at_s:
            host.offered_at_s = due_s
            heapq.heappush(self._offers, (due_s, next(self._order), name))

    def _may_start(self, name: str, host: _Host[Job]) -> bool:
        if name == self._unpaced or not host.queue:
            return bool(host.queue)
        limit = 1 if self._must_be_alone(host.queue[0][2]) else host.limits.concurrency
        return host.active < limit

    def _due_s(self, host: _Host[Job]) -> float:
        return max(host.queue[0][0], host.next_start_s) if host.shut_until_s <= host.next_start_s else 0.0

    def _start(self, name: str, host: _Host[Job], now_s: float) -> Job:
        job = heapq.heappop(host.queue)[2]
        host.active += 1
        if host.shut_until_s <= now_s and name != self._unpaced:
            host.next_start_s = now_s + self._interval_s(host)
        self._offer(name, host)
        return job
