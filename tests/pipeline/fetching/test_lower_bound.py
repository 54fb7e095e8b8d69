"""The lower bound of a fetch, and what it says would be saved."""

import pyarrow as pa

from pipeline.config.fetch import FetchConfig, HostConfig
from pipeline.fetching.lower_bound import describe_bound, lower_bound

HOSTS = pa.table(
    {
        "host": ["i.pinimg.com", "shop.example", "small.example"],
        "urls": [80_000_000, 40_000_000, 10],
        "pairs": [100_000_000, 40_000_000, 10],
    }
)


def test_the_slowest_host_counts_and_not_the_largest():
    bound = lower_bound(HOSTS, FetchConfig())
    assert [one.host for one in bound.hosts] == ["shop.example", "i.pinimg.com", "small.example"]
    assert bound.time_s == 40_000_000 * 0.1
    slow = FetchConfig(hosts=(HostConfig(match="small.example", interval_s=3_000.0),), host_interval_s=0.0)
    assert lower_bound(HOSTS, slow).time_s == 30_000
    assert lower_bound(HOSTS.slice(0, 0), FetchConfig()).time_s == 0


def test_a_budget_saves_what_it_says():
    bound = lower_bound(HOSTS, FetchConfig())
    for budget in bound.budgets:
        limited = [min(pairs, budget.max_pairs) for pairs in HOSTS["pairs"].to_pylist()]
        assert budget.lost_pairs == 140_000_010 - sum(limited)
        urls = [
            url_count * kept / pairs
            for url_count, kept, pairs in zip(
                HOSTS["urls"].to_pylist(), limited, HOSTS["pairs"].to_pylist(), strict=True
            )
        ]
        assert abs(budget.time_s - max(urls[0] * 0.02, urls[1] * 0.1)) < 1e-3 * budget.time_s
    assert [budget.max_pairs for budget in bound.budgets] == [20_000_000, 4_000_000]


def test_what_is_printed():
    lines = describe_bound(lower_bound(HOSTS, FetchConfig()), is_brief=False)
    assert "at least 46.3 days" in lines[0]
    assert "shop.example has 40,000,000 URLs, 0.1 s apart" in lines[0]
    assert any("fetch.max_pairs_per_host = 4000000: 4.6 days, 132,000,000 pairs less" in line for line in lines)
    assert any('match = "shop.example", interval_s = 0.02: 18.5 days' in line for line in lines)
    assert describe_bound(lower_bound(HOSTS, FetchConfig()), is_brief=True) == lines[:1]
    small = lower_bound(HOSTS.slice(2), FetchConfig())
    assert describe_bound(small, is_brief=True) == []
    assert len(describe_bound(small, is_brief=False)) == 1
