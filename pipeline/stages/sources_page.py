"""report/sources.html: what each source gave, what was kept of it, and some of the rows that were dropped."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dedup.charts import Bar, bucket_label, count_buckets, histogram
from pipeline.consent.policy import Signal
from pipeline.engine.units import Marker, read_markers
from pipeline.engine.workspace import Workspace
from pipeline.filters.examples import EXAMPLES_PER_REASON, NEVER_SHOWN
from pipeline.filters.families import caption_families
from pipeline.filters.hosts import host_of, registered_domain
from pipeline.pages import render_page

_MOST_SOURCES = 30
_TOP = 12
_EXAMPLE_FILES = 200
_FAMILIES = 20
_MIN_FAMILY = 3
_FAMILY_EXAMPLES = 4
_FAMILY_CAPTIONS = 100_000
"""Captions that are compared: each shard is a random sample of the set."""
_SCORE_BINS = np.linspace(-0.2, 0.6, 33)


@dataclass
class SourceFacts:
    """What is known of one source: a file, or the files of a folder where there are many."""

    name: str
    files: int = 0
    rows: int = 0
    pairs: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    kept: int = 0
    host_counts: Counter[str] = field(default_factory=Counter)
    language_counts: Counter[str] = field(default_factory=Counter)
    caption_chars: list[np.ndarray] = field(default_factory=list)
    shorter_sides: list[np.ndarray] = field(default_factory=list)
    all_scores: list[np.ndarray] = field(default_factory=list)

    @property
    def reasons(self) -> list[tuple[str, int]]:
        return self.dropped.most_common()

    @property
    def hosts(self) -> list[tuple[str, int]]:
        return _top(self.host_counts)

    @property
    def languages(self) -> list[tuple[str, int]]:
        return _top(self.language_counts)

    @property
    def lengths(self) -> list[Bar]:
        return _log_chart(self.caption_chars)

    @property
    def sides(self) -> list[Bar]:
        return _log_chart(self.shorter_sides)

    @property
    def scores(self) -> list[Bar]:
        """The histogram of scores; empty without any."""
        values = np.concatenate([np.zeros(0, np.float32), *self.all_scores])
        if not len(values):
            return []
        counts, edges = np.histogram(np.clip(values, _SCORE_BINS[0], _SCORE_BINS[-1]), _SCORE_BINS)
        labels = [f"{low:.3f} to {high:.3f}" for low, high in pairwise(edges)]
        return histogram(counts.tolist(), labels, 400, 70)


def _top(counts: Counter[str]) -> list[tuple[str, int]]:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(n for _, n in ordered[_TOP:])
    return ordered[:_TOP] + ([(f"{len(ordered) - _TOP:,} more", rest)] if rest else [])


def _log_chart(parts: Sequence[np.ndarray]) -> list[Bar]:
    buckets = count_buckets(np.concatenate([np.zeros(0, np.int64), *parts]))
    return histogram(buckets, [bucket_label(bucket) for bucket in range(len(buckets))], 400, 70)


def write_sources_page(workspace: Workspace, shards: Sequence[str], shard_count: int) -> str:
    """Return the page; what is kept is counted in the tables `shards`, of `shard_count`."""
    groups, sources = measure_sources(read_markers(workspace, "pairs"))
    examples: dict[str, list[dict[str, Any]]] = {}
    captions = [pa.array([], pa.string())]
    for name in shards:
        rows = workspace.read_table(name)
        if sum(map(len, captions)) < _FAMILY_CAPTIONS:
            captions += rows.filter(pc.equal(rows["status"], "success"))["caption"].chunks
        _measure_kept(rows, groups, sources)
        _add_examples(examples, _dropped_later(rows))
    for table in _dropped_earlier(workspace):
        _add_examples(examples, table)
    counted = "all shards" if len(shards) == shard_count else f"{len(shards):,} of {shard_count:,} shards"
    ordered = sorted(sources.values(), key=lambda source: (-source.rows, source.name))
    compared = pa.concat_arrays(captions)[:_FAMILY_CAPTIONS]
    return render_page(
        "sources.html.j2",
        sources=ordered,
        counted=counted,
        families=largest_families(compared),
        compared=len(compared),
        examples=sorted(examples.items()),
    )


def largest_families(captions: pa.StringArray) -> list[tuple[int, list[str]]]:
    """Return the size of each of the largest families of near-equal captions, and some different ones of it."""
    of_row = caption_families(captions)
    families, sizes = np.unique(of_row, return_counts=True)
    largest = np.lexsort((families, -sizes))[:_FAMILIES]
    shown = []
    for place in largest[sizes[largest] >= _MIN_FAMILY].tolist():
        members = captions.take(pa.array(np.flatnonzero(of_row == families[place])))
        shown.append((int(sizes[place]), members.unique()[:_FAMILY_EXAMPLES].to_pylist()))
    return shown


def measure_sources(markers: Mapping[str, Marker]) -> tuple[dict[str, str], dict[str, SourceFacts]]:
    """Return file -> its source, and the sources by name, with what the stage `pairs` counted of them."""
    files = {unit: marker.about or unit for unit, marker in markers.items()}
    groups = {name: name for name in files.values()}
    if len(groups) > _MOST_SOURCES:
        groups = {name: re.sub(r"[^/]*?((?:\.[A-Za-z0-9]{1,8})*)$", r"*\1", name, count=1) for name in groups}
    if len(set(groups.values())) > _MOST_SOURCES:
        groups = dict.fromkeys(groups, "all sources")
    sources: dict[str, SourceFacts] = {}
    for unit, marker in markers.items():
        name = groups[files[unit]]
        source = sources.setdefault(name, SourceFacts(name))
        source.files += 1
        source.rows += marker.counts["inputs"]
        source.pairs += marker.counts["kept"]
        source.dropped.update({k: n for k, n in marker.counts.items() if k not in ("inputs", "kept")})
    return groups, sources


def _measure_kept(rows: pa.Table, groups: Mapping[str, str], sources: Mapping[str, SourceFacts]) -> None:
    names = np.array([groups.get(name, "") for name in rows["source"].to_pylist()], object)
    is_kept = pc.equal(rows["status"], "success").to_numpy()
    for name, source in sources.items():
        is_ours = names == name
        kept = rows.filter(pa.array(is_ours & is_kept))
        source.kept += kept.num_rows
        source.host_counts.update(registered_domain(host_of(url)) for url in kept["url"].to_pylist())
        source.language_counts.update(kept["language"].to_pylist())
        source.caption_chars.append(pc.utf8_length(kept["caption"]).to_numpy().astype(np.int64))
        sides = pc.min_element_wise(kept["original_width"], kept["original_height"])
        source.shorter_sides.append(sides.to_numpy().astype(np.int64))
        if "score" in rows.column_names:
            source.all_scores.append(rows["score"].filter(pa.array(is_ours)).drop_null().to_numpy())


def _dropped_later(rows: pa.Table) -> pa.Table:
    """Return the rows of a shard that were planned and are not in the tar, without those that a list refuses."""
    is_listed = pc.fill_null(pc.equal(rows["refused_by"], Signal.BLOCK_LIST.value), False)
    shown = pc.and_(pc.is_valid(rows["reason"]), pc.invert(is_listed))
    return rows.filter(shown).select(["reason", "url", "caption"])


def _dropped_earlier(workspace: Workspace) -> Iterable[pa.Table]:
    names = sorted(workspace.sizes("dropped"))
    for name in names[:: max(1, len(names) // _EXAMPLE_FILES)]:
        yield workspace.read_table(name, ["reason", "url", "caption"])


def _add_examples(examples: dict[str, list[dict[str, Any]]], rows: pa.Table) -> None:
    """Add rows to those of their reason, until there are enough; samples and shards are in random order."""
    for row in rows.to_pylist():
        found = examples.setdefault(row["reason"], [])
        if row["reason"] not in NEVER_SHOWN and len(found) < EXAMPLES_PER_REASON:
            found.append(row)
    for reason in NEVER_SHOWN:
        examples.pop(reason, None)
