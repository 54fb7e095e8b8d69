"""The simulation of a fetch cut by host, in virtual time, on a set small enough to simulate every request."""

import pytest

from benchmarks.host_schedule import host_counts, measure
from pipeline.config.fetch import FetchConfig


@pytest.mark.parametrize(("workers", "budget"), [(1, None), (6, None), (1, 200), (3, 200), (6, 200)])
def test_a_fetch_takes_little_more_than_its_bound_and_no_process_waits(workers: int, budget: int | None) -> None:
    counts = host_counts(40_000, 2_000, 0.1)
    if budget is not None:
        counts = {host: min(count, budget) for host, count in counts.items()}
    config = FetchConfig(contact="mailto:test@example.org")
    found = measure(counts, workers, config, whole=True, window_urls=2_000)
    assert found.makespan_s <= 1.2 * found.bound_s
    assert found.robots_per_host <= 1.1
    assert found.idle < 0.1
