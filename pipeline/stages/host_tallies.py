"""What the hosts of a finished set said and gave, counted over all its parts: exact, in bounded memory.

Parts are read in groups, added up per host, and spilled to a local file by a hash of the host; then one bucket after
the other is added up. Memory is one group of parts and one bucket, whatever the number of hosts.
"""

import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.consent.policy import Signal
from pipeline.engine.shuffle import gather, spill
from pipeline.engine.units import UnitOutput
from pipeline.engine.workspace import Workspace
from pipeline.private_folder import scratch_folder

MOST_HOSTS = 1_000
"""How many hosts are named, of those with most samples and of those that refused most."""

_PARTS_AT_ONCE = 64
_MAX_BUCKETS = 256
_HOST = r"^[A-Za-z][A-Za-z0-9+.-]*://(?:[^/?#@]*@)?(?P<name>\[[^\]/?#]*\]|[^/?#:]*)"
_AUTHORITY = r"^(?P<name>[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*)"
_SPILLED = "tallies"
_OUR_OWN = (Signal.BLOCK_LIST, Signal.TAKEDOWN)
"""What was said to us, not by the host."""

_ROWS = ["url", "status", "http_status", "refused_by", "license_url", "creator"]
_CHECKS = ["url", "checked_at", "robots_at", "robots_status"]
# A row for each host, and one for each authority (scheme, host and port) whose robots.txt was requested. Of a host: its
# URLs, those with a response, those it refused, its samples, and what the files of samples state.
_COUNTS = ("urls", "responses", "refused", "samples", "with_licence", "with_creator", "robots_served")
_TALLY = pa.schema([("name", pa.string()), ("is_authority", pa.bool_()), *((name, pa.int64()) for name in _COUNTS)])


@dataclass
class HostTallies:
    """Counts over all parts. `largest` is host -> samples, `most_refusing` is host -> refused URLs, most first."""

    urls: int = 0
    responses: int = 0
    hosts: int = 0
    hosts_that_refused: int = 0
    hosts_in_set: int = 0
    largest: dict[str, int] = field(default_factory=dict)
    most_refusing: dict[str, int] = field(default_factory=dict)
    samples: int = 0
    robots_files: int = 0
    robots_without_file: int = 0
    with_licence: int = 0
    with_creator: int = 0
    first: datetime | None = None
    last: datetime | None = None


