"""plan/ -> fetched/: request every planned image once; one tar and one Parquet per part, a row for every planned pair.

Beside them, consent/ records when each URL's consent was checked. It is not an output of the unit: two fetches have
different times, and no later stage reads it.

The unit is a plan part. One process requests the URLs of one part after the other, two parts at a time. Several
processes share the hosts and not the parts: crawl.py requests all URLs first, and the parts are put together from that.
The fetcher of a process (event loop, connections, robots and DNS caches) is kept between units.
"""

import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.beam.runner import worker_count
from pipeline.config import Config
from pipeline.config.fetch import FetchConfig
from pipeline.engine.run import Build, run_units
from pipeline.engine.units import (
    Marker,
    Unit,
    UnitOutput,
    Work,
    digest,
    discard_stale,
    marker_name,
    read_markers,
    unfinished,
    unit_of,
)
from pipeline.engine.workspace import Workspace
from pipeline.errors import UserError
from pipeline.fetching.archives import ArchiveIndex, index_folder
from pipeline.fetching.block_files import BlockFiles, find_all_lists, read_block_lists
from pipeline.fetching.earlier import EarlierPart, reusable_urls
from pipeline.fetching.fetcher import Fetcher
from pipeline.fetching.host_cut import cut_hosts
from pipeline.fetching.host_rules import HostRules
from pipeline.fetching.retry import Retry
from pipeline.fetching.signing import SigningKey, find_signing_key
from pipeline.private_folder import scratch_folder
from pipeline.records import FETCHED, Reason
from pipeline.stages.crawl import (
    Crawl,
    Wanted,
    crawl_step,
    crawls_begun,
    cut_table,
    keep_cut,
    load_crawl,
    read_wanted,
    remove_crawls,
    run_crawl,
    write_outcomes,
)
from pipeline.stages.earlier_fetches import (
    EARLIER,
    FROM_ARCHIVES,
    FetchSettings,
    earlier_parts,
    ledger_of,
    open_earlier,
    retried_urls,
    stash_for_retry,
    stash_for_reuse,
)
from pipeline.stages.journals import JOURNALS, Journals
from pipeline.stages.ledger import drop_ledgers, keep_ledger
from pipeline.stages.plan import part_names, read_hosts
from pipeline.stages.source_files import source_files

VERSION = 2
"""Raise it when the same responses would give other bytes."""


def check_fetched(workspace: Workspace, config: Config, base_dir: Path) -> None:
    """Fail if continuing would discard images fetched from the web.

    Raises:
        UserError: parts in fetched/ were fetched with other settings.
    """
    settings = FetchSettings.of(config, base_dir, VERSION)
    made = {name: marker.digest for name, marker in read_markers(workspace, "fetched").items()}
    made |= {unit_of(name): name.split("/")[2] for name in workspace.sizes(EARLIER)}
    others = [name for name, how in made.items() if not how.startswith((settings.name, FROM_ARCHIVES))]
    others += [name for name in crawls_begun(workspace) if not name.startswith(settings.short_name)]
    if others:
        raise UserError(
            f"{len(others)} parts in fetched/ were fetched with other settings (keys of [fetch] that change the stored "
            "images, fetch.parts, or seed); undo the change, build in another workspace, or add --refetch to fetch "
            "everything again"
        )


def run_fetched(
    build: Build, config: Config, base_dir: Path, plan: Marker, refetch: bool, retry: Retry | None = None
) -> dict[str, Marker]:
    """Fill fetched/; return the markers by part name.

    If another plan was fetched with the same settings, only new URLs are requested, unless `refetch`; with `retry`
    also those that failed for its reasons.
    """
    settings = FetchSettings.of(config, base_dir, VERSION)
    digests = settings.part_digests(plan)
    if refetch:
        build.workspace.remove_folder(EARLIER)
    else:
        stash_for_reuse(
            build.workspace, settings, {unit_of(name): unit_digest for name, unit_digest in digests.items()}
        )
    if retry is not None:
        count = stash_for_retry(build.workspace, settings, retry)
        build.progress.say(f"retry          {count:,} URLs that failed with {', '.join(retry.reasons)}")
    earlier = earlier_parts(build.workspace, settings, [unit_of(name) for name in digests])
    parts = [
        _PlannedPart(
            number,
            name,
            plan.outputs[name].sha256,
            tuple(earlier.get(unit_of(name), [])),
            _journal_key(settings, digests[name], earlier.get(unit_of(name), []), refetch, retry),
            retry,
        )
        for number, name in enumerate(digests)
    ]
    units = [Unit(unit_of(part.name), digests[part.name], part) for part in parts]
    block_files = find_all_lists(config.fetch.consent, base_dir, build.workspace)
    tars = {file.name: file.path for file in source_files(config, base_dir, build.workspace, ("webdataset",))}
    crawl = _find_crawl(build, config, settings, plan, units, refetch)
    workers = 1 if crawl is None else crawl.cut.groups
    signing_key = find_signing_key(config.fetch, base_dir)
    fetcher = _OpenFetcher(config.fetch, settings, workers, block_files, tars, signing_key)
    try:
        if crawl is not None:
            _crawl(build, crawl, units, fetcher)
        elif _requests(config):
            units = [replace(unit, chain="parts") for unit in units]
        markers = run_units(build, "fetched", units, _OpenParts(fetcher, crawl), at_once=2)
    except UserError:
        for step in ("fetched", *([crawl_step(crawl.name)] if crawl is not None else [])):
            _withdraw_silent(build.workspace, step)
        raise
    drop_ledgers(build.workspace, markers.keys())
    build.workspace.remove_folder(EARLIER)
    build.workspace.remove_folder(JOURNALS)
    remove_crawls(build.workspace)
    return markers


