"""pairs/ -> plan/: the pairs to fetch. Split the pairs into parts by URL, drop repeated pairs, balance to cap x slack.

Steps, each a pipeline over files (scratch results are under `.wit/plan/` until the stage is done):

    spill    pairs files -> files sorted into buckets of parts (by a hash of the URL)
    captions, frequent    pairs files -> captions of too many images, if filters.max_images_per_caption is set
    gather   bucket -> candidate parts, every uid once, without frequent captions
    families-...  candidate parts -> those without what is over filters.max_pairs_per_family (caption_families.py)
    count    candidate parts -> matches per query                 } stages/balance/scans.py
    select   candidate parts -> the largest key each query takes  }
    hosts-n  candidate parts -> those without what is over the caps of hosts, then count and select again (host_cap.py)
    size     candidate parts -> how many pairs some query selects, if no `fetch.parts` is stated (plan_parts.py)
    write    candidate parts -> plan parts: the pairs that some query selects
    hosts    plan parts -> the largest hosts (host_counts.py)

All pairs of a URL are in one part, so a URL is requested once; and each part is a random sample of the whole.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import Config
from pipeline.engine.run import Build, run_units
from pipeline.engine.units import (
    Marker,
    Unit,
    UnitOutput,
    Work,
    add_counts,
    digest,
    finish_stage,
    finished_stage,
)
from pipeline.engine.workspace import FileFacts, Workspace
from pipeline.records import PLAN, Reason
from pipeline.stages.balance.ranking import Ranking
from pipeline.stages.balance.scans import (
    OpenSelect,
    QueryHashes,
    SelectQueries,
    find_balance,
    save_thresholds,
    write_balance,
)
from pipeline.stages.caption_families import cap_families
from pipeline.stages.host_cap import Round
from pipeline.stages.host_counts import spill_hosts, sum_hosts, tally_hosts
from pipeline.stages.pairs import pair_files
from pipeline.stages.plan_candidates import files_of, url_hashes, write_candidates
from pipeline.stages.plan_parts import PartCut, count_planned, cut_parts, in_order, plan_parts, rows_of_parts
from queries.allowlist import Allowlist

VERSION = 5
"""Raise it when the same pairs would give another plan, or scratch files have another format."""

MOST_HOSTS = 100_000
"""Of hosts that plan/hosts.parquet has: those with most pairs."""

_HOSTS = ".wit/plan/of-hosts"


def run_plan(
    build: Build, config: Config, allowlist: Allowlist, keys: QueryHashes, pairs: Mapping[str, Marker]
) -> Marker:
    """Fill plan/ with its parts and `balance.parquet`; return the stage's marker."""
    files = pair_files(pairs)
    stage_digest = digest(
        VERSION,
        sorted((name, facts.sha256) for name, facts in files.items()),
        config.balance.recipe(),
        config.fetch.parts,
        config.fetch.host_budgets(),
        config.seed,
        allowlist.sha256,
        *_pool_filters(config),
    )
    done = finished_stage(build.workspace, "plan", stage_digest)
    if done is not None:
        build.progress.say(f"plan           {len(part_names(done))} parts already done")
        return done
    keys = replace(keys, ranking=Ranking(*config.balance.ranking))
    counts = Counter(inputs=add_counts(pairs.values())["kept"])
    candidates = write_candidates(build, config, pairs, counts["inputs"], stage_digest)
    for reason in (Reason.DUPLICATE_PAIR, Reason.FREQUENT_CAPTION):
        counts[reason] = add_counts(candidates.values())[reason]

    names = in_order(files_of(candidates))
    if config.filters.max_pairs_per_family is not None:
        left = add_counts(candidates.values())["kept"]
        names, over = cap_families(build, config.filters, config.seed, names, left, stage_digest)
        counts.update(over)
    balanced = _balance(build, config, allowlist, keys, names, stage_digest)
    counts.update(balanced.counts)
    written = _write_plan(build, config, balanced, stage_digest)
    counts.update({k: n for k, n in add_counts(written.values()).items() if k != "inputs"})
    outputs = {n: facts for marker in written.values() for n, facts in marker.outputs.items() if n.startswith("plan/")}
    outputs |= write_balance(build.workspace, "plan/balance.parquet", balanced.matched, plan_cap(config))
    outputs |= _write_hosts(build, written, stage_digest)
    return finish_stage(build.workspace, "plan", stage_digest, outputs, counts)


def _pool_filters(config: Config) -> list[Any]:
    """Return what the filters over the whole pool add to the digest: nothing where they are off."""
    filters = config.filters
    frequent = [] if filters.max_images_per_caption is None else [filters.max_images_per_caption]
    has_families = filters.max_pairs_per_family is not None
    return frequent + ([[filters.max_pairs_per_family, filters.family_similarity]] if has_families else [])


