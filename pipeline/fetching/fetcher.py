"""Fetch the images of a part of the plan: the entry to this package.

    with Fetcher(config.fetch, workers=8) as fetcher:
        table = fetcher.fetch_part(plan, tar_stream=tar, scratch_dir=folder)

One `Fetcher` per process: it keeps what parts have in common (event loop, connections, what it knows about hosts).
"""

import asyncio
import logging
import os
import resource
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from pathlib import Path
from typing import BinaryIO, Self

import pyarrow as pa
import uvloop

from pipeline.config.fetch import FetchConfig
from pipeline.consent.block_lists import BlockLists
from pipeline.fetching.archives import ArchiveIndex
from pipeline.fetching.client import Client
from pipeline.fetching.earlier import EarlierPart, reuse
from pipeline.fetching.fetch_loop import FetchLoop
from pipeline.fetching.journal import Journal
from pipeline.fetching.outcome import Checked, Outcome
from pipeline.fetching.part import Part, PartStats
from pipeline.fetching.signing import Signer
from pipeline.fetching.stored_images import take_stored

logger = logging.getLogger("wit.fetch")  # not one of pipeline.*, whose lines stand on the screen

_OPEN_FILES = 4_096


class Fetcher:
    """Fetches parts; may be used from several threads."""

    def __init__(
        self,
        config: FetchConfig,
        *,
        workers: int = 1,
        archives: ArchiveIndex | None = None,
        block_lists: BlockLists | None = None,
        tars: Mapping[str, str] | None = None,
        signer: Signer | None = None,
    ) -> None:
        """Start the event loop in a thread of its own.

        `workers` is how many processes fetch at the same time, everywhere together: the request limits of a host
        are divided among them. `archives` is the index of `config.archives`; the caller keeps it open. `block_lists`
        are those of `config.consent`. `tars` has the path of each source that holds images itself. `signer` signs
        all requests.
        """
        if config.archives and archives is None:
            raise ValueError("config.archives is set, but there is no index of them")
        _allow_open_files(2 * config.concurrency + _OPEN_FILES)
        self.stats = PartStats()  # of the last part
        self._config = config
        self._block_lists = block_lists or BlockLists()
        self._tars = dict(tars or {})
        self._signer = signer
        self._decoders = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // workers), "decode")
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fetch", daemon=True)
        self._thread.start()
        self._client, self._fetch_loop = asyncio.run_coroutine_threadsafe(
            self._open(workers, archives, self._block_lists), self._loop
        ).result()

    async def _open(
        self, workers: int, archives: ArchiveIndex | None, block_lists: BlockLists
    ) -> tuple[Client, FetchLoop]:
        client = Client(self._config, self._signer)
        return client, FetchLoop(
            self._config,
            workers=workers,
            client=client,
            decoders=self._decoders,
            archives=archives,
            block_lists=block_lists,
        )

    def fetch_part(
        self,
        plan: pa.Table,
        *,
        tar_stream: BinaryIO,
        scratch_dir: Path,
        earlier: Iterable[EarlierPart] = (),
        crawled: Iterable[tuple[str, Outcome, Checked | None, bytes | None]] = (),
        keep_ledger: Callable[[pa.Table], None] | None = None,
        journal: Journal | None = None,
        owns_hosts: bool = True,
    ) -> pa.Table:
        """Fetch every distinct URL of `plan` (schema `PLAN`) once, and return one row per pair, in plan order.

        Writes `<uid>.jpg` (or the suffix of another format) for each pair whose image is good into a tar on
        `tar_stream`, in plan order. `scratch_dir` must be local and have room for the images of the part; nothing stays
        there. The table's schema is `FETCHED`.
        URLs that `earlier` or `crawled` has, or `journal` had when it was opened, are not requested; the caller closes
        `journal`.
        `owns_hosts`: no other process has URLs of these hosts, so their limits need not be divided.
        `keep_ledger` is given when consent was looked for (schema `LEDGER`).
        """
        with nullcontext(journal) if journal is not None else closing(Journal.unnamed(scratch_dir)) as kept:
            part = Part(plan, kept, scratch_dir, owns_hosts=owns_hosts)
            for url, outcome, checked, image in crawled:
                part.finish_url(url, outcome, image, checked)
            for known in earlier:
                reuse(part, known)
            take_stored(part, self._tars, self._config, self._block_lists, self._decoders)
            self._run(part)
            part.write_tar(tar_stream)
            if keep_ledger is not None:
                keep_ledger(part.ledger())
            return part.table()

    def fetch_urls(self, urls: pa.Table, scratch_dir: Path, journal: Journal) -> Part:
        """Fetch every URL (columns `url`, `stated_hash`; a row for each hash) that `journal` does not have; no other
        process has URLs of their hosts.

        The part's images lie in `journal`.
        """
        part = Part(urls, journal, scratch_dir)
        self._run(part)
        return part

    def _run(self, part: Part) -> None:
        running = asyncio.run_coroutine_threadsafe(self._fetch_loop.run(part), self._loop)
        try:
            running.result()
        finally:
            running.cancel()
        self.stats = part.stats
        logger.info(
            "fetched %d URLs with %d requests; the longest stall of the event loop was %.2f s",
            len(part.urls),
            part.stats.requests,
            part.stats.longest_stall_s,
        )

    def close(self) -> None:
        """Close all connections and end the threads."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._decoders.shutdown()

    async def _end(self) -> None:
        await self._fetch_loop.close()
        await self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _allow_open_files(count: int) -> None:
    """Raise this process's limit of open files, as far as it may itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
