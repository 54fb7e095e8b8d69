"""How long a fetch takes at least: the host that takes longest at its request rate, with any number of workers."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.config.fetch import FetchConfig
from pipeline.fetching.host_rules import HostRules

_SHOWN = 5
_BRIEF_FROM_S = 3600.0
_FASTER_INTERVAL_S = 0.02  # what is usual for an image CDN, see docs/fetching.md
_DAY_S = 86_400.0


@dataclass(frozen=True)
class HostTime:
    """A host, and what its limits make of its URLs."""

    host: str
    urls: int
    pairs: int
    interval_s: float
    time_s: float


@dataclass(frozen=True)
class Budget:
    """What `fetch.max_pairs_per_host` = `max_pairs` would save."""

    max_pairs: int
    time_s: float  # of the slowest host then
    lost_pairs: int  # at most: others may take their place


@dataclass(frozen=True)
class LowerBound:
    """The slowest hosts, slowest first, and what would make the fetch shorter."""

    hosts: tuple[HostTime, ...]
    budgets: tuple[Budget, ...]

    @property
    def time_s(self) -> float:
        return self.hosts[0].time_s if self.hosts else 0.0


def lower_bound(hosts: pa.Table, config: FetchConfig) -> LowerBound:
    """Return the bound of a plan from its hosts with most pairs (columns host, urls, pairs)."""
    rules = HostRules(config)
    times = []
    for host, urls, pairs in zip(*(hosts[name].to_pylist() for name in ("host", "urls", "pairs")), strict=True):
        limits = rules.limits(host)
        times.append(HostTime(host, urls, pairs, limits.interval_s, limits.time_s(urls)))
    times.sort(key=lambda one: (-one.time_s, one.host))
    return LowerBound(tuple(times), tuple(_budgets(times)))


def _budgets(times: Sequence[HostTime]) -> list[Budget]:
    """Return budgets, round numbers, that shorten the fetch to about a half and a tenth."""
    found: list[Budget] = []
    for share in (0.5, 0.1):
        if not times or not times[0].time_s:
            continue
        slowest = times[0]
        wanted = _rounded(slowest.pairs * share)
        # A host with several pairs of an image has fewer URLs than pairs.
        time_s = max(one.time_s * min(1.0, wanted / one.pairs) for one in times if one.pairs)
        lost = sum(max(0, one.pairs - wanted) for one in times)
        if lost and (not found or wanted < found[-1].max_pairs):
            found.append(Budget(wanted, time_s, lost))
    return found


def _rounded(number: float) -> int:
    """Round to one digit: 4,321 gives 4,000."""
    scale = 10 ** max(0, len(str(int(number))) - 1)
    return max(1, int(number) // scale * scale)


def describe_bound(bound: LowerBound, *, is_brief: bool) -> list[str]:
    """Say what the bound is, and what would lower it; brief: one line, and none where the fetch can be quick."""
    if not bound.hosts:
        return []
    slowest = bound.hosts[0]
    first = (
        f"fetch          at least {_duration(bound.time_s)}, with any number of workers: {slowest.host} has "
        f"{slowest.urls:,} URLs, {slowest.interval_s:g} s apart"
    )
    if is_brief:
        return [first] if bound.time_s >= _BRIEF_FROM_S else []
    lines = [first]
    for one in bound.hosts[1:_SHOWN]:
        lines.append(f"               {one.host}: {one.urls:,} URLs, {_duration(one.time_s)}")
    if bound.time_s < _BRIEF_FROM_S:
        return lines
    for budget in bound.budgets:
        lines.append(
            f"               fetch.max_pairs_per_host = {budget.max_pairs}: {_duration(budget.time_s)}, "
            f"{budget.lost_pairs:,} pairs less of the largest hosts"
        )
    if slowest.interval_s > _FASTER_INTERVAL_S:
        faster_s = max([slowest.urls * _FASTER_INTERVAL_S] + [one.time_s for one in bound.hosts[1:2]])
        lines.append(
            f'               [[fetch.hosts]] match = "{slowest.host}", interval_s = {_FASTER_INTERVAL_S:g}: '
            f"{_duration(faster_s)}, if it can bear that"
        )
    return lines


def _duration(time_s: float) -> str:
    if time_s >= 2 * _DAY_S:
        return f"{time_s / _DAY_S:,.1f} days"
    if time_s >= 3600:
        return f"{time_s / 3600:.1f} hours"
    return f"{time_s / 60:.1f} minutes" if time_s >= 60 else f"{time_s:.0f} s"
