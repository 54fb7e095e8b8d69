"""From URLs to outcomes, inside one event loop: which request starts next, what its response means, and whether to
retry.

A URL is a job that makes one request at a time. Between two of its requests (after a redirect, before a retry, while
its host's robots.txt is fetched) it waits in the queue of the next host and holds no connection and no slot.
"""

import asyncio
import io
import logging
import time
from collections import Counter
from concurrent.futures import Executor
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

from pipeline.config.fetch import FetchConfig
from pipeline.consent.block_lists import BlockLists
from pipeline.fetching.addresses import Target, is_private_literal
from pipeline.fetching.archives import ArchiveIndex
from pipeline.fetching.client import Client, Response
from pipeline.fetching.consent import ConsentGate, check_error_page
from pipeline.fetching.decode import Stated, decode_noted
from pipeline.fetching.host_rules import HostRules
from pipeline.fetching.hosts import SHUT_S, HostSchedule
from pipeline.fetching.jobs import Job, Run, part_limit_s, target_or_failure, watch_stalls
from pipeline.fetching.local_faults import local_fault
from pipeline.fetching.network_pause import NetworkPause
from pipeline.fetching.outcome import FetchFailure, Outcome, failed
from pipeline.fetching.part import Part
from pipeline.fetching.robots import RobotRules, RobotsCache, fetch_robots
from pipeline.records import Reason

logger = logging.getLogger(__name__)

BACKOFF_S = 0.5  # before the first retry; doubled for each further one
SHUT_FROM_S = 60.0  # a longer Retry-After opens the host's circuit breaker for that time
MAX_SHUT_S = 3600.0

_TOO_MANY_REQUESTS = 429
_OF_HOST = frozenset({Reason.TIMEOUT, Reason.TLS_FAILED, Reason.DNS_FAILED})  # failures of the host, not of one URL
_ARCHIVES = ""  # the queue of jobs to look up in the archives; no host has an empty name


