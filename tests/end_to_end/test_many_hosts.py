"""A small version of benchmarks/many_hosts.py: real processes, a server on this machine, many host names."""

from pathlib import Path

import pytest

from benchmarks.many_hosts import fetch, host_names

pytestmark = pytest.mark.slow


def test_processes_that_share_hundred_hosts_ask_each_for_robots_once_and_make_the_same_tree(tmp_path: Path) -> None:
    names = host_names(400, 100, 0.1)
    several, one = (fetch(tmp_path / str(processes), names, processes, 0.02) for processes in (2, 1))
    assert several["tree"] == one["tree"]
    assert len(several["tree"]) == 8
    for found in (several, one):
        assert found["robots_per_host"] == 1.0
        assert found["requests"] == 500