def read_hosts(workspace: Workspace) -> pa.Table:
    """Return the hosts of the plan with most pairs, as HOSTS, most first."""
    return workspace.read_table("plan/hosts.parquet")


def plan_cap(config: Config) -> int:
    """Return the cap before fetching, which allows for dead links and duplicates."""
    return math.ceil(config.balance.cap * config.balance.slack)


def part_names(plan: Marker) -> list[str]:
    """Return the plan's parts, in order."""
    return in_order(name for name in plan.outputs if name.startswith("plan/part-"))


@dataclass(frozen=True)
class _Balanced:
    """What may be planned, how to select from it, and what became of the other candidates."""

    names: list[str]
    select: OpenSelect
    matched: np.ndarray  # (queries,) int64, of all candidates
    counts: Counter[str]


def _balance(
    build: Build, config: Config, allowlist: Allowlist, keys: QueryHashes, names: list[str], stage_digest: str
) -> _Balanced:
    """Balance by query, and by host until no host has too many pairs."""
    counts: Counter[str] = Counter()
    matched: np.ndarray | None = None
    attempt = 0
    while True:
        step, inputs = ("plan" if attempt == 0 else f"plan/again-{attempt}"), digest(stage_digest, attempt)
        balance = find_balance(build, step, names, allowlist, keys, cap=plan_cap(config), inputs=inputs)
        matched = balance.counts if matched is None else matched
        # Workers read the thresholds from a file, not from the job.
        thresholds = f".wit/{step}/thresholds.parquet"
        save_thresholds(build.workspace, thresholds, balance.thresholds)
        select = OpenSelect(build.workspace.root, thresholds, keys)
        limited = None
        if config.fetch.host_budgets():
            limited = Round(build, config.fetch, names, select, config.seed, attempt, stage_digest).limit()
        if limited is None:
            return _Balanced(names, select, matched, counts)
        names, lost = limited
        counts.update(lost)
        attempt += 1


def _write_plan(build: Build, config: Config, balanced: _Balanced, stage_digest: str) -> dict[str, Marker]:
    parts = config.fetch.parts or plan_parts(count_planned(build, balanced.names, balanced.select, stage_digest))
    cuts = cut_parts(in_order(balanced.names), parts)
    units = [Unit(cut.name, digest(stage_digest, cut.candidates), cut) for cut in cuts]
    return run_units(build, "plan/write", units, _OpenWrite(balanced.select, parts, config.seed))


def _write_hosts(build: Build, written: Mapping[str, Marker], stage_digest: str) -> dict[str, FileFacts]:
    """Write the hosts with most pairs, and how many there are of all, to plan/hosts.parquet."""
    counts = sum_hosts(build, "plan/hosts", written, _HOSTS, stage_digest, MOST_HOSTS)
    output = UnitOutput(build.workspace)
    output.write_table("plan/hosts.parquet", counts.largest.replace_schema_metadata({"hosts": str(counts.hosts)}))
    return output.files


@dataclass(frozen=True)
class _OpenWrite:
    select: OpenSelect
    parts: int
    seed: int

    def open(self) -> Work:
        return _WriteParts(self.select.open(), self.parts, self.seed)


@dataclass(frozen=True)
class _WriteParts:
    select: SelectQueries
    parts: int
    seed: int

    def run(self, cut: PartCut, output: UnitOutput) -> Mapping[str, int]:
        counts, tables = Counter[str](), []
        for candidates in cut.candidates:
            table = output.workspace.read_table(candidates)
            chosen = self.select.select(table)
            tables.append(
                table.append_column("selected_by", chosen).filter(pc.greater(pc.list_value_length(chosen), 0))
            )
            counts["inputs"] += table.num_rows
        planned = pa.concat_tables(tables)
        for part, rows in zip(cut.parts, self._split(planned, cut), strict=True):
            output.write_table(f"plan/part-{part:05d}.parquet", rows.cast(PLAN))
            spill_hosts(output, f"{_HOSTS}/part-{part:05d}.rows", tally_hosts(rows["url"]), self.parts)
        counts.update({"kept": planned.num_rows, Reason.OVER_CAP: counts["inputs"] - planned.num_rows})
        return counts

    def _split(self, planned: pa.Table, cut: PartCut) -> list[pa.Table]:
        if cut.is_whole:
            return [planned]
        return rows_of_parts(planned, url_hashes(planned["url"].to_pylist(), self.seed), cut, self.parts)
