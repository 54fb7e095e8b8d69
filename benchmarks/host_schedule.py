"""Simulate a fetch cut by host, in virtual time, with the scheduler, robots cache and cut that fetches use.

    python -m benchmarks.host_schedule [--urls 100000000] [--hosts 2000000] [--largest 0.1] [--workers 1 8 40 400]
        [--budgets 0 200000 20000] [--whole]

The hosts: the shares of the 100 largest of Conceptual Captions (validation; Zipf's where WIT_SHARED_DATA is absent),
the largest set to `--largest`, and Zipf's behind them. A budget is `fetch.max_pairs_per_host`, 0 none: without, the
largest host decides and few processes have work; with one, many have. A process has one CPU, 6 ms for each image, 128
slots, and a response takes 0.3 s.

What a group takes is, by arithmetic, the longer of its slowest host and its CPU time. That is checked by simulation:
every request of the first windows of the slowest groups and of some others, two windows at a time; with `--whole`,
every request of all windows of all groups, and nothing is computed. `stretch` is the simulated time over the computed
one. `idle` is the share of the time of all processes that have a group in which their CPU waits, beyond what the
slowest host makes unavoidable. Robots: requests for robots.txt in the simulated windows, per host in them.
"""

import argparse
import gzip
import heapq
import os
import random
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from pipeline.config.fetch import FetchConfig
from pipeline.fetching.host_cut import CPU_S_PER_URL, WINDOW_URLS, HostCut, cut_hosts
from pipeline.fetching.host_rules import HostRules
from pipeline.fetching.hosts import HostSchedule
from pipeline.fetching.robots import RobotsCache
from pipeline.fetching.robots_file import parse_robots
from pipeline.stages.plan import MOST_HOSTS
from pipeline.web.urls import normalize_url

