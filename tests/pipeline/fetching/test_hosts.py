"""The schedule of hosts, on a clock of its own: a simulation checks every start against the limits."""

from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.fetching.hosts import SHUT_S, HostLimits, HostSchedule


def schedule(
    *, concurrency: int = 2, interval_s: float = 0.0, failures: int = 3, alone: frozenset[str] = frozenset()
) -> HostSchedule[str]:
    limits = HostLimits(concurrency, interval_s, failures)
    return HostSchedule(lambda _: limits, 1, alone.__contains__)


def drain(queue: HostSchedule[str], now_s: float) -> list[str]:
    taken = []
    while (entry := queue.take(now_s)) is not None:
        taken.append(entry[1])
    return taken


def test_shares_of_processes() -> None:
    shared = HostLimits(concurrency=4, interval_s=0.1, failures=5).shared(3)
    assert (shared.concurrency, shared.interval_s) == (1, pytest.approx(0.3))
    assert HostLimits(concurrency=4, interval_s=0.1, failures=5).shared(16).concurrency == 1


def starts(queue: HostSchedule[str], until_s: float) -> list[float]:
    found, now_s = [], 0.0
    while (next_s := queue.next_start_s()) is not None and (now_s := max(now_s, next_s)) < until_s:
        if (entry := queue.take(now_s)) is not None:
            found.append(now_s)
            queue.release(entry[0])
    return found


def test_limits_are_whole_in_the_process_that_owns_the_host_and_divided_in_others() -> None:
    for is_planned, interval_s in ((True, 0.5), (False, 2.0)):
        queue: HostSchedule[str] = HostSchedule(lambda _: HostLimits(4, 0.5, 9), 4, lambda _: False)
        for job in "abc":
            queue.add("host", job, is_planned=is_planned)
        assert starts(queue, 10) == pytest.approx([0, interval_s, 2 * interval_s])
        queue.add("host", "d")
        queue.set_crawl_delay("host", 1.0)
        queue.add("host", "e")
        later = starts(queue, 100)
        assert later[1] - later[0] == pytest.approx(1.0)


def test_a_host_that_gets_too_many_requests_is_asked_half_as_often_up_to_a_limit() -> None:
    queue = schedule(interval_s=1.0, concurrency=9)
    for job in "abcdef":
        queue.add("host", job)
    queue.slow_down("host")
    assert starts(queue, 5) == pytest.approx([0, 2, 4])
    for _ in range(20):
        queue.slow_down("host")
    assert queue.take(6) is not None
    assert queue.next_start_s() == pytest.approx(6 + 64)


def test_a_host_with_many_jobs_leaves_room_for_others() -> None:
    queue = schedule(concurrency=2)
    for number in range(100):
        queue.add("big", f"big{number}")
    queue.add("small", "small0")
    assert drain(queue, 0) == ["big0", "small0", "big1"]
    queue.release("big")
    assert drain(queue, 0) == ["big2"]


def test_the_host_that_needs_most_time_comes_first_among_those_that_may_be_asked() -> None:
    queue: HostSchedule[str] = HostSchedule(
        lambda name: HostLimits(9, 5.0 if name == "slow" else 1.0, 9), 1, lambda _: False
    )
    for number in range(3):
        queue.add(f"small{number}", f"small{number}")
    for number in range(4):
        queue.add("large", f"large{number}")
    for number in range(2):
        queue.add("slow", f"slow{number}")
    assert drain(queue, 0) == ["slow0", "large0", "small0", "small1", "small2"]
    assert queue.next_start_s() == 1
    assert drain(queue, 6) == ["slow1", "large1"]


def test_jobs_that_must_be_alone_are() -> None:
    queue = schedule(concurrency=3, alone=frozenset({"first", "second", "last"}))
    for job in ("first", "second", "c", "last", "e"):
        queue.add("host", job)
    assert drain(queue, 0) == ["first"]
    queue.release("host")
    assert drain(queue, 0) == ["second", "c"]
    queue.release("host")
    assert drain(queue, 0) == []
    queue.release("host")
    assert drain(queue, 0) == ["last", "e"]


