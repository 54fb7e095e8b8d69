"""Decide which fetched pairs stay, and find their overlap with evaluation sets: the units' work, part by part.

steps.py has the order of the steps.
"""

import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dedup.captions import CAPTION_OVERLAP
from dedup.copies.detector import Detector
from dedup.overlap import OVERLAP
from pipeline.consent.block_lists import BlockLists
from pipeline.consent.policy import Signal
from pipeline.engine.shuffle import gather_some, group_count, group_of_part, spill
from pipeline.engine.sorted_rows import Fewer
from pipeline.engine.units import UnitOutput, Work
from pipeline.engine.workspace import Workspace
from pipeline.fetching.block_files import BlockFiles, read_block_lists
from pipeline.records import DECISIONS, Reason
from pipeline.stages import control
from pipeline.stages.balance.ranking import Ranking
from pipeline.stages.balance.scans import OpenSelect, SelectQueries, matched_columns
from pipeline.stages.dedup.duplicates import FetchedPart, PartGroup, in_evals, successes
from pipeline.stages.described import DescribedPart
from pipeline.stages.evals import LoadedEval
from pipeline.stages.listed import find_listed
from pipeline.stages.lookup import Lookup, OpenLookup

MAX_CAPTIONS = 64
"""The maximum of captions that a survivor keeps: one placeholder image had a hundred thousand."""

_OVERLAP = pa.schema([pa.field("eval", pa.string()), *OVERLAP])

_CAPTIONS = pa.schema([pa.field("eval", pa.string()), *CAPTION_OVERLAP])

_LOST_CAPTIONS = pa.schema([("survivor", pa.string()), ("uid", pa.string()), ("caption", pa.string())])


@dataclass(frozen=True)
class OpenOverlap:
    root: str
    lookup: Lookup
    min_quality: int

    def open(self) -> Work:
        lookup = self.lookup.open(Workspace(self.root))
        sets = {name: lookup.load(name) for name in self.lookup.names}
        return FindOverlap(lookup, sets, self.min_quality, self.lookup.detector)


@dataclass(frozen=True)
class FindOverlap:
    """Compare every fetched image of a part with every evaluation set, by name, and the negative control."""

    lookup: OpenLookup
    sets: Mapping[str, LoadedEval]
    min_quality: int
    detector: Detector | None

    def run(self, part: FetchedPart, output: UnitOutput) -> Mapping[str, int]:
        images = successes(output.workspace, part, ["uid", "pdq", "pdq_quality", "sha256", "caption"])
        with self._described(part, output.workspace, images["uid"].to_pylist()) as described:
            found = self.lookup.find(self.sets, images, self.min_quality, described)
        matches = [_named(rows, name, _OVERLAP) for name, rows in found.items()]
        output.write_table(part.file(".wit/dedup/overlap"), pa.concat_tables([_OVERLAP.empty_table(), *matches]))
        texts = [_named(one.find_captions(images), name, _CAPTIONS) for name, one in self.sets.items()]
        output.write_table(part.file(".wit/dedup/texts"), pa.concat_tables([_CAPTIONS.empty_table(), *texts]))
        return {"inputs": images.num_rows, "kept": images.num_rows}

    @contextmanager
    def _described(self, part: FetchedPart, workspace: Workspace, uids: list[str]) -> Iterator[DescribedPart | None]:
        if self.detector is None or not self.sets:
            yield None
            return
        dimensions = self.detector.card.dimensions
        with workspace.open(f"fetched/{part.name}.tar") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            yield DescribedPart.read(workspace, part.name, uids, tar, dimensions)


def _named(matches: pa.Table, name: str, schema: pa.Schema) -> pa.Table:
    return matches.append_column("eval", pa.repeat(name, matches.num_rows)).select(schema.names).cast(schema)


@dataclass(frozen=True)
class OpenSurvivors:
    remove_evals: bool
    parts: int
    ranking: Ranking
    taken: BlockFiles

    def open(self) -> Work:
        return WriteSurvivors(self.remove_evals, self.parts, self.ranking, read_block_lists(self.taken))


