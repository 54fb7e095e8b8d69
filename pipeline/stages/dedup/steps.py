"""fetched/ -> dedup/: decide which fetched pairs stay, and find their overlap with the evaluation sets.

Steps (scratch results are under `.wit/dedup/` until the stage is done):

    overlap    fetched part -> matches with every evaluation set, of images and captions, before anything is removed
    spill      fetched parts -> image facts, in buckets of equal fingerprints
    group      bucket -> exact duplicates; one row per distinct fingerprint, in buckets of equal hash bands
    compare    band bucket -> edges: fingerprints within `max_distance_bits`, verified; in buckets of uids
    settle-N   uid bucket -> which near duplicates go, in rounds until all are decided
    follow     uid bucket -> (duplicate, survivor) pairs, in ranges of parts
    write      all of them -> dedup/duplicates.parquet, and dedup/limits.json
    survive    fetched parts -> the pairs that are not duplicates
    count, select                                            } stages/balance/scans.py, with the final cap
    decide     fetched parts -> dedup/decisions/part-*.parquet, and its overlap rows with `kept`
    collect    evaluation set -> dedup/overlap/<name>.parquet, negative control -> dedup/control.parquet
    captions   evaluation set with captions -> dedup/captions/<name>.parquet

If there are many parts, a unit has several of them. Decisions are data: nothing is deleted here; the shards stage
applies them.
"""

import itertools
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dedup.duplicates import MAX_BETTER
from pipeline.config import Config
from pipeline.engine.run import Build, run_units
from pipeline.engine.shuffle import Pieces, group_of_part
from pipeline.engine.units import (
    Marker,
    Prepare,
    Stateless,
    Unit,
    add_counts,
    digest,
    finish_stage,
    finished_stage,
)
from pipeline.fetching.block_files import REFILLED, BlockFiles, contents_of, find_takedowns
from pipeline.records import Reason
from pipeline.stages import control
from pipeline.stages.balance.ranking import Ranking
from pipeline.stages.balance.scans import (
    Balance,
    OpenSelect,
    QueryHashes,
    find_balance,
    save_thresholds,
    write_balance,
)
from pipeline.stages.dedup.decisions import CollectCaptions, CollectOverlap, OpenDecide, OpenOverlap, OpenSurvivors
from pipeline.stages.dedup.duplicates import CompareBands, FetchedPart, GroupImages, PartGroup, SpillImages
from pipeline.stages.dedup.settle import EDGE_BYTES, FollowSurvivors, SettleFirst, SettleNext, WriteDuplicates
from pipeline.stages.described import load_detector, run_described
from pipeline.stages.evals import run_evals
from pipeline.stages.lookup import Lookup, run_lookup
from pipeline.stages.measured import run_measured
from queries.allowlist import Allowlist

VERSION = 10
"""Raise it when the same images would give other decisions, or scratch files have another format."""

_IMAGES_PER_PIECE = 50_000
_IMAGES_PER_BAND_PIECE = 12_500
"""Every image is in 16 or 32 pieces of bands. More at a time would save nothing, and leave fewer units to share out."""
_IMAGE_BYTES, _BANDS_BYTES, _DUPLICATE_BYTES, _CAPTION_BYTES = 4_096, 32 * 384, 448, 2_048
"""Memory of an image with the copies that are made of it: while exact copies are found, bands are compared, the
duplicates of a range of parts are sorted, and their captions are given to survivors (benchmarks/row_memory.py)."""
_EDGES_PER_IMAGE = 4
"""Edges of an image to better ones, on average: the pieces of settling have this many, or what was found if more."""