def measure_hosts(workspace: Workspace, stems: Sequence[str], parts_at_once: int = _PARTS_AT_ONCE) -> HostTallies:
    """Count over the tables and ledgers of the parts `stems` ("00000", ...)."""
    found = HostTallies()
    buckets = max(1, min(_MAX_BUCKETS, -(-len(stems) // parts_at_once)))
    with scratch_folder("hosts") as scratch:
        local = Workspace(str(scratch))
        tallies = _tallies(workspace, stems, parts_at_once, found)
        spill(UnitOutput(local), _SPILLED, _TALLY, buckets, ((table, _bucket(table, buckets)) for table in tallies))
        for bucket in range(buckets):
            _count(_add_up([gather(local, [_SPILLED], bucket, _TALLY)]), found)
    return found


def _tallies(workspace: Workspace, stems: Sequence[str], at_once: int, found: HostTallies) -> Iterator[pa.Table]:
    """Yield the tallies of each group of parts (schema _TALLY); add their times to `found`."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as readers:
        for start in range(0, len(stems), at_once):
            tables, times = [], []
            for tables_of_part, times_of_part in readers.map(
                lambda stem: _read_part(workspace, stem), stems[start : start + at_once]
            ):
                tables += tables_of_part
                times += times_of_part
            found.first = min([*times, *([found.first] if found.first else [])], default=None)
            found.last = max([*times, *([found.last] if found.last else [])], default=None)
            yield _add_up(tables)


def _read_part(workspace: Workspace, stem: str) -> tuple[list[pa.Table], list[datetime]]:
    """Return the tallies of a part, and the first and last time at which consent was checked."""
    tables = [_hosts_of_rows(workspace.read_table(f"shards/{stem}.parquet", _ROWS))]
    ledger = f"consent/part-{stem}.parquet"
    if not workspace.exists(ledger):
        return tables, []
    checks = workspace.read_table(ledger, _CHECKS)
    times = pc.min_max(checks["checked_at"]).as_py()
    asked = checks.filter(pc.is_valid(checks["robots_at"]))
    served = pc.fill_null(pc.less(asked["robots_status"], 300), False)
    tables.append(_tally(_extracted(asked["url"], _AUTHORITY), is_authority=True, robots_served=served))
    return tables, [time for time in times.values() if time is not None]


def _hosts_of_rows(rows: pa.Table) -> pa.Table:
    """Return the tallies of the hosts of one table of pairs; a URL that has several pairs is one URL."""
    rows = rows.filter(pc.not_equal(rows["url"], ""))  # empty if taken down
    is_sample = pc.equal(rows["status"], "success")
    said_no = pc.and_not(pc.is_valid(rows["refused_by"]), pc.is_in(rows["refused_by"], pa.array(_OUR_OWN)))
    flags = {
        "url": rows["url"],
        "responses": pc.is_valid(rows["http_status"]),
        "refused": said_no,
        "samples": is_sample,
        "with_licence": pc.and_(is_sample, pc.is_valid(rows["license_url"])),
        "with_creator": pc.and_(is_sample, pc.is_valid(rows["creator"])),
    }
    counted = {"responses": "max", "refused": "max", "samples": "sum", "with_licence": "sum", "with_creator": "sum"}
    by_url = pa.table(flags).group_by("url", use_threads=False).aggregate(list(counted.items()))
    counts = {name: by_url[f"{name}_{how}"] for name, how in counted.items()}
    return _tally(_extracted(by_url["url"], _HOST), is_authority=False, urls=pa.repeat(1, by_url.num_rows), **counts)


def _extracted(urls: pa.ChunkedArray, pattern: str) -> pa.ChunkedArray:
    """Return the group `name` of a pattern in each URL, in lower case; "" where it does not match."""
    found = pc.struct_field(pc.extract_regex(urls, pattern), "name")
    return pc.utf8_lower(pc.fill_null(found, ""))


def _tally(names: pa.ChunkedArray, *, is_authority: bool, **counts: Any) -> pa.Table:
    """Return rows of _TALLY, one for each name; counts that are not given are 0."""
    zero = pa.repeat(0, len(names))
    columns = {name: pc.cast(counts.get(name, zero), pa.int64()) for name in _COUNTS}
    kind = pa.repeat(pa.scalar(is_authority), len(names))
    return _add_up([pa.table({"name": names, "is_authority": kind} | columns).cast(_TALLY)])


def _add_up(tables: Sequence[pa.Table]) -> pa.Table:
    """Return one row for each host and authority."""
    rows = pa.concat_tables([_TALLY.empty_table(), *tables])
    sums = rows.group_by(["name", "is_authority"], use_threads=False).aggregate([(name, "sum") for name in _COUNTS])
    return sums.rename_columns([name.removesuffix("_sum") for name in sums.column_names]).select(_TALLY.names)


def _bucket(tally: pa.Table, buckets: int) -> np.ndarray:
    return np.array([zlib.crc32(name.encode()) % buckets for name in tally["name"].to_pylist()], np.int32)


def _count(bucket: pa.Table, found: HostTallies) -> None:
    """Add the hosts and authorities of a bucket, which no other bucket has."""
    of_authority = bucket["is_authority"]
    authorities, hosts = bucket.filter(of_authority), bucket.filter(pc.invert(of_authority))
    found.robots_files += authorities.num_rows
    found.robots_without_file += _true(pc.equal(authorities["robots_served"], 0))
    for name in ("urls", "responses", "samples", "with_licence", "with_creator"):
        setattr(found, name, getattr(found, name) + (pc.sum(hosts[name]).as_py() or 0))
    found.hosts += hosts.num_rows
    found.hosts_that_refused += _true(pc.greater(hosts["refused"], 0))
    found.hosts_in_set += _true(pc.greater(hosts["samples"], 0))
    found.largest = _largest(hosts, "samples", found.largest)
    found.most_refusing = _largest(hosts, "refused", found.most_refusing)


def _true(flags: pa.ChunkedArray) -> int:
    return pc.sum(flags).as_py() or 0


def _largest(hosts: pa.Table, count: str, before: Mapping[str, int]) -> dict[str, int]:
    """Return the hosts with the largest counts, and these; equal ones by name."""
    rows = hosts.filter(pc.greater(hosts[count], 0)).sort_by([(count, "descending"), ("name", "ascending")])
    rows = rows.slice(0, MOST_HOSTS)
    both = dict(before) | dict(zip(rows["name"].to_pylist(), rows[count].to_pylist(), strict=True))
    return dict(sorted(both.items(), key=lambda item: (-item[1], item[0]))[:MOST_HOSTS])
