"""Which hosts may be connected to: only those with public IP addresses.

A page can name any host, and any name can resolve to 127.0.0.1 or to a cloud's metadata service. So the rule is applied
to the addresses that the resolver returns to the connection: only checked addresses are connected to, and there is no
second look-up (DNS rebinding).
"""

import ipaddress
import socket
from dataclasses import dataclass
from functools import lru_cache

from aiohttp.abc import AbstractResolver, ResolveResult

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# RFC 6052: 32 bits of IPv4 behind these 96 bits; RFC 3056: 6to4 has them in bits 16 to 48.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# The only block that IANA allocates to hosts on the Internet; the rest is link-local, unique local, multicast ...
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NOT_HOSTS = (
    ipaddress.IPv6Network("3fff::/20"),  # documentation (RFC 9637)
    ipaddress.IPv4Network("192.88.99.0/24"),  # the retired 6to4 relays (RFC 7526)
    ipaddress.IPv4Network("192.0.0.0/24"),  # protocol assignments; one cloud's metadata service is at 192.0.0.192
    ipaddress.IPv4Network("168.63.129.16/32"),  # public by its number, but the host agent of every Azure machine
)
"""Blocks without public hosts that Python 3.11's `is_global` lets pass."""


@dataclass(frozen=True, slots=True)
class Target:
    """The parts of a normalised URL. `host` has no port, and IPv6 addresses keep their brackets."""

    url: str
    scheme: str
    authority: str
    host: str

    @classmethod
    def parse(cls, url: str) -> "Target":
        """Split a normalised URL."""
        scheme, _, rest = url.partition("://")
        authority = rest[: rest.index("/")]
        host = authority[: authority.index("]") + 1] if authority.startswith("[") else authority.partition(":")[0]
        return cls(url, scheme, authority, host)

    @property
    def origin(self) -> str:
        """Scheme and authority: the scope of a robots.txt file."""
        return f"{self.scheme}://{self.authority}"

    @property
    def path(self) -> str:
        """Path and query."""
        return self.url[len(self.origin) :]


class PrivateAddressError(OSError):
    """A host name that has private addresses only."""


@lru_cache(maxsize=65_536)
def is_public(address: str) -> bool:
    """Return whether `address` (as a resolver prints it) belongs to a host on the public Internet.

    An IPv6 address that carries an IPv4 address (mapped, NAT64, 6to4) is as public as that one. False for anything that
    is not an address.
    """
    try:
        return _is_public(ipaddress.ip_address(address))
    except ValueError:
        return False


def _is_public(address: _Address) -> bool:
    if any(address in network for network in _NOT_HOSTS if network.version == address.version):
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return address.is_global and not address.is_multicast
    carried = address.ipv4_mapped or address.sixtofour
    if address in _NAT64:
        carried = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    if carried is not None:
        return _is_public(carried)
    return address in _GLOBAL_UNICAST and address.is_global


def is_private_literal(host: str) -> bool:
    """Return whether a URL's host (as `normalize_url` writes it) is a private address or a name of this machine.

    Other names are checked by the addresses they resolve to.
    """
    name = host.rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):  # RFC 6761: always loopback
        return True
    try:
        address = ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return not is_public(str(address))


class PublicResolver(AbstractResolver):
    """Return only the public addresses of a name."""

    def __init__(self, resolver: AbstractResolver) -> None:
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the public addresses of `host`.

        Raises:
            PrivateAddressError: it has only private ones.
            OSError: it does not resolve.
        """
        found = await self._resolver.resolve(host, port, family)
        public = [entry for entry in found if is_public(entry["host"])]
        if found and not public:
            raise PrivateAddressError(f"resolves to {found[0]['host']} only")
        return public

    async def close(self) -> None:
        """Close the wrapped resolver."""
        await self._resolver.close()
