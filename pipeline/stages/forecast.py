"""`wit forecast`: what fetching a plan will give, from a small seeded sample of its URLs that is really fetched.

Each part of the plan is a random sample of it, and so are its first URLs; the sample takes as many from each of some
parts. Hosts differ most by their size, so success is estimated for classes of hosts by their number of planned URLs,
and added up by the URLs of each class. The intervals are for 95 %. What duplicates and the final cap remove later is
not part of the forecast: nothing of it can be seen in a small sample.

Images that are in tars of the sources need no request: they are a class of their own and wait for no host.
"""

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import binom

from dedup.statistics import proportion
from pipeline.config import Config
from pipeline.consent.block_lists import BlockLists
from pipeline.engine.units import read_stage
from pipeline.engine.workspace import Workspace
from pipeline.errors import ConfigError, UserError
from pipeline.fetching.block_files import find_all_lists, read_block_lists
from pipeline.fetching.fetcher import Fetcher
from pipeline.fetching.signing import open_signer
from pipeline.private_folder import scratch_folder
from pipeline.records import PLAN
from pipeline.stages.plan import part_names
from pipeline.stages.source_files import source_files

FORECAST = "forecast/forecast.json"

_CLASSES = ((1, "1 URL"), (9, "2 to 9"), (99, "10 to 99"), (999, "100 to 999"), (None, "1,000 or more"))
"""Hosts by the largest number of planned URLs, and what they are called."""
_IN_TARS = "images in tars"
_COUNTED_PARTS = 64
_SAMPLED_PARTS = 32
_LEAST_SAMPLE = 50
_Z = 1.959964  # 95 %


@dataclass(frozen=True)
class Interval:
    """An estimate, and the interval that holds the true value with 95 %."""

    value: float
    low: float
    high: float

    def times(self, factor: float) -> "Interval":
        return Interval(self.value * factor, self.low * factor, self.high * factor)


@dataclass(frozen=True)
class HostClass:
    """Hosts of about one size, or the images in tars: planned URLs, those of the sample, and how many of these gave an
    image.
    """

    name: str
    urls: int
    sampled: int
    succeeded: int


@dataclass(frozen=True)
class Prices:
    """What a user pays: dollars for an hour of one worker, and for storing a gigabyte for a month."""

    worker_hour: float
    gb_month: float


@dataclass(frozen=True)
class Forecast:
    """Estimates for the whole plan; hours are for `workers` processes, dollars for these and one month of storage."""

    sampled: int
    planned_urls: int
    planned_pairs: int
    classes: tuple[HostClass, ...]
    reasons: Mapping[str, int]
    success: Interval
    images: Interval
    stored_gb: Interval
    workers: int
    hours_by_rate: float
    hours_by_busiest_host: float
    busiest_host_urls: int
    prices: Prices
    dollars: Interval
    queries: int
    queries_at_cap: Interval
    queries_empty: Interval

    @property
    def hours(self) -> float:
        """Return the larger bound: what the sample's rate allows, or what the busiest host must be given."""
        return max(self.hours_by_rate, self.hours_by_busiest_host)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"hours": self.hours}


class _CountingStream(BytesIO):
    """A stream that keeps only the number of its bytes."""

    bytes = 0

    def write(self, data: object) -> int:
        size = memoryview(data).nbytes  # type: ignore[arg-type]
        self.bytes += size
        return size


def make_forecast(
    workspace: Workspace, config: Config, base_dir: Path, *, sample: int, workers: int, prices: Prices
) -> Forecast:
    """Fetch a sample of the plan and estimate the rest from it.

    Raises:
        UserError: there is no plan yet, or it is empty.
        ConfigError: no request may be sent and there are no archives, or the contact is missing.
    """
    if config.requests_images:
        config.fetch.check_contact()
    has_tars = any(source.kind == "webdataset" for source in config.sources)
    if not config.fetch.network and not config.fetch.archives and not has_tars:
        raise ConfigError(
            "fetch.network = false, and there are no fetch.archives and no tars: nothing can be fetched as a sample"
        )
    marker = read_stage(workspace, "plan")
    if marker is None:
        raise UserError(f"{workspace.root}: there is no plan yet; run `wit build --to plan` first")
    parts = part_names(marker)
    hosts, in_tars = _count_hosts(workspace, parts)
    if not hosts and not in_tars:
        raise UserError(f"{workspace.root}: the plan is empty; there is nothing to forecast")
    chosen = _sample(workspace, parts, sample, config.seed)
    stream = _CountingStream()
    started_s = time.monotonic()
    block_lists = read_block_lists(find_all_lists(config.fetch.consent, base_dir, workspace))
    tars = {file.name: file.path for file in source_files(config, base_dir, workspace, ("webdataset",))}
    with _fetcher(config, base_dir, block_lists, tars) as fetcher, scratch_folder("forecast") as scratch:
        rows = fetcher.fetch_part(chosen, tar_stream=stream, scratch_dir=Path(scratch))
    rate = chosen.num_rows / max(1e-9, time.monotonic() - started_s)
    classes = _classes(rows, hosts, in_tars)
    return _estimate(
        workspace, config, marker.counts["kept"], rows, classes, hosts, stream.bytes, rate, workers, prices
    )


