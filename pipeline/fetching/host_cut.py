"""Which process fetches which hosts, and when: the cut of a fetch by host.

Hosts are put into groups, one for each process at most, and a group is fetched by one process at a time. So limits of a
host hold exactly, and its robots.txt is fetched once. Groups are equal in CPU time where that bounds the fetch. Where
the slowest host does, hosts that take long come together, so that few processes wait and none waits alone for long.

A group is fetched in windows, one after the other. A large host is cut by the windows of parts, so all its URLs of a
window of parts come in that window; a small one comes as a whole in a window that a hash of its name decides.
"""

import json
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import pyarrow as pa

from pipeline.fetching.hosts import HostLimits

CPU_S_PER_URL = 0.006
"""Of a process, with decoding: an estimate for web-sized photos; dead links take less. It decides only how many hosts
share a group."""

WINDOW_URLS = 50_000
"""Of a group in one window: what one process holds in its journal, some 1.2 GB of images."""

_FILL = 0.95  # of the time of a group's slowest host that its CPU time may take
_SMALL_SHARE = 0.25  # of the time of a window that a host may take to come as a whole
_HASHES = 1 << 32


@dataclass(frozen=True)
class HostCut:
    """Where each host belongs. `groups` and `windows` are numbers of them."""

    groups: int
    windows: int
    group_of: dict[str, int]  # of the largest hosts
    sliced: frozenset[str]  # hosts that are cut by the windows of parts
    shares: tuple[float, ...]  # of the other hosts that each group gets; they add up to 1

    def group(self, host: str) -> int:
        """Return the group of a host."""
        known = self.group_of.get(host)
        return self._by_hash(host) if known is None else known

    def _by_hash(self, host: str) -> int:
        return min(bisect_right(self._edges, zlib.crc32(host.encode()) / _HASHES), self.groups - 1)

    @cached_property
    def _edges(self) -> list[float]:
        return list(accumulate(self.shares))

    def window(self, host: str, window_of_part: int) -> int:
        """Return the window in which a URL is fetched; `window_of_part` is that of its part."""
        if host in self.sliced:
            return window_of_part
        return zlib.crc32(b"window " + host.encode()) % self.windows

    def to_table(self) -> pa.Table:
        """Return the cut as a table, for workers and for the next run."""
        facts = {"groups": self.groups, "windows": self.windows, "shares": self.shares}
        columns = {
            "host": pa.array(list(self.group_of), pa.string()),
            "group": pa.array(list(self.group_of.values()), pa.int32()),
            "sliced": pa.array([host in self.sliced for host in self.group_of], pa.bool_()),
        }
        return pa.table(columns).replace_schema_metadata({"cut": json.dumps(facts)})

    @classmethod
    def from_table(cls, table: pa.Table) -> "HostCut":
        """Read what `to_table` made."""
        facts = json.loads(table.schema.metadata[b"cut"])
        hosts = table["host"].to_pylist()
        group_of = dict(zip(hosts, table["group"].to_pylist(), strict=True))
        sliced = frozenset(host for host, one in zip(hosts, table["sliced"].to_pylist(), strict=True) if one)
        return cls(facts["groups"], facts["windows"], group_of, sliced, tuple(facts["shares"]))


@dataclass(slots=True)
class _Group:
    capacity_s: float
    cpu_s: float = 0.0

    @property
    def free_s(self) -> float:
        return max(0.0, self.capacity_s - self.cpu_s)


def cut_hosts(
    largest: Iterable[tuple[str, int]],
    urls: int,
    workers: int,
    limits_of: Callable[[str], HostLimits],
    *,
    cpu_s_per_url: float = CPU_S_PER_URL,
    window_urls: int = WINDOW_URLS,
) -> HostCut:
    """Return the cut of `urls` URLs for `workers` processes; `largest` are the hosts with most URLs, with how many."""
    hosts = sorted(((limits_of(host).time_s(count), count, host) for host, count in largest), reverse=True)
    fair_s = urls * cpu_s_per_url / workers
    groups: list[_Group] = []
    group_of: dict[str, int] = {}
    for time_s, count, host in hosts:
        cpu_s = count * cpu_s_per_url
        at = _place(groups, workers, cpu_s, max(fair_s, _FILL * time_s))
        groups[at].cpu_s += cpu_s
        group_of[host] = at
    others_s = urls * cpu_s_per_url - sum(group.cpu_s for group in groups)
    while not groups or (len(groups) < workers and sum(group.free_s for group in groups) < others_s):
        groups.append(_Group(fair_s))
    windows = max(1, round(max(1.0, urls / (len(groups) * window_urls))))
    window_s = urls * cpu_s_per_url / (len(groups) * windows)
    sliced = frozenset(host for time_s, _, host in hosts if windows > 1 and time_s > _SMALL_SHARE * window_s)
    return HostCut(len(groups), windows, group_of, sliced, _shares(groups, others_s))


def _place(groups: list[_Group], workers: int, cpu_s: float, capacity_s: float) -> int:
    """Return the group for the next host, hosts that take longest first: the last one, until it is full."""
    if groups and groups[-1].free_s >= cpu_s:
        return len(groups) - 1
    if len(groups) < workers:
        groups.append(_Group(capacity_s))
        return len(groups) - 1
    return min(range(len(groups)), key=lambda n: groups[n].cpu_s - groups[n].capacity_s)


def _shares(groups: Sequence[_Group], others_s: float) -> tuple[float, ...]:
    free_s = sum(group.free_s for group in groups)
    if free_s <= 0:
        return tuple(1 / len(groups) for _ in groups)
    return tuple(group.free_s / free_s for group in groups)