def _journal_key(
    settings: FetchSettings, unit_digest: str, earlier: Sequence[str], refetch: bool, retry: Retry | None
) -> str:
    """Return what the outcomes in a journal depend on, beside their URLs."""
    if refetch:
        return unit_digest
    return settings.name if retry is None else f"{settings.name}-{digest(list(earlier), retry.reasons)}"


def _find_crawl(
    build: Build, config: Config, settings: FetchSettings, plan: Marker, units: Sequence[Unit], refetch: bool
) -> Crawl | None:
    """Return the crawl to begin or to go on with; None where one process fetches everything, part by part.

    Raises:
        UserError: the crawl of another plan is not finished.
    """
    retried = [unit.payload.journal_key for unit in units] if units and units[0].payload.retry is not None else None
    planned = digest(sorted((name, plan.outputs[name].sha256) for name in part_names(plan)), retried)
    name = f"{settings.short_name}-{planned[:8]}"
    begun = crawls_begun(build.workspace)
    if begun and (refetch or not unfinished(build.workspace, "fetched", units)):
        remove_crawls(build.workspace)
        begun = []
    if begun and begun != [name]:
        raise UserError(
            "images of another plan (or of another --retry) are being fetched, and not yet in fetched/; undo the "
            "change and finish that build, or add --refetch to fetch everything again"
        )
    cut = cut_table(build.workspace, name)
    if cut is None:
        workers = worker_count(build.options)
        if workers == 1 or not _requests(config) or not unfinished(build.workspace, "fetched", units):
            return None
        hosts = read_hosts(build.workspace)
        largest = list(zip(hosts["host"].to_pylist(), hosts["urls"].to_pylist(), strict=True))
        cut = cut_hosts(largest, plan.counts["kept"], workers, HostRules(config.fetch).limits)
        if cut.groups == 1:
            return None
        keep_cut(build.workspace, name, cut)
    return Crawl(name, cut, len(units))


def _requests(config: Config) -> bool:
    return config.fetch.network and config.requests_images


def _crawl(build: Build, crawl: Crawl, units: Sequence[Unit], fetcher: "_OpenFetcher") -> None:
    """Request the URLs of the parts that are not done."""
    done = discard_stale(build.workspace, "fetched", units)
    parts = [replace(unit.payload, is_done=unit.name in done) for unit in units]
    run_crawl(build, crawl, parts, _OpenCrawl(fetcher))


_SILENT = frozenset(
    {Reason.DNS_FAILED, Reason.CONNECT_FAILED, Reason.TIMEOUT, Reason.ROBOTS_UNREACHABLE, Reason.HOST_UNAVAILABLE}
)


def _withdraw_silent(workspace: Workspace, step: str) -> None:
    """Discard the units of a stopped run in which no URL had a response: this machine's network may have been down.

    Small parts end before their process has enough requests to detect that.
    """
    silent = [
        name
        for name, marker in read_markers(workspace, step).items()
        if 0 < marker.counts["inputs"] == sum(marker.counts.get(reason, 0) for reason in _SILENT)
    ]
    workspace.remove(marker_name(step, name) for name in silent)


@dataclass(frozen=True)
class _PlannedPart:
    """One work unit: a plan part, plus results already fetched for it under earlier plans."""

    number: int
    name: str
    sha256: str
    earlier: tuple[str, ...]
    journal_key: str
    retry: Retry | None = None
    is_done: bool = False

    def wanted(self, workspace: Workspace) -> pa.Table:
        """Return the URLs that are to be requested, with the hashes that are stated of each; see `PlannedUrls`."""
        plan = workspace.read_table(self.name, ["url", "stated_hash", "image_bytes"])
        in_tars = pc.unique(plan["url"].filter(pc.is_valid(plan["image_bytes"])))
        rows = plan.filter(pc.invert(pc.is_in(plan["url"], in_tars))).select(["url", "stated_hash"])
        if self.is_done:
            return rows.slice(0, 0)
        rows = rows.group_by(["url", "stated_hash"], use_threads=False).aggregate([])
        hashes: dict[str, frozenset[str]] = {}
        for row in rows.filter(pc.is_valid(rows["stated_hash"])).to_pylist():
            hashes[row["url"]] = hashes.get(row["url"], frozenset()) | {row["stated_hash"]}
        for name in self.earlier:
            earlier = workspace.read_table(f"{name}.parquet")
            known = pa.array(sorted(reusable_urls(earlier, hashes, self._retried(workspace, name))), pa.string())
            rows = rows.filter(pc.invert(pc.is_in(rows["url"], known)))
        return rows

    def open_earlier(self, workspace: Workspace) -> Iterator[EarlierPart]:
        for name in self.earlier:
            rows, tar = open_earlier(workspace, name)
            with tar:
                yield EarlierPart(rows, tar, self._retried(workspace, name))

    def _retried(self, workspace: Workspace, name: str) -> frozenset[str]:
        return frozenset() if self.retry is None else retried_urls(workspace, name, unit_of(self.name), self.retry)


