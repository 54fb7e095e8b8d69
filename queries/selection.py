"""Choose a list of exactly the required size from ranked sources.

Each source in turn adds its best entries that are not chosen yet, up to its budget; a source without a budget adds
all that fit. If room is left, the sources add entries beyond their budgets, in the same order. Entries are compared by
their normal form; an entry keeps its score in every source.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from queries.allowlist import merge_candidates


@dataclass(frozen=True)
class Source:
    """The candidates of one origin, as CANDIDATES, best first; and its maximum of new entries in the first pass."""

    origin: str
    candidates: pa.Table
    budget: int | None = None


@dataclass(frozen=True)
class Selection:
    """The chosen entries, with the columns of an allowlist; and by origin how many it had and how many were chosen."""

    table: pa.Table
    report: dict[str, dict[str, Any]]


def select(sources: Sequence[Source], size: int) -> Selection:
    """Choose `size` entries, or all if there are fewer. The same sources give the same list.

    The report has for each origin `entries`, its distinct entries; `given`, the entries chosen from it (an entry
    counts for one source); and the `lowest_score` among these.
    """
    merged, _ = merge_candidates(pa.concat_tables(source.candidates for source in sources))
    ranked = [_Ranked.of(merged, source.origin) for source in sources]
    is_free = np.ones(merged.num_rows, dtype=bool)
    given: list[list[npt.NDArray[np.int64]]] = [[] for _ in sources]
    for budgets in ([source.budget for source in sources], [None] * len(sources)):
        for number, budget in enumerate(budgets):
            room = max(size - int(np.count_nonzero(~is_free)), 0)
            chosen = ranked[number].free(is_free)[: room if budget is None else min(budget, room)]
            is_free[chosen] = False
            given[number].append(chosen)
    rows = [np.concatenate(chosen) for chosen in given]
    table = merged.take(pa.array(np.concatenate(rows))).combine_chunks()
    return Selection(table, {s.origin: r.report(c) for s, r, c in zip(sources, ranked, rows, strict=True)})


@dataclass(frozen=True)
class _Ranked:
    """The rows of the merged table that one origin has, best first, and their scores."""

    rows: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]

    @classmethod
    def of(cls, merged: pa.Table, origin: str) -> "_Ranked":
        origins, scores = (merged[name].combine_chunks() for name in ("origins", "score"))
        is_from_origin = np.asarray(pc.equal(pc.list_flatten(origins), origin))
        rows = np.asarray(pc.list_parent_indices(origins), dtype=np.int64)[is_from_origin]
        ranking = np.asarray(pc.list_flatten(scores), dtype=np.float64)[is_from_origin]
        order = np.argsort(-ranking, kind="stable")
        return cls(rows[order], ranking[order])

    def free(self, is_free: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        return self.rows[is_free[self.rows]]

    def report(self, chosen: npt.NDArray[np.int64]) -> dict[str, Any]:
        scores = self.scores[np.isin(self.rows, chosen)]
        score = float(scores.min()) if len(scores) else None
        return {"entries": len(self.rows), "given": len(chosen), "lowest_score": score}
