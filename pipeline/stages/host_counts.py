"""How many URLs and pairs each host has, through files: counted part by part, added up by a hash of the host."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.engine.run import Build, run_units
from pipeline.engine.shuffle import gather_some, spill
from pipeline.engine.sorted_rows import Fewer
from pipeline.engine.units import Marker, Stateless, Unit, UnitOutput, digest
from pipeline.fetching.addresses import Target
from pipeline.web.urls import normalize_url

HOSTS = pa.schema([("host", pa.string()), ("urls", pa.int64()), ("pairs", pa.int64())])
_FILES_IN_BUCKET = 64
_MAX_BUCKETS = 64
_ROWS_AT_ONCE = 1_000_000  # before the rows of a host are added up


def hosts_of(urls: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return the host of each URL, "" where it is no URL of the web."""
    found = []
    for url in urls.to_pylist():
        normal = normalize_url(url)
        found.append(Target.parse(normal).host if normal is not None else "")
    return pa.array(found, pa.string())


def tally_hosts(urls: pa.ChunkedArray | pa.Array) -> pa.Table:
    """Return the hosts of pairs, by their URLs, as HOSTS in the order of names."""
    pairs = pa.chunked_array([urls.combine_chunks()] if isinstance(urls, pa.ChunkedArray) else [urls]).value_counts()
    table = pa.table({"host": hosts_of(pairs.field("values")), "pairs": pairs.field("counts")})
    by_host = table.group_by("host", use_threads=False).aggregate([("host", "count"), ("pairs", "sum")])
    columns = {"host": by_host["host"], "urls": by_host["host_count"], "pairs": by_host["pairs_sum"]}
    return pa.table(columns).cast(HOSTS).sort_by("host")


def spill_hosts(output: UnitOutput, name: str, hosts: pa.Table, parts: int) -> None:
    """Write the hosts of one of `parts` parts for `sum_hosts`."""
    buckets = _buckets(parts)
    numbers = np.array([zlib.crc32(host.encode()) % buckets for host in hosts["host"].to_pylist()], np.int32)
    spill(output, name, HOSTS, buckets, [(hosts, numbers)])


@dataclass(frozen=True)
class HostCounts:
    """The hosts with most pairs, exact; `hosts` is the number of all."""

    largest: pa.Table
    hosts: int


def sum_hosts(build: Build, step: str, parts: Mapping[str, Marker], folder: str, inputs: str, most: int) -> HostCounts:
    """Add up what the units of `parts` spilled into `folder`; return the `most` hosts with most pairs."""
    files = [name for marker in parts.values() for name in marker.outputs if name.startswith(f"{folder}/")]
    units = [Unit(f"{n:05d}", digest(inputs, n, most), n) for n in range(_buckets(len(files)))]
    markers = run_units(build, step, units, Stateless(_Sum(files, f"{folder}-sum", most)))
    names = [name for marker in markers.values() for name in marker.outputs]
    tables = [build.workspace.read_table(name) for name in names]
    largest = _largest(pa.concat_tables(tables), most) if tables else HOSTS.empty_table()
    return HostCounts(largest, sum(marker.counts["inputs"] for marker in markers.values()))


def _buckets(parts: int) -> int:
    return min(_MAX_BUCKETS, -(-parts // _FILES_IN_BUCKET))


def _largest(hosts: pa.Table, most: int) -> pa.Table:
    return hosts.sort_by([("pairs", "descending"), ("host", "ascending")]).slice(0, most)


def _add_up(hosts: pa.Table) -> pa.Table:
    total = hosts.group_by("host", use_threads=False).aggregate([("urls", "sum"), ("pairs", "sum")])
    return total.select(["host", "urls_sum", "pairs_sum"]).rename_columns(HOSTS.names)


@dataclass(frozen=True)
class _Sum:
    files: Sequence[str]
    folder: str
    most: int

    def run(self, bucket: int, output: UnitOutput) -> Mapping[str, int]:
        total = _add_up(
            Fewer(_ROWS_AT_ONCE, _add_up).read(gather_some(output.workspace, self.files, bucket, HOSTS), HOSTS)
        )
        largest = _largest(total, self.most)
        output.write_table(f"{self.folder}/{bucket:05d}.parquet", largest)
        return {"inputs": total.num_rows, "kept": largest.num_rows}
