"""At most so many pairs of a host in the plan: `fetch.max_pairs_per_host` and `max_pairs` of `[[fetch.hosts]]`.

The same arithmetic as the cap of queries (balance/exact.py), with hosts in the place of queries: of a host with too
many pairs, those of smallest priority stay, which is exact, seeded, and the same in any order. With `balance.score`
a host takes its pairs as queries do, the best first or by weight. It looks at the pairs that queries select. What a
host loses may make room for pairs of other hosts, so both balances alternate until no host has too many; a host that
was limited keeps the pairs chosen then, and gets no others.

    count  candidates -> hosts of the selected pairs
    mark   candidates -> (uid, number of the host) of selected pairs of hosts over their cap
    limit  candidates -> candidates without what is over the cap
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.fetch import FetchConfig
from pipeline.engine.run import Build, run_units
from pipeline.engine.units import Marker, Unit, UnitOutput, Work, add_counts, digest, unit_of
from pipeline.records import PAIRS, Reason
from pipeline.stages.balance.exact import query_hashes
from pipeline.stages.balance.ranking import Ranking
from pipeline.stages.balance.scans import OpenSelect, SelectQueries, find_balance, matched_columns, save_thresholds
from pipeline.stages.host_counts import hosts_of, spill_hosts, sum_hosts, tally_hosts

_MOST_HOSTS = 100_000
"""Hosts over their caps that one round looks at; there are rounds until there is none."""


@dataclass(frozen=True)
class _Hosts:
    """Hosts in the place of queries."""

    queries: tuple[str, ...]
    seed: int
    ranking: Ranking

    @property
    def sha256(self) -> str:
        return hashlib.sha256("\n".join(self.queries).encode()).hexdigest()

    def load(self) -> np.ndarray:
        return query_hashes(self.queries, self.seed)


@dataclass(frozen=True)
class Round:
    """One look at the hosts of the pairs that `select` selects among the candidates in `names`."""

    build: Build
    config: FetchConfig
    names: Sequence[str]
    select: OpenSelect
    seed: int
    number: int
    inputs: str  # digest

    def limit(self) -> tuple[list[str], Mapping[str, int]] | None:
        """Return candidates without the pairs over the caps of hosts, and the counts of those; None if none is."""
        over = self._over_cap()
        if not over:
            return None
        ranking = self.select.keys.ranking
        marked = self._run("mark", _Mark(self._folder, over, ranking))
        selects = []
        for cap in sorted(set(over.values())):
            hosts = _Hosts(tuple(sorted(host for host, limit in over.items() if limit == cap)), self.seed, ranking)
            files = sorted(n for marker in marked.values() for n in marker.outputs if f"/marked-{cap}/" in n)
            step = f"{self._step}/{cap}"
            balance = find_balance(self.build, step, files, hosts, hosts, cap=cap, inputs=self._digest)
            thresholds = f"{self._folder}/thresholds-{cap}.parquet"
            save_thresholds(self.build.workspace, thresholds, balance.thresholds)
            selects.append((hosts, OpenSelect(self.build.workspace.root, thresholds, hosts)))
        limited = self._run("limit", _Limit(self._folder, over, selects))
        counts = add_counts(limited.values())
        del counts["inputs"], counts["kept"]
        return [name for marker in limited.values() for name in marker.outputs], counts

    def _over_cap(self) -> dict[str, int]:
        """Return host -> cap, of hosts with more selected pairs."""
        counted = self._run("count", _Count(self._folder, len(self.names), self.config))
        counts = sum_hosts(
            self.build, f"{self._step}/sum", counted, f"{self._folder}/counts", self._digest, _MOST_HOSTS
        )
        rows = zip(counts.largest["host"].to_pylist(), counts.largest["pairs"].to_pylist(), strict=True)
        caps = ((host, pairs, self.config.max_pairs(host)) for host, pairs in rows)
        return {host: cap for host, pairs, cap in caps if cap is not None and pairs > cap}

    def _run(self, step: str, work: "_Count | _Mark | _Limit") -> dict[str, Marker]:
        units = [Unit(unit_of(name), digest(self._digest, name), name) for name in self.names]
        return run_units(self.build, f"{self._step}/{step}", units, _Open(self.select, work))

    @property
    def _step(self) -> str:
        return f"plan/hosts-{self.number}"

    @property
    def _folder(self) -> str:
        return f".wit/{self._step}"

    @property
    def _digest(self) -> str:
        return digest(self.inputs, self.config.host_budgets(), self.number)


@dataclass(frozen=True)
class _Open:
    select: OpenSelect
    work: "_Count | _Mark | _Limit"

    def open(self) -> Work:
        return _OnCandidates(self.select.open(), self.work.open())


@dataclass(frozen=True)
class _OnCandidates:
    """Read a part of the candidates, and say which of them queries select."""

    select: SelectQueries
    work: "_Count | _Mark | _LimitOpened"

    def run(self, name: str, output: UnitOutput) -> Mapping[str, int]:
        table = output.workspace.read_table(name)
        is_selected = pc.greater(pc.list_value_length(self.select.select(table)), 0)
        return self.work.run(table, is_selected.to_numpy(zero_copy_only=False), unit_of(name), output)


@dataclass(frozen=True)
class _Count:
    folder: str
    parts: int
    config: FetchConfig

    def open(self) -> "_Count":
        return self

    def run(self, table: pa.Table, is_selected: np.ndarray, stem: str, output: UnitOutput) -> Mapping[str, int]:
        hosts = tally_hosts(table.filter(pa.array(is_selected))["url"])
        has_cap = [self.config.max_pairs(host) is not None for host in hosts["host"].to_pylist()]
        spill_hosts(
            output, f"{self.folder}/counts/{stem}.rows", hosts.filter(pa.array(has_cap, pa.bool_())), self.parts
        )
        return {"inputs": table.num_rows, "kept": int(is_selected.sum())}


@dataclass(frozen=True)
class _Mark:
    """Write the selected pairs of hosts over their cap, for the balance; hosts are numbered among those of one cap."""

    folder: str
    over: Mapping[str, int]
    ranking: Ranking

    def open(self) -> "_Mark":
        return self

    def run(self, table: pa.Table, is_selected: np.ndarray, stem: str, output: UnitOutput) -> Mapping[str, int]:
        hosts = np.array(hosts_of(table["url"]).to_pylist(), object)
        for cap in sorted(set(self.over.values())):
            numbers = {h: n for n, h in enumerate(sorted(h for h, limit in self.over.items() if limit == cap))}
            rows = [i for i in np.flatnonzero(is_selected).tolist() if hosts[i] in numbers]
            lists = [[numbers[hosts[i]]] for i in rows]
            marked = _of_hosts(table.take(pa.array(rows, pa.int64())), lists, self.ranking)
            output.write_table(f"{self.folder}/marked-{cap}/{stem}.parquet", marked)
        return {"inputs": table.num_rows, "kept": table.num_rows}


def _of_hosts(pairs: pa.Table, numbers: list[list[int]], ranking: Ranking) -> pa.Table:
    """Return what a balance reads of pairs, with the numbers of hosts in the place of queries."""
    columns = pairs.select(matched_columns(ranking))
    place = columns.schema.get_field_index("query_ids")
    return columns.set_column(place, "query_ids", pa.array(numbers, pa.list_(pa.int32())))


@dataclass(frozen=True)
class _Limit:
    folder: str
    over: Mapping[str, int]
    selects: Sequence[tuple[_Hosts, OpenSelect]]

    def open(self) -> "_LimitOpened":
        return _LimitOpened(self.folder, self.over, [(hosts, select.open()) for hosts, select in self.selects])


@dataclass(frozen=True)
class _LimitOpened:
    folder: str
    over: Mapping[str, int]
    selects: Sequence[tuple[_Hosts, SelectQueries]]

    def run(self, table: pa.Table, is_selected: np.ndarray, stem: str, output: UnitOutput) -> Mapping[str, int]:
        hosts = hosts_of(table["url"]).to_pylist()
        is_of_limited = np.array([host in self.over for host in hosts], bool)
        is_chosen = np.zeros(len(hosts), bool)
        for of_cap, select in self.selects:
            numbers = {host: number for number, host in enumerate(of_cap.queries)}
            lists = [[numbers[host]] if host in numbers else [] for host in hosts]
            chosen = select.select(_of_hosts(table, lists, of_cap.ranking))
            is_chosen |= pc.greater(pc.list_value_length(chosen), 0).to_numpy(zero_copy_only=False)
        is_kept = ~is_of_limited | (is_selected & is_chosen)
        output.write_table(f"{self.folder}/candidates/{stem}.parquet", table.filter(pa.array(is_kept)).cast(PAIRS))
        over_host = int((is_of_limited & is_selected & ~is_chosen).sum())
        kept = int(is_kept.sum())
        over_query = len(hosts) - kept - over_host
        return {"inputs": len(hosts), "kept": kept, Reason.OVER_HOST_CAP: over_host, Reason.OVER_CAP: over_query}