def run_dedup(
    build: Build,
    config: Config,
    base_dir: Path,
    allowlist: Allowlist,
    keys: QueryHashes,
    fetched: Mapping[str, Marker],
    filtered: Mapping[str, Marker],
) -> Marker:
    """Fill dedup/; return the stage's marker, whose counts are those of unique and kept pairs together.

    `filtered` has the rows of the parts where images are filtered, else nothing.
    """
    detector = load_detector(config, base_dir)
    indexes = run_evals(build, config, base_dir, detector)
    if detector and config.evals:
        run_described(build, detector, fetched)
    lookup = run_lookup(build, indexes, control.run_control(build, config, detector), detector)
    run_measured(build, config, base_dir, lookup)
    taken = find_takedowns(build.workspace, REFILLED)
    content = sorted(
        (name, f.sha256)
        for m in (filtered or fetched).values()
        for name, f in m.outputs.items()
        if name.endswith("parquet")
    )
    decides = [VERSION, content, indexes.digest, config.dedup.model_dump(), config.balance.cap, config.seed]
    ranking = _final_ranking(config)
    keys = replace(keys, ranking=ranking)
    ranked = (
        [[ranking.by, ranking.temperature, *([ranking.kept] if ranking.kept else [])]] if ranking.needs_scores else []
    )
    limit = config.filters.max_urls_per_image
    limited = [] if limit is None else [{"max_urls": limit}]
    refilled = [contents_of(taken)] if taken else []
    searched = [] if lookup.is_exact else [lookup.digest]
    stage_digest = digest(*decides, lookup.controls.digest, allowlist.sha256, *ranked, *limited, *refilled, *searched)
    done = finished_stage(build.workspace, "dedup", stage_digest)
    if done is not None:
        build.progress.say("dedup          already done")
        return done
    images = add_counts((filtered or fetched).values())["kept"]
    parts = list(fetched)
    stage = _Stage(build, config, lookup, parts, bool(filtered), ranking, images, stage_digest, taken)
    stage.overlap()
    duplicates = stage.write(stage.compare())
    survivors = stage.survive()
    files = [f".wit/dedup/survivors/{part}.parquet" for part in stage.parts]
    balance = find_balance(build, "dedup", files, allowlist, keys, cap=config.balance.cap, inputs=stage_digest)
    decided = stage.decide(balance, keys)
    collected, captions = stage.collect(), stage.collect_captions()
    outputs = {
        name: facts
        for markers in (duplicates, decided, collected, captions)
        for m in markers.values()
        for name, facts in m.outputs.items()
        if not name.startswith(".wit/")
    }
    outputs |= write_balance(build.workspace, "dedup/balance.parquet", balance.counts, config.balance.cap)
    lost, kept = add_counts(survivors.values()), add_counts(decided.values())
    counts = {**lost, Reason.OVER_FINAL_CAP: kept[Reason.OVER_FINAL_CAP], "kept": kept["kept"]}
    return finish_stage(build.workspace, "dedup", stage_digest, outputs, counts)


class Resolved(NamedTuple):
    """The duplicates, in spilled files by ranges of parts; and where limits acted: counts by name."""

    files: list[str]
    limits: Mapping[str, int]


def _final_ranking(config: Config) -> Ranking:
    """Return how queries order their pairs: by the model's scores if `scores.balance` says so, else as in the plan."""
    if config.scores is not None and config.scores.balance != "random":
        return Ranking(*config.scores.ranking)
    return Ranking(*config.balance.ranking)


def _numbers(count: int) -> dict[str, int]:
    return {f"{number:05d}": number for number in range(count)}


def _outputs(markers: Mapping[str, Marker], folder: str) -> list[str]:
    return [name for m in markers.values() for name in m.outputs if name.startswith(f".wit/dedup/{folder}/")]


