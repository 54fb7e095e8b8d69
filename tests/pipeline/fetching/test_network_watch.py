"""A machine without a network stops the fetch instead of using up its URLs; dead hosts do not."""

import asyncio
import math

import pytest
from support.fetching import config, fetch, fetch_urls, plan_of
from support.hostile_server import GOOD, HostileServer, Request, fixed, reset

from pipeline.errors import UserError
from pipeline.fetching import network_probe
from pipeline.fetching.fetcher import Fetcher
from pipeline.fetching.network_watch import NetworkWatch
from pipeline.fetching.outcome import FetchFailure
from pipeline.records import Reason

DEAD = [f"http://dead{number}.invalid/a.jpg" for number in range(40)]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_probe, "PAUSES_S", (0.05, 0.05, 0.05))


def test_without_any_network_the_fetch_stops() -> None:
    with pytest.raises(UserError, match=r"4\d requests to \d+ hosts in a row had no HTTP response.*no network"):
        fetch_urls(DEAD, concurrency=4)


def test_it_stops_in_every_part_and_goes_on_once_the_network_is_there(server: HostileServer) -> None:
    with Fetcher(config(concurrency=4, timeout_s=20)) as fetcher:
        for _ in range(2):
            with pytest.raises(UserError, match="no network"):
                fetch(fetcher, plan_of(DEAD))
        assert fetch(fetcher, plan_of([server.url("/ok.jpg")])).reasons == ["success"]


def test_the_rule_can_be_switched_off() -> None:
    assert fetch_urls(DEAD, max_silent_requests=0, timeout_s=20).reasons == ["dns_failed"] * 40


def test_a_few_dead_hosts_alone_are_dead() -> None:
    assert fetch_urls(DEAD[:3], timeout_s=20).reasons == ["dns_failed"] * 3


@pytest.mark.parametrize("concurrency", [1, 8, 128])
def test_many_dead_hosts_and_one_alive_are_what_they_are(server: HostileServer, concurrency: int) -> None:
    urls = [*DEAD, server.url("/ok.jpg"), *[url.replace("dead", "gone") for url in DEAD]]
    reasons = fetch_urls(urls, concurrency=concurrency, max_silent_requests=10_000, timeout_s=20).reasons
    assert reasons == ["dns_failed"] * 40 + ["success"] + ["dns_failed"] * 40


def test_a_host_known_to_respond_tells_dead_hosts_from_a_dead_network(server: HostileServer) -> None:
    with Fetcher(config(concurrency=1, max_silent_requests=10, timeout_s=20)) as fetcher:
        assert fetch(fetcher, plan_of([server.url("/ok.jpg")])).reasons == ["success"]
        assert fetch(fetcher, plan_of(DEAD)).reasons == ["dns_failed"] * 40


def test_a_closed_fetcher_leaves_no_task_and_looks_for_no_network_without_a_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = 0
    look = network_probe.NetworkProbe._is_there

    async def count_look(loop: network_probe.NetworkProbe) -> bool:
        nonlocal looks
        looks += 1
        assert fetcher._fetch_loop._runs
        return await look(loop)

    monkeypatch.setattr(network_probe.NetworkProbe, "_is_there", count_look)
    fetcher = Fetcher(config(concurrency=32, max_silent_requests=10))
    with pytest.raises(UserError, match="no network"):
        fetch(fetcher, plan_of(DEAD))
    tasks = set(fetcher._fetch_loop._tasks)
    fetcher.close()
    assert looks
    assert all(task.done() for task in tasks)
    assert not asyncio.all_tasks(fetcher._loop)


class Cable:
    """Breaks every connection from the given request on, until the fetch has looked for the network `looks` times."""

    def __init__(
        self, server: HostileServer, monkeypatch: pytest.MonkeyPatch, *, breaks_at: int, looks: float = math.inf
    ) -> None:
        self._left, self._looks = breaks_at, looks
        look = network_probe.NetworkProbe._is_there

        async def count_look(loop: network_probe.NetworkProbe) -> bool:
            self._looks -= 1
            return await look(loop)

        monkeypatch.setattr(network_probe.NetworkProbe, "_is_there", count_look)
        for path in ("/robots.txt", "/ok.jpg"):
            server.routes[path] = self.route

    async def route(self, request: Request) -> None:
        self._left -= 1
        sound = fixed(404) if request.path == "/robots.txt" else fixed(200, GOOD)
        await (sound if self._left >= 0 or self._looks <= 0 else reset)(request)


HOSTS = [f"http://host{number}.example/ok.jpg" for number in range(60)]


@pytest.mark.parametrize("breaks_at", [0, 1, 30, 100])
@pytest.mark.parametrize("concurrency", [1, 16])
def test_a_network_that_comes_back_costs_no_url(
    server: HostileServer, breaks_at: int, concurrency: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    Cable(server, monkeypatch, breaks_at=breaks_at, looks=2)
    result = fetch_urls(HOSTS, gateway=server.gateway, concurrency=concurrency, max_silent_requests=20, timeout_s=20)
    assert result.reasons == ["success"] * 60


@pytest.mark.parametrize("breaks_at", [0, 1, 30, 100])
def test_a_network_that_stays_away_stops_the_part(
    server: HostileServer, breaks_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    Cable(server, monkeypatch, breaks_at=breaks_at)
    with pytest.raises(UserError, match="no network"):
        fetch_urls(HOSTS, gateway=server.gateway, max_silent_requests=20)


def test_no_resolver_is_noticed_at_once() -> None:
    watch = NetworkWatch(40)
    watch.note("a.example", "http://a.example", FetchFailure(Reason.DNS_FAILED, "", is_local=True))
    assert watch.is_suspect


def test_any_http_response_ends_a_silence() -> None:
    watch = NetworkWatch(10)
    for number in range(30):
        assert watch.is_suspect == (number >= 10)
        watch.note(f"{number}.example", f"http://{number}.example", FetchFailure(Reason.TIMEOUT, ""))
    watch.note("a.example", "http://a.example", FetchFailure(Reason.HTTP_NOT_FOUND, "", http_status=404))
    assert not watch.is_suspect
    assert list(watch.origins) == ["http://a.example"]


def test_one_host_is_not_the_network() -> None:
    watch = NetworkWatch(10)
    for _ in range(100):
        watch.note("a.example", "http://a.example", FetchFailure(Reason.TIMEOUT, ""))
    assert not watch.is_suspect
