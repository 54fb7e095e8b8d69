"""Which fetched pairs stay, and what evaluation sets have in common with them: the work of the units, part by part.

stages/dedup.py has the order of the steps.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dedup.overlap import OVERLAP
from pipeline.duplicates import FetchedPart, in_evals, successes
from pipeline.records import DECISIONS, Reason
from pipeline.shuffle import MAX_BUCKETS, gather, spill
from pipeline.stages.balance import PrepareSelect, Select
from pipeline.stages.evals import EvalIndexes, LoadedEval
from pipeline.stages.plan import bucket_of_part
from pipeline.units import UnitOutput, Work
from pipeline.workspace import Workspace

MAX_CAPTIONS = 64
"""A survivor keeps at most this many captions: a placeholder image has been seen under a hundred thousand."""

_OVERLAP = pa.schema([pa.field("eval", pa.string()), *OVERLAP])

_LOST_CAPTIONS = pa.schema([("survivor", pa.string()), ("uid", pa.string()), ("caption", pa.string())])


@dataclass(frozen=True)
class PrepareOverlap:
    root: str
    indexes: EvalIndexes
    min_quality: int

    def __call__(self) -> Work:
        return FindOverlap(self.indexes.load(Workspace(self.root)), self.min_quality)


@dataclass(frozen=True)
class FindOverlap:
    """Compare every fetched image of a part with every evaluation set."""

    sets: list[LoadedEval]
    min_quality: int

    def __call__(self, part: FetchedPart, output: UnitOutput) -> Mapping[str, int]:
        images = successes(output.workspace, part, ["uid", "pdq", "pdq_quality", "sha256"])
        found = [_OVERLAP.empty_table()]
        for loaded in self.sets:
            matches = loaded.find(images, self.min_quality)
            found.append(
                matches.append_column("eval", pa.repeat(loaded.name, matches.num_rows))
                .select(_OVERLAP.names)
                .cast(_OVERLAP)
            )
        output.write_table(part.file(".wit/dedup/overlap"), pa.concat_tables(found))
        return {"inputs": images.num_rows, "kept": images.num_rows}


@dataclass(frozen=True)
class Survive:
    """Write a part's survivors for the balance, and send the captions of its duplicates to their survivors."""

    remove_evals: bool
    parts: int

    def __call__(self, part: FetchedPart, output: UnitOutput) -> Mapping[str, int]:
        rows = successes(output.workspace, part, ["uid", "query_ids", "caption"])
        outcome = removals(output.workspace, part, rows["uid"], self.remove_evals)
        lost = pc.is_valid(outcome["reason"])
        output.write_table(part.file(".wit/dedup/survivors"), rows.filter(pc.invert(lost)).select(["uid", "query_ids"]))
        told = pc.is_valid(outcome["survivor"])
        captions = (
            outcome.select(["survivor"]).append_column("uid", rows["uid"]).append_column("caption", rows["caption"])
        )
        buckets = bucket_of_part(
            outcome["survivor_part"].filter(told).to_numpy(), self.parts, _caption_buckets(self.parts)
        )
        spill(output, part.file(".wit/dedup/captions"), _LOST_CAPTIONS, [(captions.filter(told), buckets)])
        counts = Counter(reason for reason in outcome["reason"].to_pylist() if reason is not None)
        return {**counts, "inputs": rows.num_rows, "kept": rows.num_rows - counts.total()}


def _caption_buckets(parts: int) -> int:
    return min(parts, MAX_BUCKETS)


def removals(workspace: Workspace, part: FetchedPart, uids: pa.ChunkedArray, remove_evals: bool) -> pa.Table:
    """Return, per fetched image of a part, why it goes: `reason`, `survivor`, `survivor_part`; nulls where it stays."""
    with workspace.open("dedup/duplicates.parquet") as source:
        duplicates = pq.read_table(source, filters=[("part", "=", part.number)], use_threads=False)
    outcome = duplicates.select(["reason", "survivor", "survivor_part"]).take(pc.index_in(uids, duplicates["uid"]))
    if remove_evals:
        matched = pc.is_in(uids, in_evals(workspace, part))
        outcome = outcome.set_column(0, "reason", pc.if_else(matched, Reason.EVAL_OVERLAP.value, outcome["reason"]))
    return outcome