class FetchLoop:
    """Fetches the URLs of one or more parts at a time. Everything runs in the event loop that made it."""

    def __init__(
        self,
        config: FetchConfig,
        *,
        workers: int,
        client: Client,
        decoders: Executor,
        archives: ArchiveIndex | None,
        block_lists: BlockLists,
    ) -> None:
        self._config = config
        self._gate = ConsentGate(config, client, block_lists)
        self._workers = workers
        self._client = client
        self._decoders = decoders
        self._archives = archives
        self._loop = asyncio.get_running_loop()
        self._robots = RobotsCache()
        self._robots_failures: Counter[str] = Counter()
        self._rules = HostRules(config)
        self._schedule: HostSchedule[Job] = HostSchedule(
            self._rules.limits, workers, self._must_be_alone, unpaced=_ARCHIVES
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._runs: set[Run] = set()
        self._pause = NetworkPause(config, client, self._runs, self)
        self._timer: asyncio.TimerHandle | None = None

    async def run(self, part: Part) -> None:
        """Give every URL of `part` that has none yet its outcome."""
        targets = [(number, target_or_failure(url)) for number, url in part.pending()]
        limit_s = part_limit_s([t for _, t in targets if isinstance(t, Target)], self._config)
        run = Run(part, self._loop.time() + limit_s, self._loop.create_future())
        expiry = self._loop.create_task(self._expire(run))
        watch = self._loop.create_task(watch_stalls(part.stats))
        self._runs.add(run)
        for origin, (rules, fetched_at_s) in part.journal.robots.items():
            self._robots.put(origin, rules, self._loop.time() - (time.time() - fetched_at_s))
        try:
            for number, target in targets:
                if isinstance(target, Target):
                    self._enqueue(Job(run, number, target, self._config.timeout_s))
                else:
                    part.finish(number, failed(target))
            if part.unfinished:
                self._start_ready()
                await run.done
        finally:
            expiry.cancel()
            watch.cancel()
            self._runs.discard(run)
            self._schedule.remove(lambda job: job.run is run)
            self._schedule.forget_idle(self._loop.time())
            if not self._runs:
                self._pause.cancel()

    async def close(self) -> None:
        """Cancel the requests that parts left behind when they were stopped."""
        left = list(self._tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def _start_ready(self) -> None:
        """Start all jobs that may start, and schedule a wake-up for the next one."""
        while len(self._tasks) < self._config.concurrency and not self._pause.is_on:
            now_s = self._loop.time()
            taken = self._schedule.take(now_s)
            if taken is None:
                break
            host, job = taken
            if self._schedule.is_shut(host, now_s):
                self._schedule.release(host)
                self._end(job, _unavailable("the host kept failing, or sent a long Retry-After"))
                continue
            task = self._loop.create_task(self._attempt(host, job))
            self._tasks.add(task)
            task.add_done_callback(partial(self._on_attempt_done, job.run))
        self._schedule_wakeup(self._schedule.next_start_s())

    def _schedule_wakeup(self, at_s: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if at_s is None or len(self._tasks) == self._config.concurrency or self._pause.is_on:
            return
        if not self._tasks:  # do not wait where it is clear that nothing will start in time
            for run in [run for run in self._runs if run.ends_at_s < at_s]:
                self._give_up(run)
        self._timer = self._loop.call_at(at_s, self._start_ready)

    def _on_attempt_done(self, run: Run, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not run.done.done():
            run.done.set_exception(local_fault(error) or error)
        self._pause.check()
        self._start_ready()

    async def _attempt(self, host: str, job: Job) -> None:
        """Make one request for a job, then end it or queue it again."""
        try:
            response = await (self._look_up(job) if host == _ARCHIVES else self._request(host, job))
            if response is not None:
                await self._gate.check_licence(job.consent, job.target.url, response)
        except FetchFailure as failure:
            self._retry_or_end(job, failure)
            return
        finally:
            self._schedule.release(host)
        if response is None:
            self._enqueue(job)
            return
        assert response.body is not None
        job.consent.times = replace(job.consent.times, ended_at=datetime.now(UTC))
        outcome = await self._loop.run_in_executor(
            self._decoders,
            decode_noted,
            job.run.part.journal,
            job.run.part.urls[job.number],
            response.body,
            response.status,
            self._config,
            self._gate.block_lists,
            job.consent,
            Stated(job.run.part.hashes.get(job.number, frozenset())),
        )
        if outcome.reason == Reason.BOT_WALL and host != _ARCHIVES:
            self._schedule.shut(host, self._loop.time() + SHUT_S)
        if not job.run.done.done():
            job.run.part.finish_kept(job.number, outcome, job.consent.times)
            self._check_end(job.run)

    async def _look_up(self, job: Job) -> Response | None:
        """Return the recorded response with an image file, or None where the job goes on elsewhere."""
        assert self._archives is not None
        job.is_looked_up = True
        find, max_bytes = self._archives.get, self._config.max_bytes
        wants_body = partial(self._gate.wants_body, job.consent, True)
        recorded = await self._loop.run_in_executor(self._decoders, find, job.target.url, max_bytes, wants_body)
        if recorded is None:
            return None
        if recorded.body is not None:
            return Response(recorded.status, recorded.headers, io.BytesIO(recorded.body))
        job.redirect(recorded.headers, self._config.max_redirects)
        return None

    async def _request(self, host: str, job: Job) -> Response | None:
        """Return the response with an image file, or None where the job goes on elsewhere (or here, later)."""
        started_s = self._loop.time()
        rules = self._robots.get(job.target.origin, started_s)
        if rules is None:
            await self._fetch_rules(host, job)
            return None
        self._schedule.set_crawl_delay(host, rules.crawl_delay_s)
        if rules.is_large:
            await asyncio.to_thread(self._gate.check_rules, job.consent, rules, job.target.url)
        else:
            self._gate.check_rules(job.consent, rules, job.target.url)
        job.run.part.stats.requests += 1
        try:
            response = await self._client.get(
                job.target,
                budget_s=job.left_s,
                max_bytes=self._config.max_bytes,
                wants_body=partial(self._gate.wants_body, job.consent, False),
                scratch_dir=job.run.part.scratch_dir,
                close_connection=self._config.gateway is None and self._schedule.queued(host) == 0,
            )
            check_error_page(response, self._config.consent)
        except FetchFailure as failure:
            self._note_failure(host, job.target.origin, failure)
            if failure.reason in (Reason.BOT_WALL, Reason.PAYMENT_REQUIRED):  # it turns us away: let it rest
                self._schedule.shut(host, self._loop.time() + SHUT_S)
            raise
        finally:
            job.left_s -= self._loop.time() - started_s
        self._note_response(host, job.target.origin)
        if response.body is not None:
            return response
        job.redirect(response.headers, self._config.max_redirects)
        return None

    def _must_be_alone(self, job: Job) -> bool:
        """Until a host's rules are known, one job fetches them and the others wait."""
        return job.is_looked_up and self._robots.get(job.target.origin, self._loop.time()) is None

    async def _fetch_rules(self, host: str, job: Job) -> None:
        origin = job.target.origin
        try:
            rules = await fetch_robots(self._client, origin, self._config)
        except FetchFailure as failure:
            self._note_failure(host, origin, failure)
            self._robots_failures[origin] += 1
            tries = self._robots_failures[origin]
            if failure.is_transient and tries <= self._config.retries:
                self._schedule.postpone(host, self._loop.time() + BACKOFF_S * 2 ** (tries - 1))
                return
            rules = RobotRules.refusing(self._config.agent, failure)
        else:
            self._note_response(host, origin)
            rules = await self._gate.follow(origin, rules, self._rules.limits(host).shared(self._workers).interval_s)
        del self._robots_failures[origin]
        self._robots.put(origin, rules, self._loop.time())
        if not job.run.done.done():
            job.run.part.journal.add_robots(origin, rules)
        self._schedule.set_crawl_delay(host, rules.crawl_delay_s)

    def _note_response(self, host: str, origin: str) -> None:
        self._schedule.record(host, self._loop.time(), is_failure=False)
        self._pause.note(host, origin, None)

    def _note_failure(self, host: str, origin: str, failure: FetchFailure) -> None:
        """Back off from a host that is failing or sent Retry-After."""
        now_s = self._loop.time()
        self._pause.note(host, origin, failure)
        is_of_host = failure.is_transient or failure.reason in _OF_HOST
        self._schedule.record(host, now_s, is_failure=is_of_host)
        if failure.http_status == _TOO_MANY_REQUESTS:
            self._schedule.slow_down(host)
        wait_s = failure.retry_after_s or 0.0
        if wait_s > SHUT_FROM_S:
            self._schedule.shut(host, now_s + min(wait_s, MAX_SHUT_S))
        elif wait_s:
            self._schedule.postpone(host, now_s + wait_s)

    def _retry_or_end(self, job: Job, failure: FetchFailure) -> None:
        wait_s = BACKOFF_S * 2**job.retries if failure.retry_after_s is None else failure.retry_after_s
        if failure.is_transient and job.retries < self._config.retries and wait_s < job.left_s:
            job.retries += 1
            job.left_s -= wait_s
            self._enqueue(job, self._loop.time() + wait_s)
        else:
            self._end(job, failed(failure))

    def _enqueue(self, job: Job, not_before_s: float = 0.0) -> None:
        """Queue the next request of a job where it belongs, or end the job."""
        try:
            self._gate.check_lists(job.consent, job.target)
        except FetchFailure as failure:
            self._end(job, failed(failure))
            return
        if not self._config.allow_private_hosts and is_private_literal(job.target.host):
            message = f"{job.target.host} is not on the public Internet"
            self._end(job, failed(FetchFailure(Reason.PRIVATE_ADDRESS, message)))
        elif self._archives is not None and not job.is_looked_up:
            self._schedule.add(_ARCHIVES, job)
        elif not self._config.network:
            self._end(
                job, failed(FetchFailure(Reason.NOT_IN_ARCHIVES, "not in the archives, and fetch.network is false"))
            )
        elif self._loop.time() >= job.run.ends_at_s:
            self._end(job, _unavailable("its turn did not come before the part's time limit"))
        else:
            job.is_looked_up = True
            self._schedule.add(
                job.target.host, job, not_before_s, is_planned=job.redirects == 0 and job.run.part.owns_hosts
            )

    def _end(self, job: Job, outcome: Outcome) -> None:
        run = job.run
        if run.done.done():  # a fault of this machine, or a bug, ended the run before its last URL
            return
        if self._pause.holds(outcome):
            run.held.append((job, outcome))
        else:
            self.finish(run, job, outcome)
        self._check_end(run)

    def _check_end(self, run: Run) -> None:
        if run.part.unfinished == 0 and not run.done.done():
            run.done.set_result(None)
        self._pause.check_end(run)

    def finish(self, run: Run, job: Job, outcome: Outcome) -> None:
        """Record the outcome of a job that needed no file."""
        times = replace(job.consent.times, ended_at=datetime.now(UTC))
        run.part.finish(job.number, job.consent.add_to(outcome), checked=times)
        if run.part.unfinished == 0 and not run.done.done():
            run.done.set_result(None)

    def retry(self, job: Job) -> None:
        """Request again what failed while there was no network."""
        job.retries, job.left_s = 0, self._config.timeout_s
        self._enqueue(job)

    def resume(self) -> None:
        """Start again after a pause."""
        self._start_ready()

    def forget_failures(self) -> None:
        """Forget what was concluded about hosts while there was no network."""
        self._robots.forget_failures()
        self._robots_failures.clear()
        self._schedule.reopen()

    async def _expire(self, run: Run) -> None:
        """Give up what waits when the time of a part is over."""
        while (left_s := run.ends_at_s - self._loop.time()) > 0 or self._pause.is_on:
            await asyncio.sleep(max(left_s, 1.0))
        self._give_up(run)

    def _give_up(self, run: Run) -> None:
        for job in self._schedule.remove(lambda job: job.run is run):
            self._end(job, _unavailable("its turn did not come before the part's time limit"))


def _unavailable(message: str) -> Outcome:
    return failed(FetchFailure(Reason.HOST_UNAVAILABLE, message))