def test_postponed_hosts_and_jobs_wait() -> None:
    queue = schedule()
    queue.add("a", "later", not_before_s=5)
    queue.add("a", "now")
    queue.add("b", "b")
    assert drain(queue, 1) == ["now", "b"]
    assert queue.next_start_s() == 5
    queue.postpone("a", 8)
    assert drain(queue, 7) == []
    assert queue.next_start_s() == 8
    assert drain(queue, 8) == ["later"]


def test_failures_in_a_row_shut_a_host_and_its_jobs_come_out_at_once() -> None:
    queue = schedule(concurrency=1, interval_s=100, failures=2)
    for job in "abcd":
        queue.add("host", job)
    assert drain(queue, 0) == ["a"]
    for is_failure in (True, False, True, True):
        queue.record("host", 1, is_failure=is_failure)
    queue.release("host")
    assert queue.is_shut("host", 1)
    for expected in "bcd":
        assert queue.take(1) == ("host", expected)
        queue.release("host")
    assert not queue.is_shut("host", 1 + SHUT_S)


def test_removed_jobs_do_not_start_and_idle_hosts_are_forgotten() -> None:
    queue = schedule()
    for job in "abc":
        queue.add("host", job)
    assert sorted(queue.remove(lambda job: job in "ab")) == ["a", "b"]
    assert drain(queue, 0) == ["c"]
    queue.forget_idle(0)
    queue.release("host")
    queue.forget_idle(0)
    assert queue.queued("host") == 0
    assert not queue.is_shut("host", 0)


@dataclass
class _Asked:
    host: str
    start_s: float
    end_s: float


@given(
    jobs=st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 3), st.floats(0, 5)), max_size=40),
    concurrency=st.integers(1, 3),
    interval_s=st.sampled_from([0.0, 0.5, 2.0]),
    slots=st.integers(1, 4),
)
def test_every_job_starts_once_within_the_limits(
    jobs: list[tuple[str, float, float]], concurrency: int, interval_s: float, slots: int
) -> None:
    queue: HostSchedule[tuple[int, float]] = HostSchedule(
        lambda _: HostLimits(concurrency, interval_s, 99), 1, lambda _: False
    )
    for number, (host, takes_s, not_before_s) in enumerate(jobs):
        queue.add(host, (number, takes_s), not_before_s)
    asked: dict[int, _Asked] = {}
    running: list[tuple[float, str]] = []
    now_s = 0.0
    while True:
        while len(running) < slots and (entry := queue.take(now_s)) is not None:
            host, (number, takes_s) = entry
            assert number not in asked
            asked[number] = _Asked(host, now_s, now_s + takes_s)
            running.append((now_s + takes_s, host))
        moments = [end_s for end_s, _ in running]
        if len(running) < slots and (next_s := queue.next_start_s()) is not None:
            moments.append(max(next_s, now_s))
        if not moments:
            break
        now_s = min(moments)
        for entry in [entry for entry in running if entry[0] <= now_s]:
            running.remove(entry)
            queue.release(entry[1])
    assert len(asked) == len(jobs)
    _check_limits(asked, jobs, concurrency, interval_s)


def _check_limits(
    asked: dict[int, _Asked], jobs: list[tuple[str, float, float]], concurrency: int, interval_s: float
) -> None:
    for number, (_, _, not_before_s) in enumerate(jobs):
        assert asked[number].start_s >= not_before_s
    for host in "abc":
        of_host = sorted((one for one in asked.values() if one.host == host), key=lambda one: one.start_s)
        for earlier, later in pairwise(of_host):
            assert later.start_s - earlier.start_s >= interval_s - 1e-9
        for one in of_host:
            at_once = [other for other in of_host if other.start_s <= one.start_s < other.end_s]
            assert len(at_once) <= concurrency