@dataclass(frozen=True)
class _Stage:
    """The steps of one run of the stage; see the module's docstring for the order."""

    build: Build
    config: Config
    lookup: Lookup
    parts: list[str]
    is_filtered: bool
    ranking: Ranking
    images: int
    stage_digest: str
    taken: BlockFiles
    edges_per_image: int = field(default_factory=lambda: _EDGES_PER_IMAGE)

    @property
    def pieces(self) -> Pieces:
        return self._pieces(min(_IMAGES_PER_PIECE, self.build.rows_at_once(_IMAGE_BYTES)))

    @property
    def band_pieces(self) -> Pieces:
        return self._pieces(min(_IMAGES_PER_BAND_PIECE, self.build.rows_at_once(_BANDS_BYTES)))

    @property
    def settle_pieces(self) -> Pieces:
        return self._pieces(self.build.rows_at_once(self.edges_per_image * EDGE_BYTES))

    @property
    def ranges(self) -> int:
        return max(1, min(len(self.parts), math.ceil(self.images / self.build.rows_at_once(_DUPLICATE_BYTES))))

    def _pieces(self, images: int) -> Pieces:
        return Pieces(max(1, math.ceil(self.images / images)))

    def _run(self, step: str, payloads: Mapping[str, object], prepare: Prepare) -> dict[str, Marker]:
        cut = [self.pieces.count, self.band_pieces.count, self.settle_pieces.count, self.ranges]
        units = [Unit(name, digest(self.stage_digest, cut, step, name), payload) for name, payload in payloads.items()]
        return run_units(self.build, f"dedup/{step}", units, prepare)

    def _parts(self) -> dict[str, FetchedPart]:
        rows = "filtered" if self.is_filtered else "fetched"
        return {name: FetchedPart(number, name, rows) for number, name in enumerate(self.parts)}

    def _groups(self) -> dict[str, PartGroup]:
        numbers = group_of_part(np.arange(len(self.parts)), len(self.parts))
        grouped = itertools.groupby(zip(numbers, self._parts().values(), strict=True), key=itemgetter(0))
        groups = [PartGroup(f"{number:05d}", tuple(part for _, part in parts)) for number, parts in grouped]
        return {group.name: group for group in groups}

    def overlap(self) -> dict[str, Marker]:
        prepare = OpenOverlap(self.build.workspace.root, self.lookup, self.config.dedup.min_quality)
        return self._run("overlap", self._parts(), prepare)

    def group(self) -> dict[str, Marker]:
        spilling = SpillImages(self.pieces, self.config.seed, self.config.dedup.evals == "remove")
        spilled = self._run("spill", self._groups(), Stateless(spilling))
        names = [name for m in spilled.values() for name in m.outputs]
        max_urls, at_once = self.config.filters.max_urls_per_image, self.build.rows_at_once(_IMAGE_BYTES)
        cuts = (self.pieces, self.band_pieces, self.settle_pieces)
        grouping = GroupImages(names, self.config.dedup, *cuts, at_once, max_urls)
        return self._run("group", _numbers(self.pieces.buckets), Stateless(grouping))

    def compare(self) -> Resolved:
        """Decide about near and exact duplicates; return where they are spilled, by ranges of parts."""
        grouped, rounds, limits = self.group(), 0, Counter[str]()
        if self.config.dedup.near_duplicates:
            banded, max_distance_bits = _outputs(grouped, "banded"), self.config.dedup.max_distance_bits
            comparing = CompareBands(banded, max_distance_bits, self.band_pieces, self.settle_pieces)
            compared = self._run("compare", _numbers(self.band_pieces.buckets), Stateless(comparing))
            counts = add_counts(compared.values())
            edges_per_image = min(MAX_BETTER, math.ceil(counts["edges"] / max(1, self.images)))
            if edges_per_image > self.edges_per_image:  # a set of look-alikes: again, into more pieces
                return replace(self, edges_per_image=edges_per_image).compare()
            rounds, limits["edges_not_kept"] = self._settle(compared)
            limits["images_not_compared_with_all"] = counts["limited"]
        losers = _outputs(grouped, "losers")
        following = FollowSurvivors(losers, rounds, self.settle_pieces, len(self.parts), self.ranges)
        followed = self._run("follow", _numbers(self.settle_pieces.buckets), Stateless(following))
        return Resolved(_outputs(followed, "followed"), limits)

    def _settle(self, compared: Mapping[str, Marker]) -> tuple[int, int]:
        """Return the number of rounds that decided everything, and that of edges beyond the limit of an image."""
        pieces, units = self.settle_pieces, _numbers(self.settle_pieces.buckets)
        at_once = self.build.rows_at_once(EDGE_BYTES)
        first = SettleFirst(_outputs(compared, "edges"), _outputs(compared, "listeners"), pieces, at_once)
        counts = add_counts(self._run("settle-1", units, Stateless(first)).values())
        not_kept = counts["inputs"] - counts["kept"]
        number = 1
        while counts["waiting"]:
            number += 1
            settled = self._run(f"settle-{number}", units, Stateless(SettleNext(number, pieces)))
            counts = add_counts(settled.values())
        return number, not_kept

    def write(self, resolved: Resolved) -> dict[str, Marker]:
        writing = WriteDuplicates(self.ranges, dict(resolved.limits))
        return self._run("write", {"all": resolved.files}, Stateless(writing))

    def survive(self) -> dict[str, Marker]:
        surviving = OpenSurvivors(self.config.dedup.evals == "remove", len(self.parts), self.ranking, self.taken)
        return self._run("survive", self._groups(), surviving)

    def decide(self, balance: Balance, keys: QueryHashes) -> dict[str, Marker]:
        thresholds = ".wit/dedup/thresholds.parquet"
        save_thresholds(self.build.workspace, thresholds, balance.thresholds)
        captions = [group.rows(".wit/dedup/captions") for group in self._groups().values()]
        prepare = OpenDecide(
            OpenSelect(self.build.workspace.root, thresholds, keys),
            captions,
            len(self.parts),
            self.build.rows_at_once(_CAPTION_BYTES),
            self.config.dedup.evals == "remove",
            self.taken,
        )
        return self._run("decide", self._groups(), prepare)

    def collect(self) -> dict[str, Marker]:
        marked = [f".wit/dedup/marked/{name}.parquet" for name in self._groups()]
        return self._run("collect", {name: name for name in self.lookup.names}, Stateless(CollectOverlap(marked)))

    def collect_captions(self) -> dict[str, Marker]:
        marked = [f".wit/dedup/marked_texts/{name}.parquet" for name in self._groups()]
        names = [name for name in self.lookup.evals.names if self.lookup.evals.has_captions(name)]
        return self._run("collect-captions", {name: name for name in names}, Stateless(CollectCaptions(marked)))
