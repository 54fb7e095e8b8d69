"""Interpret the status line and headers of a response."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from pipeline.fetching.outcome import FetchFailure
from pipeline.records import Reason
from pipeline.web.urls import normalize_url

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_WITH_IMAGE = frozenset({200, 203})
_NOT_FOUND = frozenset({404, 410})
_FORBIDDEN = frozenset({401, 403, 451})
_TOO_MANY_REQUESTS = 429
_NOT_UTF_8 = re.compile("[\udc80-\udcff]")


def is_redirect(status: int) -> bool:
    """Return whether a response with this status is a redirect."""
    return status in _REDIRECTS


def redirect_target(url: str, headers: Mapping[str, str]) -> str:
    """Return the normalised URL that a redirect from `url` leads to.

    Raises:
        FetchFailure: BAD_REDIRECT.
    """
    location = headers.get("Location")
    if location is None:
        raise FetchFailure(Reason.BAD_REDIRECT, "no Location")
    target = normalize_url(_escape_bytes(location), url)
    if target is None:
        raise FetchFailure(Reason.BAD_REDIRECT, f"to {location[:100]!r}")
    return target


def _escape_bytes(location: str) -> str:
    """Percent-encode bytes that are not UTF-8 (they arrive as surrogate escapes): browsers send them as they are."""
    return _NOT_UTF_8.sub(lambda match: f"%{ord(match[0]) - 0xDC00:02X}", location)


def check_status(status: int, headers: Mapping[str, str], now: datetime) -> None:
    """Accept a response that should carry an image.

    Raises:
        FetchFailure: it does not.
    """
    if status in _WITH_IMAGE:
        return
    message = f"HTTP status {status}"
    if status == _TOO_MANY_REQUESTS or 500 <= status <= 599:
        reason = Reason.HTTP_TOO_MANY_REQUESTS if status == _TOO_MANY_REQUESTS else Reason.HTTP_SERVER_ERROR
        wait_s = retry_after_s(headers.get("Retry-After"), now)
        raise FetchFailure(reason, message, http_status=status, is_transient=True, retry_after_s=wait_s)
    raise FetchFailure(_final_reason(status), message, http_status=status)


def _final_reason(status: int) -> Reason:
    if status in _NOT_FOUND:
        return Reason.HTTP_NOT_FOUND
    if status in _FORBIDDEN:
        return Reason.HTTP_FORBIDDEN
    return Reason.HTTP_CLIENT_ERROR if 400 <= status <= 499 else Reason.HTTP_UNEXPECTED


def retry_after_s(header: str | None, now: datetime) -> float | None:
    """Return the seconds in a Retry-After header (RFC 9110 section 10.2.3: seconds or a date)."""
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - now).total_seconds())
