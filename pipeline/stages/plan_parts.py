"""How many parts a plan has where the config states no `fetch.parts`: as few as hold PAIRS_PER_PART pairs at most.

The number is a power of two, so there are 5,000 to 10,000 pairs in a part, and a set that grows keeps its parts until
it has doubled. Candidates are cut before the size of the plan is known: into a power of two as well, or into a multiple
of the stated number, so that they fit in memory part by part. As a part is the remainder of a URL's hash, either cut is
then a cut of the other.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine.run import Build, run_units
from pipeline.engine.units import Unit, UnitOutput, Work, add_counts, digest, unit_of
from pipeline.stages.balance.scans import OpenSelect, SelectQueries, matched_columns

PAIRS_PER_PART = 10_000

_MOST_PARTS = 1 << 19
_MOST_CANDIDATE_PARTS = 1 << 16  # unless that makes them too large
CANDIDATE_BYTES = 1_280
"""Memory of a candidate while its part is sorted, with the copies that this makes (benchmarks/row_memory.py)."""

MOST_AT_ONCE = 4_000_000  # candidates: an Arrow column of strings holds 2 GiB


def candidate_parts(candidates: int, parts: int | None, at_once: int) -> int:
    """Return into how many parts `candidates` rows, some repeated, are cut; `parts` is that of the plan, if stated.

    `at_once` are the candidates that fit in memory: those of a part, on average.
    """
    least = -(-candidates // at_once)
    if parts is not None:
        return parts * max(1, -(-least // parts))
    return max(_power_of_two(least), min(_power_of_two(candidates / PAIRS_PER_PART), _MOST_CANDIDATE_PARTS))


def in_order(names: Iterable[str]) -> list[str]:
    """Return the files of parts in the order of their numbers, which have five digits or, from 100,000 on, more."""
    return sorted(names, key=lambda name: (len(name), name))


def plan_parts(planned: int) -> int:
    """Return the number of parts of a plan of `planned` pairs, where the config states none."""
    return min(_power_of_two(planned / PAIRS_PER_PART), _MOST_PARTS)


def _power_of_two(least: float) -> int:
    number = 1
    while number < least:
        number *= 2
    return number


def count_planned(build: Build, candidates: Sequence[str], select: OpenSelect, stage_digest: str) -> int:
    """Return how many of the candidates some query selects."""
    units = [Unit(unit_of(name), digest(stage_digest, name), name) for name in candidates]
    return add_counts(run_units(build, "plan/size", units, _OpenCount(select)).values())["kept"]


@dataclass(frozen=True)
class _OpenCount:
    select: OpenSelect

    def open(self) -> Work:
        return _Count(self.select.open())


@dataclass(frozen=True)
class _Count:
    select: SelectQueries

    def run(self, candidates: str, output: UnitOutput) -> Mapping[str, int]:
        table = output.workspace.read_table(candidates, matched_columns(self.select.ranking))
        chosen = self.select.select(table)
        return {"inputs": len(chosen), "kept": pc.sum(pc.greater(pc.list_value_length(chosen), 0)).as_py() or 0}


@dataclass(frozen=True)
class PartCut:
    """A unit of the last step: its files of candidates, and the parts of the plan that are made of them."""

    candidates: tuple[str, ...]
    parts: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"part-{self.parts[0]:05d}"

    @property
    def is_whole(self) -> bool:
        """Whether a part is made of one file, whose rows are then in order."""
        return len(self.candidates) == len(self.parts) == 1


def cut_parts(candidates: Sequence[str], parts: int) -> list[PartCut]:
    """Return how the parts of a plan are made of candidates; `candidates` are the files of all their parts, in order.

    Of both numbers one is a multiple of the other.
    """
    units = min(len(candidates), parts)
    return [PartCut(tuple(candidates[n::units]), tuple(range(n, parts, units))) for n in range(units)]


def rows_of_parts(pairs: pa.Table, url_hashes: np.ndarray, cut: PartCut, parts: int) -> list[pa.Table]:
    """Return the pairs of each part of a cut, in the order of candidates: by hash of the URL, then by uid."""
    part = url_hashes % np.uint64(parts)
    hashed = pairs.append_column("url_hash", pa.array(url_hashes))
    ordered = [("url_hash", "ascending"), ("uid", "ascending")]
    return [hashed.filter(pa.array(part == n)).sort_by(ordered).select(pairs.column_names) for n in cut.parts]