@dataclass(frozen=True)
class PrepareDecide:
    select: PrepareSelect
    captions: list[str]
    parts: int
    remove_evals: bool

    def __call__(self) -> Work:
        return _Decide(self.select(), self.captions, self.parts, self.remove_evals)


@dataclass(frozen=True)
class _Decide:
    """Write a part's decisions, and which of its overlap rows are about pairs that stay."""

    select: Select
    captions: list[str]
    parts: int
    remove_evals: bool

    def __call__(self, part: FetchedPart, output: UnitOutput) -> Mapping[str, int]:
        rows = successes(output.workspace, part, ["uid", "query_ids", "caption"])
        outcome = removals(output.workspace, part, rows["uid"], self.remove_evals)
        survives = pc.is_null(outcome["reason"])
        selected = self.select(rows)
        chosen = pc.greater(pc.list_value_length(selected), 0)
        kept = pc.and_(survives, chosen)
        over = pc.and_(survives, pc.invert(chosen))
        columns = {
            "uid": rows["uid"],
            "reason": pc.if_else(over, Reason.OVER_FINAL_CAP.value, outcome["reason"]),
            "survivor": outcome["survivor"],
            "selected_by": pc.if_else(kept, selected, pa.scalar([], selected.type)),
            "captions": self._captions(output.workspace, part, rows, kept),
        }
        output.write_table(part.file("dedup/decisions"), pa.table(columns).cast(DECISIONS))
        self._mark_overlap(part, rows["uid"].filter(kept), output)
        return {
            "inputs": rows.num_rows,
            "kept": pc.sum(kept).as_py() or 0,
            Reason.OVER_FINAL_CAP: pc.sum(over).as_py() or 0,
        }

    def _captions(self, workspace: Workspace, part: FetchedPart, rows: pa.Table, kept: pa.ChunkedArray) -> pa.Array:
        """Return the captions of each kept pair: its own, then those of its duplicates by uid, without repeats."""
        bucket = int(bucket_of_part(np.array([part.number]), self.parts, _caption_buckets(self.parts))[0])
        lost = gather(workspace, self.captions, bucket, _LOST_CAPTIONS).sort_by(
            [("survivor", "ascending"), ("uid", "ascending")]
        )
        own = dict(zip(rows["uid"].to_pylist(), rows["caption"].to_pylist(), strict=True))
        found = {uid: {caption: None} for uid, caption in own.items()}  # a dict keeps the first of each, in order
        for survivor, caption in zip(lost["survivor"].to_pylist(), lost["caption"].to_pylist(), strict=True):
            if survivor in found:
                found[survivor][caption] = None
        lists = [
            list(found[uid])[:MAX_CAPTIONS] if stays else [] for uid, stays in zip(own, kept.to_pylist(), strict=True)
        ]
        return pa.array(lists, pa.list_(pa.string()))

    def _mark_overlap(self, part: FetchedPart, kept: pa.ChunkedArray, output: UnitOutput) -> None:
        overlap = output.workspace.read_table(part.file(".wit/dedup/overlap"))
        marked = overlap.append_column("kept", pc.is_in(overlap["uid"], kept.combine_chunks()))
        marked = marked.append_column("part", pa.repeat(pa.scalar(part.number, pa.int32()), overlap.num_rows))
        output.write_table(part.file(".wit/dedup/marked"), marked)


@dataclass(frozen=True)
class CollectOverlap:
    """Join the overlap rows of all parts with one evaluation set."""

    parts: list[str]

    def __call__(self, name: str, output: UnitOutput) -> Mapping[str, int]:
        tables = []
        for part in self.parts:
            rows = output.workspace.read_table(f".wit/dedup/marked/{part}.parquet")
            tables.append(rows.filter(pc.equal(rows["eval"], name)).drop_columns(["eval"]))
        found = pa.concat_tables(tables).sort_by(
            [("eval_id", "ascending"), ("distance", "ascending"), ("uid", "ascending")]
        )
        output.write_table(f"dedup/overlap/{name}.parquet", found)
        return {"inputs": found.num_rows, "kept": found.num_rows}
