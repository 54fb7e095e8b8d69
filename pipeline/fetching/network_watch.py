"""Detect that this machine has lost its network, before all URLs of a part have failed.

The rule: when `max_silent_requests` requests in a row, to at least `MIN_HOSTS` hosts, had no HTTP response, the network
is suspect; if no DNS server of this machine can be reached, at once. Then one of the hosts that responded before is
tried. If it responds, the silent hosts are dead. If not, or if none has responded yet, the fetch pauses, tries again,
and stops after the last pause.
"""

from collections import deque

from pipeline.fetching.outcome import FetchFailure
from pipeline.records import Reason

MIN_HOSTS = 5
PAUSES_S = (10.0, 30.0, 60.0)

_NO_RESPONSE = frozenset({Reason.DNS_FAILED, Reason.CONNECT_FAILED, Reason.TIMEOUT})
_ORIGINS = 3


class NetworkWatch:
    """Counts requests without a response since the last HTTP response from anywhere. No clock and no I/O."""

    def __init__(self, max_silent_requests: int) -> None:
        self._limit = max_silent_requests
        self._hosts: set[str] = set()
        self._has_resolver = True
        self.silent_requests = 0
        self.origins: deque[str] = deque(maxlen=_ORIGINS)  # that responded most recently

    def note(self, host: str, origin: str, failure: FetchFailure | None) -> None:
        """Count a request by its failure; None for a response."""
        if failure is None or failure.http_status is not None:
            self.clear()
            if origin not in self.origins:
                self.origins.append(origin)
        elif failure.reason in _NO_RESPONSE or (failure.reason is Reason.PROTOCOL_ERROR and failure.is_transient):
            self.silent_requests += 1
            self._hosts.add(host)
            self._has_resolver &= not failure.is_local

    def clear(self) -> None:
        """Reset the counts."""
        self.silent_requests = 0
        self._hosts.clear()
        self._has_resolver = True

    @property
    def is_suspect(self) -> bool:
        """Whether the network of this machine may be down."""
        return self._limit > 0 and (not self._has_resolver or (self.silent_requests >= self._limit and self.is_wide))

    @property
    def is_wide(self) -> bool:
        """Whether enough hosts are silent to try one that is known to respond."""
        return self._limit > 0 and len(self._hosts) >= MIN_HOSTS

    def __str__(self) -> str:
        return f"{self.silent_requests} requests to {len(self._hosts)} hosts in a row had no HTTP response"
