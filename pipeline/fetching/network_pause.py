"""What a fetch does where no response comes: outcomes are held, and all parts pause, until one comes from anywhere.

An outcome without an HTTP response may be the fault of this machine's network. It is held until another request has a
response, and stands then; after a pause its URL is requested again. `network_watch.py` has the rule by which the
network is suspect, `network_probe.py` the pauses.
"""

import asyncio
from typing import Protocol

from pipeline.config.fetch import FetchConfig
from pipeline.fetching.client import Client
from pipeline.fetching.jobs import Job, Run
from pipeline.fetching.local_faults import local_fault
from pipeline.fetching.network_probe import NetworkProbe
from pipeline.fetching.network_watch import NetworkWatch
from pipeline.fetching.outcome import FetchFailure, Outcome


class Fetching(Protocol):
    """The loop that is paused."""

    def finish(self, run: Run, job: Job, outcome: Outcome) -> None:
        """Record an outcome that stands."""

    def retry(self, job: Job) -> None:
        """Request a URL again."""

    def forget_failures(self) -> None:
        """Forget what was concluded about hosts while there was no network."""

    def resume(self) -> None:
        """Start jobs again."""


class NetworkPause:
    """Holds the outcomes of `runs` and pauses `loop`; create and use it within one event loop."""

    def __init__(self, config: FetchConfig, client: Client, runs: set[Run], loop: Fetching) -> None:
        self._network = NetworkWatch(config.max_silent_requests)
        self._probe = NetworkProbe(client, self._network, config.timeout_s)
        self._runs = runs
        self._loop = loop
        self._task: asyncio.Task[None] | None = None

    @property
    def is_on(self) -> bool:
        """Whether nothing may start now."""
        return self._task is not None

    def note(self, host: str, origin: str, failure: FetchFailure | None) -> None:
        """Count a request by its failure; None for a response, after which outcomes that are held stand."""
        self._network.note(host, origin, failure)
        if failure is None or failure.http_status is not None:
            was_down, self._probe.pauses = self._probe.pauses > 0, 0
            for run in [run for run in self._runs if run.held]:
                self._retry_held(run) if was_down else self._finish_held(run)

    def holds(self, outcome: Outcome) -> bool:
        """Return whether an outcome does not stand yet."""
        return outcome.reason is not None and outcome.http_status is None and self._network.silent_requests > 0

    def check(self) -> None:
        """Pause if the network is suspect."""
        if self._network.is_suspect and self._runs:
            self._start()

    def check_end(self, run: Run) -> None:
        """End a part whose last URLs had no response: after a try elsewhere, where that can be."""
        if not run.held or len(run.held) != run.part.unfinished or self.is_on:
            return
        if self._network.is_wide and self._network.origins:
            self._start()
        else:
            self._finish_held(run)

    def cancel(self) -> None:
        """End the pause: no part is left."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def _start(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._check_network())

    async def _check_network(self) -> None:
        """Go on when the network is there; stop all parts where it does not come back."""
        paused_s = 0.0
        try:
            paused_s = await self._probe.wait()
        except Exception as error:
            self._stop_all(local_fault(error) or error)
        self._task = None
        self._network.clear()
        if paused_s:
            self._loop.forget_failures()
        for run in list(self._runs):
            run.ends_at_s += paused_s
            self._retry_held(run) if paused_s else self._finish_held(run)
        self._loop.resume()

    def _finish_held(self, run: Run) -> None:
        held, run.held = run.held, []
        for job, outcome in held:
            self._loop.finish(run, job, outcome)

    def _retry_held(self, run: Run) -> None:
        held, run.held = run.held, []
        for job, _ in held:
            self._loop.retry(job)

    def _stop_all(self, error: Exception) -> None:
        self._probe.pauses = 0
        self._loop.forget_failures()
        for run in self._runs:
            run.held.clear()
            if not run.done.done():
                run.done.set_exception(error)
