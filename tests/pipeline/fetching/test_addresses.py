"""Which addresses count as public: a table of every special-purpose block, and the spellings URLs can hide them in."""

import asyncio
import ipaddress
import socket

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from hypothesis import given
from hypothesis import strategies as st

from pipeline.fetching.addresses import PrivateAddressError, PublicResolver, Target, is_private_literal, is_public
from pipeline.web.urls import normalize_url

PUBLIC = [
    "1.1.1.1",
    "93.184.216.34",
    "223.255.255.254",
    "2606:4700:4700::1111",
    "2a00:1450:4001::1",
    "::ffff:1.1.1.1",
    "64:ff9b::101:101",
    "2002:101:101::1",
]

NOT_PUBLIC = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.127.255.255",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "168.63.129.16",
    "192.0.0.1",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a00:1",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:a00:1::1",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd12:3456::1",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "no address",
    "",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_addresses_on_the_internet_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_all_others_are_not(address: str) -> None:
    assert not is_public(address)


@given(st.ip_addresses(v=4))
def test_an_ipv6_address_is_as_public_as_the_ipv4_address_it_carries(address: ipaddress.IPv4Address) -> None:
    bits = int(address)
    assert is_public(f"::ffff:{address}") == is_public(str(address))
    assert is_public(f"64:ff9b::{bits >> 16:x}:{bits & 0xFFFF:x}") == is_public(str(address))
    assert is_public(f"2002:{bits >> 16:x}:{bits & 0xFFFF:x}::1") == is_public(str(address))


SPELLINGS = [
    "http://127.0.0.1/",
    "http://127.1/",
    "http://127.0.1/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0x7f.1/",
    "http://0177.0.0.1/",
    "http://017700000001/",
    "http://127.0.0.1./",
    "http://%31%32%37.0.0.1/",
    "http://①②⑦.0.0.1/",
    "http://127。0。0。1/",
    "http://0/",
    "http://[::1]/",
    "http://[0:0:0:0:0:0:0:1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::127.0.0.1]/",
    "http://LOCALHOST/",
    "http://localhost./",
    "http://a.localhost/",
]


@pytest.mark.parametrize("url", SPELLINGS)
def test_no_spelling_of_this_machine_gets_through(url: str) -> None:
    normal = normalize_url(url)
    assert normal is not None
    assert is_private_literal(Target.parse(normal).host)


@pytest.mark.parametrize("host", ["example.com", "127.0.0.1.example.com", "notlocalhost", "[2606:4700::1]", "1.1.1.1"])
def test_other_hosts_are_judged_by_what_they_resolve_to(host: str) -> None:
    assert not is_private_literal(host)


@pytest.mark.parametrize(
    ("url", "authority", "host", "path"),
    [
        ("http://example.com/", "example.com", "example.com", "/"),
        ("https://example.com:8443/a?b", "example.com:8443", "example.com", "/a?b"),
        ("http://[2606:4700::1]:81/x", "[2606:4700::1]:81", "[2606:4700::1]", "/x"),
    ],
)
def test_urls_are_taken_apart(url: str, authority: str, host: str, path: str) -> None:
    target = Target.parse(url)
    assert (target.authority, target.host, target.path) == (authority, host, path)
    assert target.origin + target.path == url


class _Answers(AbstractResolver):
    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=0)
            for address in self.addresses
        ]

    async def close(self) -> None:
        pass


def test_only_public_addresses_of_a_name_are_connected_to() -> None:
    answers = asyncio.run(PublicResolver(_Answers("127.0.0.1", "1.1.1.1", "10.0.0.1")).resolve("rebind.example", 80))
    assert [answer["host"] for answer in answers] == ["1.1.1.1"]


def test_a_name_with_private_addresses_only_is_refused() -> None:
    with pytest.raises(PrivateAddressError):
        asyncio.run(PublicResolver(_Answers("127.0.0.1", "169.254.169.254")).resolve("inside.example", 80))
