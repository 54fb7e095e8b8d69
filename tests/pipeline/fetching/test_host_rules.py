"""The limits of a host: the first entry that sets a key, then the known image CDNs, then the general limits."""

import pytest
from pydantic import ValidationError

from pipeline.config.fetch import FetchConfig, HostConfig
from pipeline.fetching.host_rules import HostRules, image_cdns

HOSTS = (
    HostConfig(match="slow.example", interval_s=5.0),
    HostConfig(match="*.example", interval_s=1.0, concurrency=2, max_pairs=7),
    HostConfig(match="i.pinimg.com", concurrency=3),
)


def limits(host: str, **changes: object) -> tuple[float, int]:
    found = HostRules(FetchConfig(**changes)).limits(host)  # type: ignore[arg-type]
    return found.interval_s, found.concurrency


def test_each_key_comes_from_the_first_entry_that_sets_it():
    assert limits("slow.example", hosts=HOSTS) == (5.0, 2)
    assert limits("a.b.example", hosts=HOSTS) == (1.0, 2)
    assert limits("example", hosts=HOSTS) == (0.1, 4)
    assert limits("i.pinimg.com", hosts=HOSTS) == (0.02, 3)
    assert limits("notexample", hosts=HOSTS) == (0.1, 4)


def test_a_known_cdn_has_wider_limits_unless_the_general_ones_are_wider_or_the_config_says_otherwise():
    assert limits("d1.cloudfront.net") == (0.02, 16)
    assert limits("d1.cloudfront.net", host_interval_s=0.0, host_concurrency=50) == (0.0, 50)
    everything = (HostConfig(match="*", interval_s=0.3, concurrency=1),)
    assert {limits(entry.match.replace("*", "x"), hosts=everything) for entry in image_cdns()} == {(0.3, 1)}


def test_budgets():
    config = FetchConfig(hosts=HOSTS, max_pairs_per_host=100)
    assert [config.max_pairs(host) for host in ("a.example", "i.pinimg.com")] == [7, 100]
    assert FetchConfig().max_pairs("a.example") is None
    assert FetchConfig().host_budgets() == {}
    assert config.host_budgets() == {
        "max_pairs_per_host": 100,
        "hosts": [{"match": "*.example", "max_pairs": 7}],
    }


@pytest.mark.parametrize("match", ["", "*x", "a*b", "http://a.example", "A.example", "a.example/x", "*.*"])
def test_a_pattern_is_a_name_or_the_end_of_one(match):
    with pytest.raises(ValidationError):
        HostConfig(match=match)
