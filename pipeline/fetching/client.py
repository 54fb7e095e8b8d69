"""One HTTP request, safely: public addresses only, one deadline for all of it, no more bytes than allowed.

Redirects, retries, robots and pacing are the caller's. Every way to fail is a `FetchFailure`.
"""

import asyncio
import os
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import SpooledTemporaryFile, gettempdir
from typing import IO, Any

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from pipeline.config import FetchConfig
from pipeline.fetching.addresses import PrivateAddressError, PublicResolver, Target, is_private_literal
from pipeline.fetching.outcome import FetchFailure
from pipeline.records import Reason

Headers = CIMultiDictProxy[str] | CIMultiDict[str]

_MEMORY_BYTES = 1 << 20  # a larger body waits for its decoder in a file
_DNS_LIFETIME_S = 300
_INFLATED = frozenset({"gzip", "x-gzip", "deflate"})
_GZIP_OR_ZLIB = 47  # zlib's wbits: whichever header is there


@dataclass(frozen=True, slots=True)
class Response:
    """A response; `body` is None where the caller did not want it, else open at its start."""

    status: int
    headers: Headers
    body: IO[bytes] | None


def user_agent(config: FetchConfig) -> str:
    """Return the User-Agent header: `wit-pipeline/0.1 (+mailto:you@example.org)`."""
    contact = f" (+{config.contact})" if config.contact else ""
    return f"{config.agent}/0.1{contact}"


class Client:
    """Connections to many hosts; to be made and used within one event loop."""

    def __init__(self, config: FetchConfig) -> None:
        self._config = config
        resolver: Any = aiohttp.AsyncResolver()
        is_open = config.allow_private_hosts or config.gateway is not None  # a gateway may well be on this machine
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,
                resolver=resolver if is_open else PublicResolver(resolver),
                ttl_dns_cache=_DNS_LIFETIME_S,
            ),
            headers={"User-Agent": user_agent(config), "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=config.timeout_s / (config.retries + 1)),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def get(
        self,
        target: Target,
        *,
        budget_s: float,
        max_bytes: int,
        wants_body: Callable[[int, Headers], bool],
        scratch_dir: Path | None = None,
        close_connection: bool = False,
        truncate: bool = False,
    ) -> Response:
        """Request `target`; the response must be complete within `budget_s`.

        `wants_body` sees the status and headers first and may raise. A body longer than `max_bytes` fails, or,
        with `truncate`, is cut somewhere beyond them. `close_connection` closes the connection afterwards.

        Raises:
            FetchFailure: no complete response.
        """
        if not self._config.allow_private_hosts and is_private_literal(target.host):
            raise FetchFailure(Reason.PRIVATE_ADDRESS, f"{target.host} is not on the public Internet")
        url, headers = self._address(target)
        if close_connection:
            headers["Connection"] = "close"
        progress = _Progress()
        with _failures(progress):
            async with asyncio.timeout(max(budget_s, 0)):
                async with self._session.get(url, headers=headers, allow_redirects=False) as response:
                    if not wants_body(response.status, response.headers):
                        return Response(response.status, response.headers, None)
                    progress.is_in_body = True
                    body = await _read(response, max_bytes, scratch_dir, truncate)
                    return Response(response.status, response.headers, body)

    def _address(self, target: Target) -> tuple[URL, dict[str, str]]:
        """Return the URL to connect to for `target`, and the headers this takes."""
        if self._config.gateway is None:
            return URL(target.url, encoded=True), {}
        return (
            URL(self._config.gateway + target.path, encoded=True),
            {"Host": target.authority, "X-Forwarded-Proto": target.scheme},
        )


@dataclass(slots=True)
class _Progress:
    is_in_body: bool = False