@dataclass(frozen=True)
class WriteSurvivors:
    """Write the survivors of parts for the balance, and send the captions of duplicates to their survivors."""

    remove_evals: bool
    parts: int
    ranking: Ranking
    taken: BlockLists

    def run(self, group: PartGroup, output: UnitOutput) -> Mapping[str, int]:
        counts = Counter[str]()
        lost = self._lost_captions(group, output, counts)
        spill(output, group.rows(".wit/dedup/captions"), _LOST_CAPTIONS, group_count(self.parts), lost)
        return counts

    def _lost_captions(
        self, group: PartGroup, output: UnitOutput, counts: Counter[str]
    ) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """Yield the captions of duplicates, routed to the groups of their survivors; also write the survivors."""
        duplicates = duplicates_of(output.workspace, group)
        for part in group.parts:
            columns = matched_columns(self.ranking)
            rows = successes(output.workspace, part, [*columns, "caption", *_LISTED_BY])
            outcome = drop_reasons(output.workspace, part, rows, duplicates, self.remove_evals, self.taken)
            survivors = rows.filter(pc.is_null(outcome["reason"])).select(columns)
            output.write_table(part.file(".wit/dedup/survivors"), survivors)
            counts.update(reason for reason in outcome["reason"].to_pylist() if reason is not None)
            counts.update(inputs=rows.num_rows, kept=survivors.num_rows)
            has_survivor = pc.and_(pc.is_valid(outcome["survivor"]), pc.not_equal(outcome["reason"], _TAKEN))
            rows_of = [outcome["survivor"], rows["uid"], rows["caption"]]
            captions = pa.table(rows_of, _LOST_CAPTIONS).filter(has_survivor)
            yield captions, group_of_part(outcome["survivor_part"].filter(has_survivor).to_numpy(), self.parts)


def duplicates_of(workspace: Workspace, group: PartGroup) -> pa.Table:
    """Return the rows of `dedup/duplicates.parquet` about images of a group of parts."""
    first, last = group.parts[0].number, group.parts[-1].number
    return workspace.read_table("dedup/duplicates.parquet", filters=[("part", ">=", first), ("part", "<=", last)])


_LISTED_BY = ("url", "sha256", "pdq")
_TAKEN = Reason.OPTED_OUT.value


def drop_reasons(
    workspace: Workspace,
    part: FetchedPart,
    rows: pa.Table,
    duplicates: pa.Table,
    remove_evals: bool,
    taken: BlockLists,
) -> pa.Table:
    """Return, per fetched image of a part, `reason`, `survivor` and `survivor_part` of its drop; nulls if it stays.

    What was taken down goes last: a duplicate of it does not come back in its place.
    """
    uids = rows["uid"]
    outcome = duplicates.select(["reason", "survivor", "survivor_part"]).take(pc.index_in(uids, duplicates["uid"]))
    if remove_evals:
        matched = pc.is_in(uids, in_evals(workspace, part))
        outcome = outcome.set_column(0, "reason", pc.if_else(matched, Reason.EVAL_OVERLAP.value, outcome["reason"]))
    if taken:
        listed = find_listed(rows, [(Signal.TAKEDOWN, taken)])["uid"].combine_chunks()
        outcome = outcome.set_column(0, "reason", pc.if_else(pc.is_in(uids, listed), _TAKEN, outcome["reason"]))
    return outcome


@dataclass(frozen=True)
class OpenDecide:
    select: OpenSelect
    captions: list[str]
    parts: int
    captions_at_once: int
    remove_evals: bool
    taken: BlockFiles

    def open(self) -> Work:
        few = Fewer(self.captions_at_once, first_captions)
        taken = read_block_lists(self.taken)
        return _Decide(self.select.open(), self.captions, self.parts, few, self.remove_evals, taken)


@dataclass(frozen=True)
class _Decide:
    """Write the decisions about each part, and its overlap rows with `kept`."""

    select: SelectQueries
    captions: list[str]
    parts: int
    few: Fewer
    remove_evals: bool
    taken: BlockLists

    def run(self, group: PartGroup, output: UnitOutput) -> Mapping[str, int]:
        number = int(group_of_part(np.array([group.parts[0].number]), self.parts)[0])
        sent = gather_some(output.workspace, self.captions, number, _LOST_CAPTIONS)
        lost = first_captions(self.few.read(sent, _LOST_CAPTIONS))
        duplicates = duplicates_of(output.workspace, group)
        counts = Counter[str]()
        images, texts = [], []
        for part in group.parts:
            kept = self._decide(part, duplicates, lost, output, counts)
            images.append(_marked(output.workspace, part, ".wit/dedup/overlap", kept))
            texts.append(_marked(output.workspace, part, ".wit/dedup/texts", kept))
        output.write_table(f".wit/dedup/marked/{group.name}.parquet", pa.concat_tables(images))
        output.write_table(f".wit/dedup/marked_texts/{group.name}.parquet", pa.concat_tables(texts))
        return counts

    def _decide(
        self, part: FetchedPart, duplicates: pa.Table, lost: pa.Table, output: UnitOutput, counts: Counter[str]
    ) -> pa.Array:
        """Write the decisions about a part; return the uids of the pairs that stay."""
        rows = successes(output.workspace, part, [*matched_columns(self.select.ranking), "caption", *_LISTED_BY])
        outcome = drop_reasons(output.workspace, part, rows, duplicates, self.remove_evals, self.taken)
        survives = pc.is_null(outcome["reason"])
        selected = self.select.select(rows)
        chosen = pc.greater(pc.list_value_length(selected), 0)
        kept = pc.and_(survives, chosen)
        over = pc.and_(survives, pc.invert(chosen))
        columns = {
            "uid": rows["uid"],
            "reason": pc.if_else(over, Reason.OVER_FINAL_CAP.value, outcome["reason"]),
            "survivor": outcome["survivor"],
            "selected_by": pc.if_else(kept, selected, pa.scalar([], selected.type)),
            "captions": _captions(rows, lost.filter(pc.is_in(lost["survivor"], rows["uid"])), kept),
        }
        output.write_table(part.file("dedup/decisions"), pa.table(columns).cast(DECISIONS))
        counts.update({"inputs": rows.num_rows, "kept": pc.sum(kept).as_py() or 0})
        counts[Reason.OVER_FINAL_CAP] += pc.sum(over).as_py() or 0
        return rows["uid"].filter(kept).combine_chunks()