def _key_of_files(plan: pa.Table) -> str:
    """Return what the outcomes of a part depend on beside its URLs: where images are, and which hashes they must have.

    Empty where every image is on the web, without a hash.
    """
    about = plan.select(["url", "source", "source_offset", "image_bytes", "stated_hash"])
    about = about.filter(pc.or_(pc.is_valid(about["image_bytes"]), pc.is_valid(about["stated_hash"])))
    return f"-{digest(about.to_pydict())}" if about.num_rows else ""


@dataclass(frozen=True)
class _OpenFetcher:
    config: FetchConfig
    settings: FetchSettings
    workers: int
    block_files: BlockFiles
    tars: Mapping[str, str]
    signing_key: SigningKey | None

    def open_fetcher(self) -> Fetcher:
        recorded = self.settings.archives
        archives = ArchiveIndex(index_folder(recorded, self.settings.recorded)) if recorded else None
        block_lists = read_block_lists(self.block_files)
        return Fetcher(
            self.config,
            workers=self.workers,
            archives=archives,
            block_lists=block_lists,
            tars=self.tars,
            signer=None if self.signing_key is None else self.signing_key.open(),
        )


@dataclass(frozen=True)
class _OpenParts:
    fetcher: _OpenFetcher
    crawl: Crawl | None

    def open(self) -> Work:
        fetcher = self.fetcher.open_fetcher()
        work = _FetchPart(fetcher, self.crawl, Journals("fetched"))
        weakref.finalize(work, fetcher.close)
        return work


@dataclass(frozen=True)
class _OpenCrawl:
    fetcher: _OpenFetcher

    def open(self) -> Work:
        fetcher = self.fetcher.open_fetcher()
        work = _CrawlUnit(fetcher, self.fetcher.settings.name)
        weakref.finalize(work, fetcher.close)
        return work


@dataclass(frozen=True, eq=False)
class _FetchPart:
    """Fetch a part, or put it together from a crawl. What a crawl does not have, because a file of it was damaged, is
    requested here."""

    fetcher: Fetcher
    crawl: Crawl | None
    journals: Journals

    def run(self, part: _PlannedPart, output: UnitOutput) -> Mapping[str, int]:
        workspace, stem = output.workspace, unit_of(part.name)
        plan = workspace.read_table(part.name, sha256=part.sha256)
        with (
            scratch_folder("fetch") as scratch,
            self.journals.opened(workspace, stem, part.journal_key + _key_of_files(plan), Path(scratch)) as journal,
            output.create(f"fetched/{stem}.tar") as tar,
        ):
            rows = self.fetcher.fetch_part(
                plan,
                tar_stream=cast(BinaryIO, tar),
                scratch_dir=Path(scratch),
                earlier=part.open_earlier(workspace),
                crawled=self.crawl.outcomes(workspace, part.number) if self.crawl is not None else (),
                keep_ledger=partial(
                    keep_ledger, workspace, f"consent/{stem}.parquet", plan, earlier=[*map(ledger_of, part.earlier)]
                ),
                journal=journal,
                owns_hosts=self.crawl is None,
            )
        output.write_table(f"fetched/{stem}.parquet", rows.cast(FETCHED))
        return count_outcomes(rows)


@dataclass(frozen=True, eq=False)
class _CrawlUnit:
    """Request what one group of hosts has in one window."""

    fetcher: Fetcher
    settings: str
    crawls: dict[str, Crawl] = field(default_factory=dict)
    journals: dict[str, Journals] = field(default_factory=dict)

    def run(self, wanted: Wanted, output: UnitOutput) -> Mapping[str, int]:
        crawl = self.crawls.get(wanted.name)
        if crawl is None:
            crawl = self.crawls[wanted.name] = load_crawl(output.workspace, wanted.name, wanted.parts)
        journals = self.journals.setdefault(wanted.name, Journals(crawl_step(wanted.name)))
        urls = read_wanted(output.workspace, crawl, wanted)
        with (
            scratch_folder("fetch") as scratch,
            journals.opened(output.workspace, wanted.stem, self.settings, Path(scratch)) as journal,
        ):
            part = self.fetcher.fetch_urls(urls, Path(scratch), journal)
            return write_outcomes(output, crawl, wanted, urls, part)


def count_outcomes(rows: pa.Table) -> Counter[str]:
    """Return the account of a part: every row is a success or has a reason."""
    counts = Counter(reason for reason in rows["reason"].to_pylist() if reason is not None)
    return counts + Counter(inputs=rows.num_rows, kept=rows["reason"].null_count)