def _fetcher(config: Config, base_dir: Path, block_lists: BlockLists, tars: Mapping[str, str]) -> Fetcher:
    if not config.fetch.archives:
        return Fetcher(config.fetch, block_lists=block_lists, tars=tars, signer=open_signer(config.fetch, base_dir))
    raise ConfigError(
        "fetch.archives: a forecast is for fetches from the web; run `wit build`: archives take no longer than a sample"
    )


def _count_hosts(workspace: Workspace, parts: Sequence[str]) -> tuple[Counter[str], int]:
    """Return planned URLs by host, and how many images are in tars; of many parts the first ones are scaled up."""
    hosts: Counter[str] = Counter()
    counted, in_tars = parts[:_COUNTED_PARTS], 0
    for name in counted:
        rows = workspace.read_table(name, ["url", "image_bytes"])
        stored = set(rows["url"].filter(rows["image_bytes"].is_valid()).to_pylist())
        hosts.update(urlsplit(url).hostname or "" for url in set(rows["url"].to_pylist()) - stored)
        in_tars += len(stored)
    scale = len(parts) / max(1, len(counted))
    if scale > 1:
        hosts = Counter({host: round(n * scale) for host, n in hosts.items()})
    return hosts, round(in_tars * scale)


def _sample(workspace: Workspace, parts: Sequence[str], size: int, seed: int) -> pa.Table:
    """Return one planned pair of each sampled URL: the same for the same seed and plan."""
    random = np.random.default_rng(seed)
    numbers = sorted(random.choice(len(parts), min(len(parts), _SAMPLED_PARTS), replace=False).tolist())
    tables = []
    for number in numbers:
        rows = workspace.read_table(parts[number])
        urls = rows["url"].to_pylist()
        first = [i for i, url in enumerate(urls) if i == 0 or urls[i - 1] != url]  # pairs of a URL are together
        chosen = random.permutation(np.array(first, np.int64))[: math.ceil(size / len(numbers))]
        tables.append(rows.take(pa.array(np.sort(chosen))))
    return pa.concat_tables(tables).cast(PLAN).combine_chunks()


def _class_of(urls: int) -> int:
    return next(i for i, (most, _) in enumerate(_CLASSES) if most is None or urls <= most)


def _estimate(
    workspace: Workspace,
    config: Config,
    pairs: int,
    rows: pa.Table,
    classes: tuple[HostClass, ...],
    hosts: Counter[str],
    stored_bytes: int,
    rate: float,
    workers: int,
    prices: Prices,
) -> Forecast:
    urls = sum(c.urls for c in classes)
    success = _stratified(classes)
    stored = stored_bytes / max(1, sum(c.succeeded for c in classes))
    images = success.times(urls)
    pairs_of_url = pairs / urls
    stored_gb = images.times(stored * pairs_of_url / 1e9)
    by_rate = urls / (rate * workers) / 3600
    busiest = max(hosts.values(), default=0)
    by_host = busiest * config.fetch.host_interval_s / 3600
    hours = max(by_rate, by_host)
    at_cap, empty = _fill(workspace, config, success)
    return Forecast(
        sampled=rows.num_rows,
        planned_urls=urls,
        planned_pairs=pairs,
        classes=classes,
        reasons=dict(Counter(rows["reason"].drop_null().to_pylist()).most_common()),
        success=success,
        images=images.times(pairs_of_url),
        stored_gb=stored_gb,
        workers=workers,
        hours_by_rate=by_rate,
        hours_by_busiest_host=by_host,
        busiest_host_urls=busiest,
        prices=prices,
        dollars=Interval(
            *(
                hours * workers * prices.worker_hour + gb * prices.gb_month
                for gb in (stored_gb.value, stored_gb.low, stored_gb.high)
            )
        ),
        queries=workspace.read_table("plan/balance.parquet", ["selected"]).num_rows,
        queries_at_cap=at_cap,
        queries_empty=empty,
    )


def _classes(rows: pa.Table, hosts: Counter[str], in_tars: int) -> tuple[HostClass, ...]:
    names = [*(name for _, name in _CLASSES), _IN_TARS]
    planned, sampled, succeeded = Counter({len(_CLASSES): in_tars}), Counter[int](), Counter[int]()
    for count in hosts.values():
        planned[_class_of(count)] += count
    columns = (rows[name].to_pylist() for name in ("url", "image_bytes", "status"))
    for url, size, status in zip(*columns, strict=True):
        is_in_tar = size is not None
        number = len(_CLASSES) if is_in_tar else _class_of(max(1, hosts[urlsplit(url).hostname or ""]))
        sampled[number] += 1
        succeeded[number] += status == "success"
    return tuple(HostClass(name, planned[i], sampled[i], succeeded[i]) for i, name in enumerate(names) if planned[i])


