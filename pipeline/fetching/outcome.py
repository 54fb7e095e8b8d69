"""The outcome of one URL: the facts of its image, or the reason of its failure."""

from dataclasses import dataclass
from datetime import datetime

from pipeline.consent.policy import Signal
from pipeline.records import Reason


class FetchFailure(Exception):
    """A URL, or one attempt at it, failed for a reason of the closed list: an expected value, raised to leave early.

    `is_transient`: the same request may succeed later. `is_before_request`: no request could be sent, which is the same
    for every URL of the authority. `is_local`: the cause is on this machine. `retry_after_s`: of Retry-After.
    `original_size` is (width, height) if the image header could be read. `refused_by` is the signal by which
    the owner, or a block list, said no.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        http_status: int | None = None,
        is_transient: bool = False,
        is_before_request: bool = False,
        is_local: bool = False,
        retry_after_s: float | None = None,
        original_size: tuple[int, int] | None = None,
        refused_by: Signal | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.http_status = http_status
        self.is_transient = is_transient
        self.is_before_request = is_before_request
        self.is_local = is_local
        self.retry_after_s = retry_after_s
        self.original_size = original_size
        self.refused_by = refused_by


@dataclass(frozen=True, slots=True)
class Outcome:
    """The columns that fetching adds to a pair; `reason` is None exactly for a success. `image` is (offset, length)."""

    reason: Reason | None = None
    error_message: str | None = None
    http_status: int | None = None
    width: int | None = None
    height: int | None = None
    original_width: int | None = None
    original_height: int | None = None
    sha256: str | None = None
    exif: str | None = None
    pdq: bytes | None = None
    pdq_quality: int | None = None
    refused_by: Signal | None = None
    consent_checked: str | None = None
    consent_said: str | None = None
    rights: str | None = None
    creator: str | None = None
    license_url: str | None = None
    image: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Checked:
    """When consent was checked, for the ledger; the facts of robots.txt are None if none was requested.

    `ended_at`: when the URL had its outcome.
    """

    at: datetime | None = None
    robots_at: datetime | None = None
    robots_status: int | None = None
    robots_sha256: str | None = None
    ended_at: datetime | None = None


def failed(failure: FetchFailure, *, http_status: int | None = None, sha256: str | None = None) -> Outcome:
    """Return the outcome of a URL that ended in `failure`."""
    width, height = failure.original_size or (None, None)
    return Outcome(
        reason=failure.reason,
        error_message=failure.message,
        http_status=failure.http_status if failure.http_status is not None else http_status,
        original_width=width,
        original_height=height,
        sha256=sha256,
        refused_by=failure.refused_by,
    )
