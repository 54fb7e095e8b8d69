"""One HTTP request, safely: public addresses only, one deadline for the whole request, a limit of bytes. Redirects,
retries, robots and pacing are up to the caller. Every way to fail is a `FetchFailure`.
"""

import asyncio
import os
import ssl
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import SpooledTemporaryFile, gettempdir
from typing import IO, Any, cast

import aiohttp
from aiohttp.abc import AbstractResolver
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from pipeline.config.fetch import FetchConfig
from pipeline.errors import UserError
from pipeline.fetching.addresses import PrivateAddressError, PublicResolver, Target, is_private_literal
from pipeline.fetching.connection import MAX_HEAD_BYTES, MAX_HEADERS, PROGRESS, Connection, Progress
from pipeline.fetching.content_coding import Inflater, UnsupportedCodingError, codings
from pipeline.fetching.local_faults import local_fault
from pipeline.fetching.outcome import FetchFailure
from pipeline.fetching.resolver import NO_SERVER_RESPONDS, NameFailure, NameResolver
from pipeline.fetching.signing import Signer
from pipeline.project import code_version
from pipeline.records import Reason

Headers = CIMultiDictProxy[str] | CIMultiDict[str]

_MEMORY_BYTES = 1 << 20  # a larger body is kept in a file until it is decoded
_PROXY_REFUSES = 407
_SERVER_ERROR = 500
NO_PROXY = "the proxy of fetch.proxy cannot be contacted"
_PROXY_IS_AWAY = (aiohttp.ClientProxyConnectionError, aiohttp.ClientConnectorDNSError)
_OF_CONNECTING = (aiohttp.ClientConnectorError, aiohttp.ClientConnectorCertificateError)
_EXPECTED = (aiohttp.ClientError, HttpProcessingError, OSError, ValueError)


@dataclass(frozen=True, slots=True)
class Response:
    """A response; `body` is None if the caller did not want it, else open at its start."""

    status: int
    headers: Headers
    body: IO[bytes] | None


def user_agent(config: FetchConfig) -> str:
    """Return the User-Agent header: `wit-pipeline/0.2.0 (+mailto:you@example.org)`."""
    contact = f" (+{config.contact})" if config.contact else ""
    return f"{config.agent}/{code_version()}{contact}"