def first_captions(lost: pa.Table) -> pa.Table:
    """Return of the captions sent to each survivor the first MAX_CAPTIONS different ones, by uid."""
    ordered = lost.sort_by([("survivor", "ascending"), ("uid", "ascending")])
    survivor = ordered["survivor"].dictionary_encode().combine_chunks().indices.to_numpy().astype(np.int64)
    caption = ordered["caption"].dictionary_encode().combine_chunks().indices.to_numpy().astype(np.int64)
    at = np.sort(np.unique(np.stack([survivor, caption]), axis=1, return_index=True)[1])
    place = np.arange(len(at)) - np.searchsorted(survivor[at], survivor[at])
    return ordered.take(pa.array(at[place < MAX_CAPTIONS]))


def _captions(rows: pa.Table, lost: pa.Table, kept: pa.ChunkedArray) -> pa.Array:
    """Return the captions of each kept pair: its own, then those of its duplicates by uid, without repeats."""
    own = dict(zip(rows["uid"].to_pylist(), rows["caption"].to_pylist(), strict=True))
    found = {uid: {caption: None} for uid, caption in own.items()}  # a dict keeps the first of each, in order
    for survivor, caption in zip(lost["survivor"].to_pylist(), lost["caption"].to_pylist(), strict=True):
        found[survivor][caption] = None
    lists = [list(found[uid])[:MAX_CAPTIONS] if stays else [] for uid, stays in zip(own, kept.to_pylist(), strict=True)]
    return pa.array(lists, pa.list_(pa.string()))


def _marked(workspace: Workspace, part: FetchedPart, folder: str, kept: pa.Array) -> pa.Table:
    """Return the matches of a part in a folder; the column `kept` is whether the pair stays in the set."""
    matches = workspace.read_table(part.file(folder))
    marked = matches.append_column(pa.field("kept", pa.bool_()), pc.is_in(matches["uid"], kept))
    number = pa.repeat(pa.scalar(part.number, pa.int32()), matches.num_rows)
    return marked.append_column(pa.field("part", pa.int32()), number)


@dataclass(frozen=True)
class CollectOverlap:
    """Join the matching images of all parts with one evaluation set, or with the negative control."""

    marked: list[str]

    def run(self, name: str, output: UnitOutput) -> Mapping[str, int]:
        found = _joined(output.workspace, self.marked, name, ["eval_id", "distance", "uid"])
        file = "dedup/control.parquet" if name == control.OVERLAP else f"dedup/overlap/{name}.parquet"
        output.write_table(file, found)
        return {"inputs": found.num_rows, "kept": found.num_rows}


@dataclass(frozen=True)
class CollectCaptions:
    """Join the matching captions of all parts with one evaluation set."""

    marked: list[str]

    def run(self, name: str, output: UnitOutput) -> Mapping[str, int]:
        found = _joined(output.workspace, self.marked, name, ["eval_id", "uid"])
        output.write_table(f"dedup/captions/{name}.parquet", found)
        return {"inputs": found.num_rows, "kept": found.num_rows}


def _joined(workspace: Workspace, marked: list[str], name: str, order: list[str]) -> pa.Table:
    tables = []
    for name_of_group in marked:
        rows = workspace.read_table(name_of_group)
        tables.append(rows.filter(pc.equal(rows["eval"], name)).drop_columns(["eval"]))
    return pa.concat_tables(tables).sort_by([(column, "ascending") for column in order])