@contextmanager
def _failures(progress: _Progress) -> Iterator[None]:
    """Turn what the HTTP library raises into the closed list of reasons."""
    try:
        yield
    except aiohttp.ClientConnectorDNSError as error:
        if isinstance(error.os_error, PrivateAddressError):
            raise FetchFailure(Reason.PRIVATE_ADDRESS, str(error.os_error)) from error
        raise FetchFailure(Reason.DNS_FAILED, "the name does not resolve", is_transient=True) from error
    except (aiohttp.ClientConnectorSSLError, aiohttp.ClientConnectorCertificateError) as error:
        raise FetchFailure(Reason.TLS_FAILED, _cause(error)) from error
    except aiohttp.ConnectionTimeoutError as error:
        raise FetchFailure(Reason.CONNECT_FAILED, "no connection before the deadline", is_transient=True) from error
    except aiohttp.ClientConnectorError as error:
        raise FetchFailure(Reason.CONNECT_FAILED, _cause(error), is_transient=True) from error
    except TimeoutError as error:
        where = "in the body" if progress.is_in_body else "before the headers"
        raise FetchFailure(Reason.TIMEOUT, f"deadline passed {where}") from error
    except (aiohttp.ClientError, HttpProcessingError, OSError, ValueError) as error:
        if progress.is_in_body:
            raise FetchFailure(Reason.TRUNCATED, f"the body ended early: {type(error).__name__}") from error
        is_lost = isinstance(error, aiohttp.ClientConnectionError)
        raise FetchFailure(Reason.PROTOCOL_ERROR, type(error).__name__, is_transient=is_lost) from error


def _cause(error: aiohttp.ClientConnectorError | aiohttp.ClientConnectorCertificateError) -> str:
    """Return the cause, the same in every run (no IP addresses, no ports)."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return getattr(error.certificate_error, "verify_message", "certificate refused")
    number = error.os_error.errno
    return os.strerror(number) if number else type(error.os_error).__name__


async def _read(
    response: aiohttp.ClientResponse, max_bytes: int, scratch_dir: Path | None, truncate: bool
) -> IO[bytes]:
    if not truncate and (response.content_length or 0) > max_bytes:
        raise FetchFailure(Reason.TOO_LARGE, f"Content-Length is {response.content_length} bytes")
    body: IO[bytes] = SpooledTemporaryFile(_MEMORY_BYTES, dir=str(scratch_dir or gettempdir()))  # noqa: SIM115
    try:
        size = 0
        async for piece in _pieces(response, max_bytes):
            size += len(piece)
            if size > max_bytes and not truncate:
                raise FetchFailure(Reason.TOO_LARGE, f"body exceeds {max_bytes} bytes")
            body.write(piece)
            if size > max_bytes:
                break
    except BaseException:
        body.close()
        raise
    body.seek(0)
    return body


async def _pieces(response: aiohttp.ClientResponse, max_bytes: int) -> AsyncIterator[bytes]:
    """Yield the body, content coding undone, in small pieces, however well it was compressed.

    Raises:
        FetchFailure: an unsupported coding, one that is damaged, or more than `max_bytes`
            sent in one: it need not unpack to anything.
    """
    coding = response.headers.get("Content-Encoding", "").strip().lower()
    if coding in ("", "identity", "none"):
        async for chunk in response.content.iter_any():
            yield chunk
        return
    if coding not in _INFLATED:
        raise FetchFailure(Reason.PROTOCOL_ERROR, f"unsupported Content-Encoding {coding[:20]!r}")
    inflater = zlib.decompressobj(_GZIP_OR_ZLIB)
    sent = 0
    try:
        async for chunk in response.content.iter_any():
            sent += len(chunk)
            if sent > max_bytes:
                raise FetchFailure(Reason.TOO_LARGE, f"compressed body exceeds {max_bytes} bytes")
            if inflater.eof:
                continue  # what follows the end is no part of the body, and zlib would collect it
            yield inflater.decompress(chunk, max_bytes + 1)
            while inflater.unconsumed_tail:
                yield inflater.decompress(inflater.unconsumed_tail, max_bytes + 1)
    except zlib.error as error:
        raise FetchFailure(Reason.TRUNCATED, f"damaged {coding} body") from error
    if not inflater.eof:
        raise FetchFailure(Reason.TRUNCATED, f"{coding} body ended early")
