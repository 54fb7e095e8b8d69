"""The cut of a fetch by host: every URL has one place, small hosts come as a whole, and no process waits alone."""

from collections import Counter, defaultdict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.fetching.host_cut import HostCut, cut_hosts
from pipeline.fetching.hosts import HostLimits


def limits(interval_s: float = 0.1):
    return lambda _: HostLimits(4, interval_s, 20)


def zipf(hosts: int, urls: int) -> dict[str, int]:
    weights = 1 / np.arange(1, hosts + 1)
    counts = np.maximum(1, weights / weights.sum() * urls).astype(int)
    return {f"host{n}.example": int(count) for n, count in enumerate(counts)}


@given(
    counts=st.lists(st.integers(1, 2_000), max_size=60),
    unlisted=st.integers(0, 5_000),
    workers=st.integers(1, 9),
    window_urls=st.sampled_from([10, 300, 50_000]),
    interval_s=st.sampled_from([0.0, 0.1]),
)
def test_every_host_has_one_group_and_the_cut_survives_storage(counts, unlisted, workers, window_urls, interval_s):
    largest = [(f"h{n}.example", count) for n, count in enumerate(counts)]
    cut = cut_hosts(largest, sum(counts) + unlisted, workers, limits(interval_s), window_urls=window_urls)
    assert 1 <= cut.groups <= workers
    assert set(cut.group_of) == {host for host, _ in largest}
    assert abs(sum(cut.shares) - 1) < 1e-9
    assert HostCut.from_table(cut.to_table()) == cut
    for host in [*cut.group_of, *(f"other{n}.example" for n in range(20))]:
        assert 0 <= cut.group(host) < cut.groups
        windows = {cut.window(host, window) for window in range(cut.windows)}
        assert windows == set(range(cut.windows)) if host in cut.sliced else len(windows) == 1


def times_s(counts: dict[str, int], cut: HostCut) -> list[float]:
    """Return how long each group takes: its slowest host, or its CPU time."""
    hosts = defaultdict(list)
    for host, count in counts.items():
        hosts[cut.group(host)].append(count)
    return [max(max(of_group) * 0.1, sum(of_group) * 0.006) for of_group in hosts.values()]


def test_the_whole_takes_little_longer_than_the_bound():
    counts = zipf(20_000, 1_000_000)
    largest = sorted(counts.items(), key=lambda item: -item[1])[:5_000]
    urls = sum(counts.values())
    for workers in (1, 2, 8, 40, 400):
        cut = cut_hosts(largest, urls, workers, limits())
        bound_s = max(max(counts.values()) * 0.1, urls * 0.006 / workers)
        assert max(times_s(counts, cut)) <= 1.2 * bound_s, workers


def test_where_nothing_paces_groups_are_of_one_size():
    counts = zipf(20_000, 1_000_000)
    cut = cut_hosts(list(counts.items())[:5_000], sum(counts.values()), 4, limits(0.0))
    urls = Counter()
    for host, count in counts.items():
        urls[cut.group(host)] += count
    assert max(urls.values()) < 1.1 * min(urls.values())


def test_small_builds_have_one_window():
    assert cut_hosts([("a.example", 500)], 100_000, 4, limits()).windows == 1
