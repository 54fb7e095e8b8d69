"""Names are looked up once, kept within bounds, and their failures told apart."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from support.dns_server import REFUSED, SERVER_FAILURE, DnsServer, serve_dns
from support.fetching import fetch_urls

from pipeline.config.fetch import DnsConfig
from pipeline.fetching.resolver import NO_SERVER_RESPONDS, NameFailure, NameResolver

T = TypeVar("T")


def look_up(work: Callable[[NameResolver], Awaitable[T]], *servers: DnsServer, **settings: object) -> T:
    """Run `work` with a resolver that asks `servers`."""
    addresses = [server.address for server in servers]

    async def run() -> T:
        limits = {"timeout_s": 0.3, "tries": 2} | settings
        resolver = NameResolver(DnsConfig(servers=addresses, **limits))  # type: ignore[arg-type]
        try:
            return await work(resolver)
        finally:
            await resolver.close()

    return asyncio.run(run())


async def hosts_of(resolver: NameResolver, name: str) -> set[str]:
    return {one["host"] for one in await resolver.resolve(name, 80)}


async def failure_of(resolver: NameResolver, name: str) -> NameFailure:
    with pytest.raises(NameFailure) as caught:
        await resolver.resolve(name, 80)
    return caught.value


def test_a_name_is_looked_up_once_however_many_wait() -> None:
    names = {f"{number}.example": [f"192.0.2.{number}", f"198.51.100.{number}"] for number in range(20)}

    async def work(resolver: NameResolver) -> None:
        for _ in range(3):
            found = await asyncio.gather(*(hosts_of(resolver, name) for name in names for _ in range(10)))
            assert found == [set(addresses) for addresses in names.values() for _ in range(10)]
        firsts = {(await resolver.resolve("7.example", 443))[0]["host"] for _ in range(2)}
        assert firsts == set(names["7.example"])  # in turns
        assert resolver.lookups == len(names)

    with serve_dns(DnsServer(dict(names), delay_s=0.02)) as server:
        look_up(work, server)
        assert set(server.queries.values()) == {1}


@pytest.mark.parametrize(("ttl_s", "again"), [(0, True), (300, False)])
def test_an_address_is_kept_for_its_time_within_bounds(ttl_s: int, again: bool) -> None:
    async def work(resolver: NameResolver) -> int:
        await hosts_of(resolver, "a.example")
        await hosts_of(resolver, "a.example")
        return resolver.lookups

    with serve_dns(DnsServer({"a.example": ["192.0.2.1"]}, ttl_s=ttl_s)) as server:
        assert look_up(work, server, min_ttl_s=0) == (2 if again else 1)
        assert look_up(work, server, min_ttl_s=60) == 1  # at least
        assert look_up(work, server, min_ttl_s=0, max_ttl_s=0) == 2  # at most


def test_failures_are_told_apart_and_only_a_missing_name_is_kept() -> None:
    names = {"broken.example": SERVER_FAILURE, "refused.example": REFUSED, "empty.example": []}

    async def work(resolver: NameResolver) -> None:
        for name, words, is_transient in (
            ("missing.example", "the name does not exist", False),
            ("empty.example", "the name has no address", False),
            ("broken.example", "the DNS servers of the name failed", True),
            ("refused.example", "the DNS server refused to answer", True),
        ):
            before = resolver.lookups
            failures = [await failure_of(resolver, name) for _ in range(3)]
            assert {(one.message, one.is_transient) for one in failures} == {(words, is_transient)}
            assert resolver.lookups - before == (3 if is_transient else 1)

    with serve_dns(DnsServer(dict(names))) as server:
        look_up(work, server)


def test_a_missing_name_is_looked_up_again_after_its_time() -> None:
    async def work(resolver: NameResolver) -> int:
        for _ in range(3):
            await failure_of(resolver, "missing.example")
        return resolver.lookups

    with serve_dns(DnsServer()) as server:
        assert look_up(work, server, negative_ttl_s=0) == 3


def test_silence_is_a_transient_failure_and_no_server_one_of_this_machine() -> None:
    with serve_dns(DnsServer({"a.example": ["192.0.2.1"]}, loss=1.0)) as server:
        failure = look_up(lambda resolver: failure_of(resolver, "a.example"), server, timeout_s=0.05)
    assert (failure.message, failure.is_transient) == ("the DNS servers did not respond in time", True)
    failure = look_up(lambda resolver: failure_of(resolver, "a.example"), DnsServer(address=server.address))
    assert (failure.message, failure.is_transient) == (NO_SERVER_RESPONDS, True)


def test_the_next_server_is_asked_if_one_is_silent_or_fails() -> None:
    names: dict[str, list[str] | int] = {"a.example": ["192.0.2.1"], "b.example": ["192.0.2.2"]}
    with (
        serve_dns(DnsServer(names, loss=1.0)) as silent,
        serve_dns(DnsServer(dict.fromkeys(names, SERVER_FAILURE))) as failing,
        serve_dns(DnsServer(names)) as sound,
    ):
        for name, addresses in names.items():
            found = look_up(lambda resolver, name=name: hosts_of(resolver, name), silent, failing, sound)
            assert found == set(addresses)  # type: ignore[arg-type]


def test_losses_are_repaired_and_look_ups_at_a_time_are_bounded() -> None:
    names = {f"{number}.example": [f"192.0.2.{number}"] for number in range(200)}

    async def work(resolver: NameResolver) -> list[set[str]]:
        return list(await asyncio.gather(*(hosts_of(resolver, name) for name in names)))

    with serve_dns(DnsServer(dict(names), delay_s=0.01, loss=0.1)) as server:
        found = look_up(work, server, timeout_s=0.2, tries=6, concurrency=8)
        assert found == [set(addresses) for addresses in names.values()]
        assert server.most_at_once <= 16  # a look-up asks for IPv4 and IPv6


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 5))
def test_the_cache_has_the_names_found_last(order: list[int], size: int) -> None:
    async def work() -> None:
        resolver = NameResolver(DnsConfig(cache_names=size))
        kept: list[str] = []
        resolver._servers.getaddrinfo = answer  # type: ignore[assignment, method-assign]
        for number in order:
            name = f"{number}.example"
            before = resolver.lookups
            await resolver.resolve(name)
            assert (resolver.lookups == before) == (name in kept)
            if name not in kept:
                kept = [*kept, name][-size:]
            assert list(resolver._known) == kept
        await resolver.close()

    async def answer(host: str, **options: object) -> object:
        class Node:
            addr, family, ttl = (b"192.0.2.1", 0), socket.AF_INET, 300

        class Answer:
            nodes = (Node,)

        return Answer

    asyncio.run(work())


def test_a_request_that_gives_up_does_not_end_the_look_up_of_others() -> None:
    async def work(resolver: NameResolver) -> None:
        first = asyncio.create_task(hosts_of(resolver, "a.example"))
        second = asyncio.create_task(hosts_of(resolver, "a.example"))
        await asyncio.sleep(0.01)
        first.cancel()
        assert await second == {"192.0.2.1"}
        assert resolver.lookups == 1

    with serve_dns(DnsServer({"a.example": ["192.0.2.1"]}, delay_s=0.1)) as server:
        look_up(work, server)


def test_addresses_of_the_cache_are_checked_like_others() -> None:
    with serve_dns(DnsServer({"inside.example": ["10.0.0.1"], "local.example": ["127.0.0.1"]})) as server:
        urls = [f"http://{name}.example/{number}.jpg" for name in ("inside", "local", "missing") for number in range(3)]
        result = fetch_urls(
            urls, allow_private_hosts=False, contact="mailto:test@example.org", dns=DnsConfig(servers=[server.address])
        )
    assert result.reasons == ["private_address"] * 6 + ["dns_failed"] * 3
    assert set(result.table["error_message"].to_pylist()[6:]) == {"robots.txt: the name does not exist"}
    assert set(server.queries.values()) == {1}


@pytest.mark.parametrize(
    "wrong",
    [
        {"servers": ["dns.example"]},
        {"servers": ["9.9.9.9:0"]},
        {"servers": ["9.9.9.9:99999"]},
        {"servers": ["9.9.9.999"]},
        {"servers": ["https://9.9.9.9"]},
        {"min_ttl_s": 10, "max_ttl_s": 5},
        {"cache_names": 0},
    ],
)
def test_wrong_settings(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DnsConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("server", ["9.9.9.9", "9.9.9.9:5353", "[2620:fe::fe]:53", "2620:fe::fe"])
def test_servers(server: str) -> None:
    assert DnsConfig(servers=(server,)).servers == (server,)