class Client:
    """Connections to many hosts; create and use it within one event loop."""

    def __init__(self, config: FetchConfig, signer: Signer | None = None) -> None:
        """Open no connection yet; `signer` signs every request."""
        self._config = config
        self._signer = signer
        self._resolver = NameResolver(config.dns)
        self._public = PublicResolver(self._resolver)
        self._proxies = {scheme: config.proxy.url(scheme) for scheme in ("http", "https")}
        is_open = config.allow_private_hosts or config.gateway is not None  # a gateway may be on this machine
        self._direct = self._open(self._resolver if is_open else self._public)
        self._proxied = self._open(self._resolver)  # which resolves the names of proxies only

    def _open(self, resolver: AbstractResolver) -> aiohttp.ClientSession:
        config = self._config
        connector = aiohttp.TCPConnector(limit=0, resolver=resolver, use_dns_cache=False)  # `NameResolver` has one
        # aiohttp has no public way to set the protocol; a test fails if this has no effect.
        connector._factory = cast(Any, partial(Connection, asyncio.get_running_loop()))
        return aiohttp.ClientSession(
            connector=connector,
            headers={"User-Agent": user_agent(config), "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=config.timeout_s / (config.retries + 1)),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            max_line_size=MAX_HEAD_BYTES,
            max_field_size=MAX_HEAD_BYTES,
            max_headers=MAX_HEADERS,
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._direct.close()
        await self._proxied.close()
        await self._resolver.close()

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

        `wants_body` sees the status and headers first and may raise. A body longer than `max_bytes` fails, or, with
        `truncate`, is truncated after them. `close_connection` closes the connection afterwards.

        Raises:
            FetchFailure: no complete response.
        """
        if not self._config.allow_private_hosts and is_private_literal(target.host):
            raise FetchFailure(
                Reason.PRIVATE_ADDRESS, f"{target.host} is not on the public Internet", is_before_request=True
            )
        url, headers = self._address(target)
        if self._signer is not None:
            headers |= self._signer.headers(target, datetime.now(UTC))
        if close_connection:
            headers["Connection"] = "close"
        proxy = self._proxies[target.scheme]
        progress = Progress(is_proxied=proxy is not None)
        PROGRESS.set(progress)
        session = self._direct if proxy is None else self._proxied
        with _failures(progress):
            async with asyncio.timeout(max(budget_s, 0)):
                if proxy is not None:
                    await self._check_address(target.host)
                async with session.get(url, headers=headers, allow_redirects=False, proxy=proxy) as response:
                    if proxy is not None and response.status == _PROXY_REFUSES:
                        raise _refusing_proxy()
                    progress.http_status = response.status
                    if not wants_body(response.status, response.headers):
                        return Response(response.status, response.headers, None)
                    progress.is_in_body = True
                    body = await _read(response, max_bytes, scratch_dir, truncate)
                    return Response(response.status, response.headers, body)

    async def _check_address(self, host: str) -> None:
        """Look up a name that a proxy is to connect to, which looks it up again. Literal addresses are checked already.

        Raises:
            PrivateAddressError: it has private addresses only.
            NameFailure: it has none here.
        """
        config = self._config
        if config.proxy.checks_addresses and not config.allow_private_hosts and not host.startswith("["):
            await self._public.resolve(host)

    def _address(self, target: Target) -> tuple[URL, dict[str, str]]:
        """Return the URL to connect to for `target`, and the headers this takes."""
        if self._config.gateway is None:
            return _exact(target.url), {}
        return (
            _exact(self._config.gateway + target.path),
            {"Host": target.authority, "X-Forwarded-Proto": target.scheme},
        )


def _exact(url: str) -> URL:
    """Return a URL that is requested unchanged: yarl would drop an empty query, which some servers need."""
    parsed = URL(url, encoded=True)
    if parsed.raw_query_string or not url.endswith("?"):
        return parsed
    return parsed.with_path(f"{parsed.raw_path}?", encoded=True)


@contextmanager
def _failures(progress: Progress) -> Iterator[None]:
    """Convert errors of the HTTP library to the closed list of reasons, and failures of this machine to `UserError`."""
    try:
        yield
    except FetchFailure as raised:
        raised.http_status = raised.http_status or progress.http_status
        raise
    except (Exception, MemoryError) as error:
        if (fault := local_fault(error)) is not None:
            raise fault from error
        if (failure := _failure(error, progress)) is None:
            raise
        failure.http_status = progress.http_status
        raise failure from error


def _failure(error: Exception, progress: Progress) -> FetchFailure | None:
    if isinstance(error, aiohttp.ClientHttpProxyError):
        if error.status == _PROXY_REFUSES:
            raise _refusing_proxy() from error
        message = f"the proxy responds with status {error.status}"
        return FetchFailure(
            Reason.CONNECT_FAILED, message, is_transient=error.status >= _SERVER_ERROR, is_before_request=True
        )
    if not progress.is_sent or isinstance(error, _OF_CONNECTING):  # a proxy is sent a request before
        return _failure_to_connect(error, progress)
    if isinstance(error, TimeoutError):
        where = "in the body" if progress.is_in_body else "before the headers"
        return FetchFailure(Reason.TIMEOUT, f"deadline passed {where}")
    if not isinstance(error, _EXPECTED):
        return None
    if progress.is_in_body:
        return FetchFailure(Reason.TRUNCATED, f"the body ended early: {type(error).__name__}")
    # On a reused connection, the previous response may be at fault.
    is_transient = isinstance(error, aiohttp.ClientConnectionError) or progress.is_reused
    return FetchFailure(Reason.PROTOCOL_ERROR, _protocol_cause(error), is_transient=is_transient)


def _failure_to_connect(error: Exception, progress: Progress) -> FetchFailure | None:
    reason, cause, is_transient = Reason.CONNECT_FAILED, type(error).__name__, True
    if progress.is_proxied and isinstance(error, _PROXY_IS_AWAY):
        cause = NO_PROXY
    elif isinstance(error, aiohttp.ClientConnectorDNSError):
        reason, cause, is_transient = _dns_failure(error.os_error)
    elif isinstance(error, PrivateAddressError | NameFailure):
        reason, cause, is_transient = _dns_failure(error)
    elif isinstance(error, aiohttp.ClientConnectorSSLError | aiohttp.ClientConnectorCertificateError):
        reason, cause, is_transient = Reason.TLS_FAILED, _tls_cause(error), False
    elif isinstance(error, TimeoutError) and progress.is_connected:
        reason, cause, is_transient = Reason.TIMEOUT, "deadline passed in the TLS handshake", False
    elif isinstance(error, TimeoutError):
        cause = "no connection before the deadline"
    elif isinstance(error, aiohttp.ClientConnectorError):
        reason = Reason.TLS_FAILED if progress.is_connected else reason
        cause = _os_cause(error.os_error)
    elif not isinstance(error, _EXPECTED):
        return None
    is_local = cause in (NO_SERVER_RESPONDS, NO_PROXY)
    return FetchFailure(reason, cause, is_transient=is_transient, is_before_request=True, is_local=is_local)


def _dns_failure(error: OSError) -> tuple[Reason, str, bool]:
    if isinstance(error, PrivateAddressError):
        return Reason.PRIVATE_ADDRESS, str(error), False
    if isinstance(error, NameFailure):
        return Reason.DNS_FAILED, error.message, error.is_transient
    return Reason.DNS_FAILED, "the name does not resolve", True


def _refusing_proxy() -> UserError:
    return UserError("fetch stopped: the proxy refuses the user or password of fetch.proxy (status 407): correct them")


def _tls_cause(error: aiohttp.ClientConnectorSSLError | aiohttp.ClientConnectorCertificateError) -> str:
    """Return OpenSSL's reason: the error number of an SSLError is not an operating system's."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return getattr(error.certificate_error, "verify_message", None) or "certificate refused"
    reason = error.os_error.reason if isinstance(error.os_error, ssl.SSLError) else None
    return reason.replace("_", " ").lower() if reason else type(error.os_error).__name__


def _os_cause(error: OSError) -> str:
    """Return the cause, the same in every run (no IP addresses, no ports)."""
    return os.strerror(error.errno) if error.errno else type(error).__name__


def _protocol_cause(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientResponseError) and error.message:
        return error.message.strip().splitlines()[0][:100].rstrip(":")
    return type(error).__name__


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
        body.seek(0)
    except BaseException:
        _close(body)
        raise
    return body


def _close(body: IO[bytes]) -> None:
    """Close a body that is not wanted; on a full disk that can fail, after a more specific error."""
    with suppress(OSError):
        body.close()


async def _pieces(response: aiohttp.ClientResponse, max_bytes: int) -> AsyncIterator[bytes]:
    """Yield the decoded body in small pieces.

    Raises:
        FetchFailure: an unsupported coding, one that is damaged, or more than `max_bytes` of compressed data, which may
        decompress to nothing.
    """
    header = ",".join(response.headers.getall("Content-Encoding", ()))
    try:
        inflaters = [Inflater(coding) for coding in codings(header)]
    except UnsupportedCodingError as error:
        raise FetchFailure(Reason.PROTOCOL_ERROR, f"unsupported Content-Encoding {str(error)[:20]!r}") from None
    sent = 0
    try:
        async for chunk in response.content.iter_any():
            sent += len(chunk)
            if inflaters and sent > max_bytes:
                raise FetchFailure(Reason.TOO_LARGE, f"compressed body exceeds {max_bytes} bytes")
            for piece in _undo(inflaters, chunk):
                yield piece
                if inflaters:
                    await asyncio.sleep(0)  # a small chunk can decompress to much data: let other responses proceed
    except zlib.error as error:
        raise FetchFailure(Reason.TRUNCATED, f"damaged {header.strip()[:20]} body") from error
    if not all(inflater.is_whole for inflater in inflaters):
        raise FetchFailure(Reason.TRUNCATED, f"{header.strip()[:20]} body ended early")


def _undo(inflaters: list[Inflater], chunk: bytes) -> Iterator[bytes]:
    if not inflaters:
        yield chunk
        return
    for piece in inflaters[0].feed(chunk):
        yield from _undo(inflaters[1:], piece)