SHARED = Path(os.environ.get("WIT_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
LATENCY_S = 0.3
ROBOTS_BYTES = 1_500
WINDOWS_SIMULATED = 3
GROUPS_SIMULATED = 2
_DAY_S = 86_400.0


def host_counts(urls: int, hosts: int, largest: float) -> dict[str, int]:
    """Return host -> URLs."""
    head = _head()
    weights = 1 / np.arange(1, hosts + 1) ** 1.0
    weights[: len(head)] = np.array(head) / head[-1] * weights[len(head) - 1] if head else weights[: len(head)]
    weights[0] = weights[1:].sum() * largest / (1 - largest)
    counts = np.maximum(1, np.round(weights / weights.sum() * urls)).astype(int)
    return {f"host{number}.example": int(count) for number, count in enumerate(counts)}


def _head() -> list[float]:
    path = SHARED / "text" / "cc3m_validation.tsv.gz"
    if not path.exists():
        return []
    with gzip.open(path, "rt", encoding="utf-8") as file:
        urls = [line.rstrip("\n").partition("\t")[2] for line in file]
    found = Counter((normalize_url(url) or "//").split("/")[2] for url in urls)
    return [float(count) for _, count in found.most_common(100)]


@dataclass
class Simulated:
    """What the simulation of some windows of a group gave."""

    time_s: float = 0.0
    cpu_s: float = 0.0
    robots: int = 0
    hosts: set[str] = field(default_factory=set)


def simulate(windows: list[dict[str, int]], config: FetchConfig) -> Simulated:
    """Run the requests of windows (host -> URLs) through the real schedule, two windows at a time."""
    cache, found, now_s = RobotsCache(), Simulated(), 0.0
    rules = parse_robots(b"#" * (ROBOTS_BYTES - 1) + b"\n", config.agent, frozenset())
    asked: set[str] = set()

    def alone(job: tuple[int, str]) -> bool:
        return cache.get(job[1], now_s) is None

    limits = HostRules(config).limits("host0.example")  # no host here is an image CDN, so all have the same
    schedule: HostSchedule[tuple[int, str]] = HostSchedule(lambda _: limits, 1, alone)
    left = [sum(window.values()) for window in windows]
    begun, active, cpu_free_s = 0, 0, 0.0
    events: list[tuple[float, int, str, tuple[int, str]]] = []
    order = 0

    def begin() -> None:
        nonlocal begun
        jobs = [host for host, count in windows[begun].items() for _ in range(count)]
        random.Random(begun).shuffle(jobs)
        for host in jobs:
            schedule.add(host, (begun, host))
        begun += 1

    begin()
    if len(windows) > 1:
        begin()
    while any(left):
        while active < config.concurrency and (taken := schedule.take(now_s)) is not None:
            host, job = taken
            active += 1
            kind = "image"
            if cache.get(host, now_s) is None:
                kind = "robots"
                found.robots += 1
                asked.add(host)
            heapq.heappush(events, (now_s + LATENCY_S, order, kind, job))
            order += 1
        next_s = schedule.next_start_s() if active < config.concurrency else None
        moments = [events[0][0]] if events else []
        moments += [max(next_s, now_s)] if next_s is not None else []
        now_s = min(moments)
        while events and events[0][0] <= now_s:
            _, _, kind, job = heapq.heappop(events)
            if kind == "decoded":
                active -= 1
                left[job[0]] -= 1
                if left[job[0]] == 0 and begun < len(windows):
                    begin()
                continue
            schedule.release(job[1])
            if kind == "robots":
                active -= 1
                cache.put(job[1], rules, now_s)
                schedule.add(job[1], job)
                continue
            cpu_free_s = max(cpu_free_s, now_s) + CPU_S_PER_URL
            found.cpu_s += CPU_S_PER_URL
            heapq.heappush(events, (cpu_free_s, order, "decoded", job))
            order += 1
    found.time_s, found.hosts = now_s, asked
    return found


def windows_of(group: dict[str, int], cut: HostCut, count: int) -> list[dict[str, int]]:
    """Return the first windows of a group: host -> URLs."""
    windows: list[dict[str, int]] = [{} for _ in range(count)]
    for host, urls in group.items():
        if host in cut.sliced:
            # a part is a random sample, so every window has its share; what is left over goes to a few of them
            whole, rest = divmod(urls, cut.windows)
            for number in range(count):
                share = whole + ((zlib.crc32(host.encode()) + number) % cut.windows < rest)
                if share:
                    windows[number][host] = share
        elif (number := cut.window(host, 0)) < count:
            windows[number][host] = urls
    return windows


@dataclass(frozen=True)
class Figures:
    """What a fetch with some number of processes takes; times in seconds."""

    groups: int
    windows: int
    bound_s: float
    makespan_s: float
    stretch: float
    idle: float
    robots_per_host: float


def measure(
    counts: dict[str, int], workers: int, config: FetchConfig, *, whole: bool = False, window_urls: int = WINDOW_URLS
) -> Figures:
    """Simulate a fetch of hosts (host -> URLs); `whole`: all of it."""
    urls = sum(counts.values())
    largest = sorted(counts.items(), key=lambda item: -item[1])[:MOST_HOSTS]
    limits = HostRules(config).limits(largest[0][0])  # no host here is an image CDN, so all have the same
    slowest_s = limits.time_s(largest[0][1])
    cut = cut_hosts(largest, urls, workers, lambda _: limits, window_urls=window_urls)
    groups = groups_of(counts, cut)
    times_s = {
        number: max(limits.time_s(max(group.values())), sum(group.values()) * CPU_S_PER_URL)
        for number, group in groups.items()
    }
    by_time = sorted(groups, key=lambda number: -times_s[number])
    others = random.Random(1).sample(by_time, min(GROUPS_SIMULATED, len(by_time)))
    chosen = sorted(groups if whole else {*by_time[:GROUPS_SIMULATED], *others})
    stretches, robots, asked = [1.0], 0, 0
    for number in chosen:
        count = cut.windows if whole else min(WINDOWS_SIMULATED, cut.windows)
        windows = windows_of(groups[number], cut, count)
        found = simulate(windows, config)
        robots, asked = robots + found.robots, asked + len(found.hosts)
        if whole:
            stretches.append(found.time_s / times_s[number])
            times_s[number] = found.time_s
            continue
        cpu_s = sum(sum(window.values()) for window in windows) * CPU_S_PER_URL
        of_hosts = sum(map(Counter, windows), Counter[str]())
        paced_s = limits.time_s(max(of_hosts.values()))
        stretches.append(found.time_s / max(cpu_s, paced_s, 1.0))
    stretch = max(stretches)
    computed = 1.0 if whole else stretch
    makespan_s = max(times_s.values()) * computed
    # RFC 9309: a robots.txt is not used for longer than a day
    again = 0.0 if whole else len(cut.sliced) * int(makespan_s / _DAY_S) / len(counts)
    return Figures(
        cut.groups,
        cut.windows,
        max(slowest_s, urls * CPU_S_PER_URL / workers),
        makespan_s,
        stretch,
        1 - max(slowest_s, urls * CPU_S_PER_URL) / (sum(times_s.values()) * computed),
        robots / max(asked, 1) + again,
    )


def groups_of(counts: dict[str, int], cut: HostCut) -> dict[int, dict[str, int]]:
    """Return the hosts of each group: group -> host -> URLs."""
    groups: dict[int, dict[str, int]] = defaultdict(dict)
    for host, count in counts.items():
        groups[cut.group(host)][host] = count
    return groups


def main() -> None:
    """Print a table with a row for each budget and number of processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--urls", type=int, default=100_000_000)
    parser.add_argument("--hosts", type=int, default=2_000_000)
    parser.add_argument("--largest", type=float, default=0.1)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 40, 400])
    parser.add_argument("--budgets", type=int, nargs="+", default=[0, 200_000, 20_000])
    parser.add_argument("--whole", action="store_true")
    arguments = parser.parse_args()
    config = FetchConfig(contact="mailto:benchmark@example.org")
    every = host_counts(arguments.urls, arguments.hosts, arguments.largest)
    print(f"{sum(every.values()):,} URLs, {len(every):,} hosts, the largest with {arguments.largest:.1%}")
    console = Console(width=120)
    for budget in arguments.budgets:
        counts = {host: min(count, budget) for host, count in every.items()} if budget else every
        columns = ("processes", "groups", "windows", "bound", "makespan", "ratio", "stretch", "idle", "robots / hosts")
        table = Table(*columns, title=f"budget {budget:,}: {sum(counts.values()):,} URLs" if budget else "no budget")
        for workers in arguments.workers:
            found = measure(counts, workers, config, whole=arguments.whole)
            table.add_row(
                *map(str, (workers, found.groups, found.windows)),
                f"{found.bound_s / 3600:.2f} h",
                f"{found.makespan_s / 3600:.2f} h",
                f"{found.makespan_s / found.bound_s:.2f}",
                f"{found.stretch:.2f}",
                f"{max(0.0, found.idle):.1%}",
                f"{found.robots_per_host:.2f}",
            )
        console.print(table)


if __name__ == "__main__":
    main()
