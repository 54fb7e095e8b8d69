"""report/pairs.html: the pairs of the set as histograms, and some of them at random, with their images."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dedup.charts import Bar, bucket_label, count_buckets, histogram
from dedup.decode import decode_rgb
from dedup.eval_sets.index import thumbnail
from pipeline.engine.workspace import Workspace
from pipeline.filters.hosts import host_of, registered_domain
from pipeline.pages import render_page
from pipeline.stages.peek import peek

PAIRS_SHOWN = 60
_THUMBNAIL_PX = 192
_TOP = 12
_MOST_MONTHS = 36
_ASPECTS = (0.0, 1 / 3, 1 / 2, 2 / 3, 3 / 4, 0.95, 1.05, 4 / 3, 1.5, 2.0, 3.0, np.inf)
_ASPECT_LABELS = (
    *("taller than 1:3", "1:3 to 1:2", "1:2 to 2:3", "2:3 to 3:4", "3:4 to square", "square, within 5 %"),
    *("square to 4:3", "4:3 to 3:2", "3:2 to 2:1", "2:1 to 3:1", "wider than 3:1"),
)


@dataclass
class PairFacts:
    """What is counted of the pairs in some shards: by bucket, or by name."""

    pairs: int = 0
    sides: Counter[int] = field(default_factory=Counter)
    aspects: Counter[int] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    months: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    hosts: Counter[str] = field(default_factory=Counter)

    def add(self, rows: pa.Table) -> None:
        """Count the samples among the rows of a shard."""
        kept = rows.filter(pc.equal(rows["status"], "success"))
        width, height = (kept[name].to_numpy().astype(np.float64) for name in ("original_width", "original_height"))
        self.pairs += kept.num_rows
        self.sides.update(_buckets(np.minimum(width, height)))
        self.aspects.update((np.searchsorted(_ASPECTS, width / height, side="right") - 1).tolist())
        self.lengths.update(_buckets(pc.utf8_length(kept["caption"]).to_numpy()))
        self.months.update(pc.strftime(kept["captured_at"].drop_null(), "%Y-%m").to_pylist())
        self.languages.update(kept["language"].to_pylist())
        self.hosts.update(registered_domain(host_of(url)) for url in kept["url"].to_pylist())

    def charts(self) -> list[tuple[str, list[Bar]]]:
        """Return the title and the bars of each histogram that has any."""
        found = [
            ("Shorter side of the original image, pixels", _log_chart(self.sides)),
            ("Width to height of the original image", _chart(self.aspects, _ASPECT_LABELS)),
            ("Characters of the caption", _log_chart(self.lengths)),
            ("When the page was crawled", _dates(self.months)),
        ]
        return [(title, chart) for title, chart in found if chart]


def measure_pairs(workspace: Workspace, shards: Sequence[str]) -> PairFacts:
    """Read the tables of some shards, one at a time."""
    facts = PairFacts()
    columns = ["status", "caption", "url", "language", "captured_at", "original_width", "original_height"]
    for name in shards:
        facts.add(workspace.read_table(name, columns))
    return facts


def write_pairs_page(
    workspace: Workspace, shards: Sequence[str], shard_count: int, seed: int, queries: Sequence[str]
) -> str:
    """Return the page; pairs are counted in the tables `shards`, of `shard_count`."""
    facts = measure_pairs(workspace, shards)
    pairs, total = peek(workspace, PAIRS_SHOWN, seed, queries)
    for pair in pairs:
        pair["jpeg"] = thumbnail(decode_rgb(pair["jpeg"], min_side=_THUMBNAIL_PX), _THUMBNAIL_PX)
    return render_page(
        "pairs.html.j2",
        facts=facts,
        charts=facts.charts(),
        languages=_top(facts.languages),
        hosts=_top(facts.hosts),
        pairs=pairs,
        total=total,
        counted="all shards" if len(shards) == shard_count else f"{len(shards):,} of {shard_count:,} shards",
    )


def _buckets(values: np.ndarray) -> dict[int, int]:
    """Return bucket -> how many values are in it, as `count_buckets` numbers them."""
    return dict(enumerate(count_buckets(values)))


def _log_chart(counts: Counter[int]) -> list[Bar]:
    last = max((bucket for bucket, count in counts.items() if count), default=-1)
    return _chart(counts, [bucket_label(bucket) for bucket in range(last + 1)])


def _chart(counts: Counter[int], labels: Sequence[str]) -> list[Bar]:
    return histogram([counts[place] for place in range(len(labels))], labels, 400, 70)


def _dates(months: Counter[str]) -> list[Bar]:
    """Return bars by month, or by year where there are many months; those between without any have none."""
    if not months:
        return []
    first, last = (int(month[:4]) * 12 + int(month[5:]) - 1 for month in (min(months), max(months)))
    if last - first < _MOST_MONTHS:
        labels = [f"{number // 12}-{number % 12 + 1:02d}" for number in range(first, last + 1)]
        return histogram([months[label] for label in labels], labels, 400, 70)
    years = Counter[str]()
    for month, count in months.items():
        years[month[:4]] += count
    labels = [str(year) for year in range(first // 12, last // 12 + 1)]
    return histogram([years[label] for label in labels], labels, 400, 70)


def _top(counts: Counter[str]) -> list[tuple[str, int]]:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(n for _, n in ordered[_TOP:])
    return ordered[:_TOP] + ([(f"{len(ordered) - _TOP:,} more", rest)] if rest else [])
