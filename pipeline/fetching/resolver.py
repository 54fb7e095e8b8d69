"""From host names to addresses: each name is looked up once, and what was found is kept.

An answer is kept for its TTL, within the bounds of `[fetch.dns]`; that a name does not exist is kept, too (RFC 2308).
That no server responded is not: the next request tries again. Look-ups at a time are bounded, and all requests for one
name wait for the same. Several connections to a name begin with its addresses in turn.
"""

import asyncio
import socket
from collections import OrderedDict
from dataclasses import dataclass

import aiodns
import pycares
from aiohttp.abc import AbstractResolver, ResolveResult

from pipeline.config.fetch import DnsConfig

NO_SERVER_RESPONDS = "no DNS server of this machine responds"

_FLAGS = socket.AI_ADDRCONFIG & getattr(socket, "AI_MASK", -1)  # no IPv6 addresses where this machine has none
_NUMERIC = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
_MISSING = {
    pycares.errno.ARES_ENOTFOUND: "the name does not exist",
    pycares.errno.ARES_ENODATA: "the name has no address",
    pycares.errno.ARES_EBADNAME: "not a name of DNS",
    pycares.errno.ARES_ENONAME: "the name does not exist",
}
_NO_ANSWER = {
    pycares.errno.ARES_ECONNREFUSED: NO_SERVER_RESPONDS,
    pycares.errno.ARES_ETIMEOUT: "the DNS servers did not respond in time",
    pycares.errno.ARES_ESERVFAIL: "the DNS servers of the name failed",
    pycares.errno.ARES_EREFUSED: "the DNS server refused to answer",
}


class NameFailure(OSError):
    """A name has no address. `is_transient`: the same look-up may succeed later."""

    def __init__(self, message: str, *, is_transient: bool) -> None:
        super().__init__(None, message)
        self.message = message
        self.is_transient = is_transient


@dataclass(frozen=True, slots=True)
class _Found:
    """What a look-up found: addresses with their family, or why there are none."""

    addresses: tuple[tuple[str, int], ...]
    missing: str
    until_s: float


class NameResolver(AbstractResolver):
    """Looks names up; create and use it within one event loop."""

    def __init__(self, config: DnsConfig) -> None:
        self.lookups = 0
        self._config = config
        self._loop = asyncio.get_running_loop()
        self._servers = aiodns.DNSResolver(config.servers or None, timeout=config.timeout_s, tries=config.tries)
        self._slots = asyncio.Semaphore(config.concurrency)
        self._known: OrderedDict[str, _Found] = OrderedDict()  # the one found longest ago first
        self._running: dict[str, asyncio.Task[_Found]] = {}
        self._turns = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of a name.

        Raises:
            NameFailure: it has none, or nobody knows.
        """
        found = self._known.get(host)
        if found is None or found.until_s <= self._loop.time():
            found = await asyncio.shield(self._running.get(host) or self._start(host))
        if found.missing:
            raise NameFailure(found.missing, is_transient=False)
        self._turns += 1
        first = self._turns % len(found.addresses)
        return [
            ResolveResult(hostname=host, host=address, port=port, family=kind, proto=0, flags=_NUMERIC)
            for address, kind in (*found.addresses[first:], *found.addresses[:first])
            if family in (socket.AF_UNSPEC, kind)
        ]

    async def close(self) -> None:
        """End all look-ups."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._servers.close()

    def _start(self, host: str) -> "asyncio.Task[_Found]":
        task = self._loop.create_task(self._look_up(host))
        self._running[host] = task
        task.add_done_callback(lambda done: self._end(host, done))
        return task

    def _end(self, host: str, done: "asyncio.Task[_Found]") -> None:
        del self._running[host]
        if not done.cancelled() and done.exception() is None:  # an exception is marked as seen by this
            self._known.pop(host, None)
            self._known[host] = done.result()
            while len(self._known) > self._config.cache_names:
                self._known.popitem(last=False)

    async def _look_up(self, host: str) -> _Found:
        async with self._slots:
            self.lookups += 1
            try:
                answer = await self._servers.getaddrinfo(host, type=socket.SOCK_STREAM, flags=_FLAGS)
            except aiodns.error.DNSError as error:
                number = error.args[0]
                if number not in _MISSING:
                    message = _NO_ANSWER.get(number, "the name does not resolve")
                    raise NameFailure(message, is_transient=True) from error
                return _Found((), _MISSING[number], self._loop.time() + self._config.negative_ttl_s)
        addresses = tuple((node.addr[0].decode("ascii"), node.family) for node in answer.nodes)
        if not addresses:
            return _Found((), "the name has no address", self._loop.time() + self._config.negative_ttl_s)
        stated_s = min(node.ttl for node in answer.nodes)
        ttl_s = min(max(stated_s, self._config.min_ttl_s), self._config.max_ttl_s)
        return _Found(addresses, "", self._loop.time() + ttl_s)
