"""Which failures of an earlier fetch may be requested again: `wit build --retry`.

Only those that another time may mend. What a server, an owner or a list said stays: 404 and 410, opt-outs, robots.txt,
and what is wrong with the URL or the image itself.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.account import Account
from pipeline.errors import ConfigError
from pipeline.records import Reason

RETRYABLE = (
    Reason.DNS_FAILED,
    Reason.CONNECT_FAILED,
    Reason.TLS_FAILED,
    Reason.PROTOCOL_ERROR,
    Reason.TIMEOUT,
    Reason.TRUNCATED,
    Reason.HTTP_TOO_MANY_REQUESTS,
    Reason.HTTP_SERVER_ERROR,
    Reason.HOST_UNAVAILABLE,
    Reason.ROBOTS_UNREACHABLE,
)
DEFAULT_AGE = "1h"
"""So that a retry that was stopped and is run again does not repeat its requests."""

_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400}


@dataclass(frozen=True)
class Retry:
    """Failures to request again: their reasons, and the time before which they must have happened."""

    reasons: tuple[str, ...]
    before: datetime

    @classmethod
    def parse(cls, reasons: str, older_than: str = DEFAULT_AGE) -> "Retry":
        """Read the options of `wit build`: "timeout,dns_failed" and "12h".

        Raises:
            ConfigError: an unknown reason, one that is never requested again, or no duration.
        """
        names = tuple(sorted({name.strip() for name in reasons.split(",") if name.strip()}))
        for name in names or ("",):
            if name not in RETRYABLE:
                kind = "is never requested again" if name in set(Reason) else "is not the reason of a failure"
                raise ConfigError(f"--retry: {name!r} {kind}; choose from {', '.join(RETRYABLE)}")
        age = re.fullmatch(r"(\d{1,6})([smhdw])", older_than)
        if age is None:
            raise ConfigError(f"--retry-older-than: {older_than!r} is not a duration such as 30m, 12h or 7d")
        return cls(names, datetime.now(UTC) - timedelta(seconds=int(age[1]) * _UNITS_S[age[2]]))

    def urls(self, rows: pa.Table, ledger: pa.Table | None) -> set[str]:
        """Return the URLs of a fetched part to request again; `ledger` says when each had its outcome."""
        failed = rows.filter(pc.is_in(rows["reason"], pa.array(self.reasons, pa.string())))
        urls = set(failed["url"].to_pylist())
        if ledger is None or "ended_at" not in ledger.column_names:
            return urls
        young = ledger.filter(pc.greater(ledger["ended_at"], pa.scalar(self.before, ledger["ended_at"].type)))
        return urls - set(young["url"].to_pylist())


def describe_retry(account: Account) -> list[str]:
    """Say which failures of a fetch could be requested again."""
    fetched = next((stage for stage in account.stages if stage.stage == "fetched"), None)
    found = {reason: fetched.reasons[reason] for reason in RETRYABLE if fetched and fetched.reasons.get(reason)}
    if not found:
        return []
    counts = ", ".join(f"{reason} {count:,}" for reason, count in sorted(found.items(), key=lambda item: -item[1]))
    return [
        f"{sum(found.values()):,} pairs failed for reasons that may pass ({counts}): "
        f"`wit build --retry {','.join(found)}` requests them again"
    ]
