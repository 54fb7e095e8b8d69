"""Find out whether the network of this machine is there, by requests to authorities that responded before."""

import asyncio
import logging

from pipeline.errors import NetworkError
from pipeline.fetching.addresses import Target
from pipeline.fetching.client import Client
from pipeline.fetching.network_watch import PAUSES_S, NetworkWatch
from pipeline.fetching.outcome import FetchFailure

logger = logging.getLogger(__name__)

_NO_NETWORK = (
    "fetch stopped: {}, and none came after several tries: this machine seems to have no network; run again when it "
    "has: finished work is kept. If these hosts no longer exist, set fetch.max_silent_requests = 0"
)


class NetworkProbe:
    """Tries, and pauses between tries; `pauses` counts those since the last response."""

    def __init__(self, client: Client, watch: NetworkWatch, timeout_s: float) -> None:
        self._client = client
        self._watch = watch
        self._timeout_s = timeout_s
        self.pauses = 0

    async def wait(self) -> float:
        """Return after how many seconds to try again; 0 where the network was there all the time.

        Raises:
            NetworkError: it does not come back.
        """
        paused_s = 0.0
        while not await self._is_there():
            if self.pauses == len(PAUSES_S):
                raise NetworkError(_NO_NETWORK.format(self._watch))
            pause_s = PAUSES_S[self.pauses]
            logger.warning("%s: trying again in %g s", self._watch, pause_s)
            await asyncio.sleep(pause_s)
            paused_s += pause_s
            self.pauses += 1
            if not self._watch.origins:
                break  # only more requests can tell
        return paused_s

    async def _is_there(self) -> bool:
        """Request the robots.txt of an authority that responded before."""
        for origin in list(self._watch.origins):
            try:
                await self._client.get(
                    Target.parse(f"{origin}/robots.txt"),
                    budget_s=self._timeout_s,
                    max_bytes=0,
                    wants_body=lambda *_: False,
                )
            except FetchFailure as failure:
                if failure.http_status is None:
                    continue
            return True
        return False