def _stratified(classes: Sequence[HostClass]) -> Interval:
    """Return the share of URLs that give an image: each class by its number of URLs.

    A class without a sample has the share of all. The interval is that of a stratified sample; for few URLs or none
    that succeed or fail it would be too narrow, and the exact interval (Clopper-Pearson) of the whole sample is taken.
    """
    sampled, succeeded = sum(c.sampled for c in classes), sum(c.succeeded for c in classes)
    overall = proportion(succeeded, sampled, confidence=0.95)
    mean = succeeded / sampled if sampled else 0.5
    total = sum(c.urls for c in classes)
    value = sum(c.urls / total * (c.succeeded / c.sampled if c.sampled else mean) for c in classes)
    variance = sum(
        (c.urls / total) ** 2 * (p := (c.succeeded + 1) / (c.sampled + 2)) * (1 - p) / max(1, c.sampled)
        for c in classes
    )
    half = max(_Z * math.sqrt(variance), (overall.high - overall.low) / 2)
    return Interval(value, max(0.0, value - half), min(1.0, value + half))


def _fill(workspace: Workspace, config: Config, success: Interval) -> tuple[Interval, Interval]:
    """Return how many queries will have `balance.cap` images, and how many none, of their planned pairs."""
    planned = workspace.read_table("plan/balance.parquet", ["selected"])["selected"].to_numpy()
    sizes, counts = np.unique(planned, return_counts=True)
    at_cap, empty = [], []
    for share in (success.value, success.low, success.high):
        at_cap.append(float((binom.sf(config.balance.cap - 1, sizes, share) * counts).sum()))
        empty.append(float((binom.pmf(0, sizes, share) * counts).sum()))
    return Interval(*at_cap), Interval(empty[0], empty[2], empty[1])


def describe_forecast(found: Forecast) -> list[str]:
    """Say what is expected, in lines; what each number rests on stands beside it."""
    lines = [f"from {found.sampled:,} of {found.planned_urls:,} planned URLs, fetched now:"]
    if not found.busiest_host_urls:
        lines = [f"from {found.sampled:,} of {found.planned_urls:,} images, read now; all are in tars: no requests"]
    for c in found.classes:
        share = f"{c.succeeded / c.sampled:.0%} of {c.sampled:,}" if c.sampled else "none sampled"
        name = c.name if c.name == _IN_TARS else f"hosts of {c.name}"
        lines.append(f"  {name:<23} {c.urls:>13,} URLs   images: {share}")
    by_host = f", {found.hours_by_busiest_host:,.2f} for the {found.busiest_host_urls:,} URLs of one host"
    lines += [
        f"  images           {_percent(found.success)} of the URLs; {_range(found.images)} images",
        f"  stored           {_range(found.stored_gb, '.2f')} GB in fetched/; the shards take less again",
        f"  time             {found.hours:,.2f} hours with {found.workers} workers: {found.hours_by_rate:,.2f} at the "
        f"sample's rate{by_host if found.busiest_host_urls else ''}",
        f"  cost             {_range(found.dollars, '.2f')} dollars, at {found.prices.worker_hour:g} for a worker's "
        f"hour and {found.prices.gb_month:g} for a gigabyte and month",
        f"  queries          of {found.queries:,}: {_range(found.queries_at_cap)} reach the cap, "
        f"{_range(found.queries_empty)} stay empty (before duplicates go)",
    ]
    if found.reasons:
        most = ", ".join(f"{name} {n / found.sampled:.1%}" for name, n in list(found.reasons.items())[:4])
        lines.append(f"  most lost        {most}")
    if found.sampled < _LEAST_SAMPLE:
        lines.append(f"  the sample is small: intervals are wide; give --sample {_LEAST_SAMPLE} or more")
    return lines


def _range(interval: Interval, form: str = ".0f") -> str:
    return " ".join([f"{interval.value:,{form}}", f"({interval.low:,{form}} to {interval.high:,{form}})"])


def _percent(interval: Interval) -> str:
    return f"{interval.value:.1%} ({interval.low:.1%} to {interval.high:.1%})"


def compare_with_outcome(workspace: Workspace, fetched: Mapping[str, int]) -> list[str]:
    """Say what a forecast said and what came, after a build; nothing where there was no forecast."""
    if not workspace.exists(FORECAST) or not fetched.get("inputs"):
        return []
    told = workspace.read_json(FORECAST)
    kept, inputs = fetched["kept"], fetched["inputs"]
    final = workspace.read_table("dedup/balance.parquet", ["selected", "matched"])
    cap = int(pc.max(final["selected"]).as_py() or 0)
    empty = pc.sum(pc.equal(final["selected"], 0)).as_py()
    success, stored = Interval(**told["success"]), Interval(**told["stored_gb"])
    size = sum(n for name, n in workspace.sizes("fetched").items() if name.endswith(".tar")) / 1e9
    verdict = "as forecast" if success.low <= kept / inputs <= success.high else "outside the forecast"
    return [
        f"forecast: {_percent(success)} of the URLs give an image; outcome: {kept / inputs:.1%}, {verdict}",
        f"forecast: {_range(stored, '.2f')} GB stored; outcome: {size:.2f} GB",
        f"forecast: {_range(Interval(**told['queries_empty']))} queries stay empty before duplicates go; outcome, "
        f"after: {empty:,}; the most that a query has is {cap:,}",
    ]
