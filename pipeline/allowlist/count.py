"""Wikipedia's dump and page views -> words/ and titles/: counts of words and bigrams, and views of articles.

Two stages of two steps each, all lists of units; scratch files lie under `.wit/` until their stage is done:

    words/count     part of a dump -> words and bigrams, spilled into buckets by a hash of the (first) word; articles
    words/merge     bucket -> words/counts-*.parquet: frequent words and bigrams, with their total counts
    titles/read     page-view file -> titles and views, spilled into buckets by a hash of the title
    titles/merge    bucket -> titles/views-*.parquet: titles of articles, with their total views

A unit holds a bounded number of a part's counts, or one bucket, in memory; neither grows with the dump.
"""

import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine.lock import build_lock
from pipeline.engine.run import Build, run_units
from pipeline.engine.shuffle import MAX_BUCKETS, gather, spill
from pipeline.engine.units import (
    Marker,
    Stateless,
    Unit,
    UnitOutput,
    Work,
    add_counts,
    digest,
    finish_stage,
    finished_stage,
)
from pipeline.engine.workspace import Workspace
from pipeline.errors import UserError
from pipeline.paths import FileVersion, file_versions
from queries.origins.titles import exclusion_reason, keep_articles, rank_titles
from queries.wikipedia.counting import COUNTS, add_up, count_text
from queries.wikipedia.dump import DumpPart, Page, Site, read_pages, read_site, split_dump
from queries.wikipedia.page_views import VIEWS, read_views
from queries.wikipedia.wikitext import plain_text

VERSION = 5
"""Raise it when the same dump would give other counts, or scratch files have another format."""

PART_BYTES = 32 << 20
"""Compressed bytes of a multistream dump in one unit: about a minute of work."""

_BATCH_CHARS = 4 << 20
_COUNTS_IN_MEMORY = 2_000_000
_BYTES_PER_BUCKET = 32 << 20
_TITLE_BUCKETS = 32
_SPILLED_WORDS = ".wit/words/spilled/"
_ARTICLES = "words/articles-"
_TITLES = pa.schema([("title", pa.string())])
_UNPARSED = "unparsed"  # pages whose title is counted, but not their text
_WORDS = "words"  # the number of words of running text


@dataclass(frozen=True)
class WikipediaInputs:
    """The files to count. `project` is the wiki's name in page-view files: "en.wikipedia"."""

    dumps: tuple[str, ...]
    page_views: tuple[str, ...]
    project: str
    site: Site | None  # None without a dump
    min_count: int  # words and bigrams that occur less often are left out
    max_titles: int  # the most viewed


@dataclass(frozen=True)
class WikipediaCounts:
    """The stage's outputs: COUNTS, the number of words of running text, and VIEWS of articles."""

    counts: pa.Table
    words: int
    views: pa.Table
    pages: Mapping[str, int]  # `inputs`, `kept`, and the reasons for excluding page titles


def find_site(dumps: Sequence[str]) -> Site | None:
    """Return the wiki of the dumps; None if there are none.

    Raises:
        InputError: a file is not a dump.
        UserError: the dumps are of different wikis.
    """
    sites = {path: read_site(path) for path in dumps}
    names = {site.name: path for path, site in sites.items()}
    if len(names) > 1:
        raise UserError("dumps of different wikis: " + ", ".join(f"{path} is {name}" for name, path in names.items()))
    return next(iter(sites.values()), None)


def count_wikipedia(build: Build, inputs: WikipediaInputs, part_bytes: int = PART_BYTES) -> WikipediaCounts:
    """Fill words/ and titles/ from a dump and page-view files; finished units are skipped.

    Raises:
        InputError: a dump is missing or damaged.
        UserError: a page-view file is missing, damaged, not a page-view file, or of another wiki.
    """
    with build_lock(build.workspace):
        build.workspace.remove_temporary_files()
        return _count(build, inputs, part_bytes)


def _count(build: Build, inputs: WikipediaInputs, part_bytes: int) -> WikipediaCounts:
    unit_digest = digest(VERSION, _versions(inputs.dumps), inputs.min_count, part_bytes)
    views = _versions(inputs.page_views)
    titles_digest = digest(unit_digest, views, inputs.project, inputs.max_titles)
    titles = _finished(build, "titles", titles_digest)
    # Before the dump, so that page views of another wiki fail within minutes, not after hours.
    viewed = {} if titles else _read_views(build, inputs, titles_digest)
    words = _finished(build, "words", unit_digest) or _count_words(build, inputs, part_bytes, unit_digest)
    titles = titles or _merge_titles(build, inputs, words, viewed, titles_digest)
    return _read(build.workspace, words, titles, inputs)


def _versions(paths: Sequence[str]) -> list[FileVersion]:
    by_path = {path: file_versions(path) for path in paths}
    for path, versions in by_path.items():
        if not versions:
            raise UserError(f"{path}: no such file")
    return [version for versions in by_path.values() for version in versions]


def _finished(build: Build, stage: str, stage_digest: str) -> Marker | None:
    done = finished_stage(build.workspace, stage, stage_digest)
    if done is not None and done.outputs:
        build.progress.say(f"{stage:<14} already counted")
    return done


def _count_words(build: Build, inputs: WikipediaInputs, part_bytes: int, stage_digest: str) -> Marker:
    parts = [part for path in inputs.dumps for part in split_dump(path, part_bytes)]
    buckets = _bucket_count(sum(version.bytes or 0 for version in _versions(inputs.dumps))) if parts else 0
    tasks = _units([(part.path, part) for part in parts], stage_digest)
    counted = _run(build, "words/count", tasks, _CountPart(inputs.site, buckets))
    spilled = [name for marker in counted.values() for name in marker.outputs if name.startswith(_SPILLED_WORDS)]
    merged = _run(build, "words/merge", _bucket_units(buckets, stage_digest), _MergeWords(spilled, inputs.min_count))
    articles = {n: facts for m in counted.values() for n, facts in m.outputs.items() if n.startswith(_ARTICLES)}
    counts = add_counts(counted.values())
    counts[_WORDS] = add_counts(merged.values())["inputs"]
    outputs = articles | {name: facts for m in merged.values() for name, facts in m.outputs.items()}
    return finish_stage(build.workspace, "words", stage_digest, outputs, counts)


def _read_views(build: Build, inputs: WikipediaInputs, stage_digest: str) -> dict[str, Marker]:
    tasks = _units([(path, path) for path in inputs.page_views], stage_digest)
    return _run(build, "titles/read", tasks, _ReadViews(inputs.project, _TITLE_BUCKETS))


def _merge_titles(
    build: Build, inputs: WikipediaInputs, words: Marker, viewed: Mapping[str, Marker], stage_digest: str
) -> Marker:
    views = [name for marker in viewed.values() for name in marker.outputs]
    articles = [name for name in words.outputs if name.startswith(_ARTICLES)]
    merge = _MergeTitles(views, articles, bool(inputs.dumps), inputs.max_titles)
    buckets = _TITLE_BUCKETS if views else 0
    merged = _run(build, "titles/merge", _bucket_units(buckets, stage_digest), merge)
    outputs = {name: facts for marker in merged.values() for name, facts in marker.outputs.items()}
    return finish_stage(build.workspace, "titles", stage_digest, outputs, add_counts(merged.values()))


def _run(build: Build, step: str, units: list[Unit], work: Work) -> dict[str, Marker]:
    """Run a step's units; do nothing and print nothing if there are none."""
    return run_units(build, step, units, Stateless(work)) if units else {}


def _bucket_count(size_bytes: int) -> int:
    """Return the number of buckets that keeps each small: of a full dump, one holds ten million bigrams."""
    return min(max(size_bytes // _BYTES_PER_BUCKET, 4), MAX_BUCKETS // 2)


def _bucket_units(buckets: int, stage_digest: str) -> list[Unit]:
    return [Unit(f"{bucket:05d}", digest(stage_digest, bucket), bucket) for bucket in range(buckets)]


def _units(tasks: Sequence[tuple[str, object]], stage_digest: str) -> list[Unit]:
    """Make a unit of each (path, payload), named after the file and its number."""
    stems = [Path(urlsplit(path).path).name.split(".")[0][:40] for path, _ in tasks]
    names = [f"{stem}-{number:05d}" for number, stem in enumerate(stems)]
    return [Unit(n, digest(stage_digest, n), (n, payload)) for n, (_, payload) in zip(names, tasks, strict=True)]


def _buckets_of(keys: pa.ChunkedArray, buckets: int) -> np.ndarray:
    """Return the bucket of each string, (n,) int64, by its CRC-32."""
    encoded = keys.combine_chunks().dictionary_encode()
    hashes = [zlib.crc32(key.encode()) % buckets for key in encoded.dictionary.to_pylist()]
    return np.array(hashes, dtype=np.int64)[encoded.indices.to_numpy()]


@dataclass(frozen=True)
class _CountPart:
    site: Site | None
    buckets: int

    def run(self, task: tuple[str, DumpPart], output: UnitOutput) -> Mapping[str, int]:
        name, part = task
        counts: Counter[str] = Counter(inputs=0, kept=0)
        titles: list[str] = []
        spill(output, f"{_SPILLED_WORDS}{name}.rows", COUNTS, self.buckets, self._words(part, titles, counts))
        articles = pa.table([pa.array(titles, pa.string())], schema=_TITLES)
        routed = [(articles, _buckets_of(articles["title"], _TITLE_BUCKETS))]
        spill(output, f"{_ARTICLES}{name}.rows", _TITLES, _TITLE_BUCKETS, routed)
        return counts

    def _words(self, part: DumpPart, titles: list[str], counts: Counter[str]) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """Count the words of a part; also collect the titles of its articles and the counts of its pages."""
        batches = (count_text(pa.array(lines)) for lines in self._lines(part, titles, counts))
        for table in _in_bounded_memory(batches):
            yield table, _buckets_of(table["first"], self.buckets)

    def _lines(self, part: DumpPart, titles: list[str], counts: Counter[str]) -> Iterator[list[str]]:
        lines: list[str] = []
        chars = 0
        for page in read_pages(part):
            reason = exclusion_reason(page)
            counts["inputs"] += 1
            counts[reason or "kept"] += 1
            if reason is None:
                titles.append(page.title)
            text = self._text(page, counts)
            lines += text.split("\n")
            chars += len(text)
            if chars >= _BATCH_CHARS:
                yield lines
                lines, chars = [], 0
        yield lines

    def _text(self, page: Page, counts: Counter[str]) -> str:
        """Return the text of an article; an empty string for other pages."""
        if page.namespace != 0 or page.is_redirect:
            return ""
        try:
            return plain_text(page.markup, self.site.namespaces if self.site else ())
        except ValueError:
            counts[_UNPARSED] += 1
            return ""


def _in_bounded_memory(batches: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Add up counts as they arrive, and yield the sums whenever they exceed the limit."""
    pending: list[pa.Table] = []
    rows = merged_rows = 0
    for counts in batches:
        pending.append(counts)
        rows += counts.num_rows
        if rows >= 2 * merged_rows + _COUNTS_IN_MEMORY // 2:
            total = add_up(pa.concat_tables(pending))
            pending, rows, merged_rows = [total], total.num_rows, total.num_rows
            if merged_rows >= _COUNTS_IN_MEMORY:
                yield total
                pending, rows, merged_rows = [], 0, 0
    if pending:
        yield add_up(pa.concat_tables(pending))


@dataclass(frozen=True)
class _ReadViews:
    project: str
    buckets: int

    def run(self, task: tuple[str, str], output: UnitOutput) -> Mapping[str, int]:
        name, path = task
        routed = ((views, _buckets_of(views["title"], self.buckets)) for views in self._views(path))
        rows = spill(output, f".wit/titles/spilled/{name}.rows", VIEWS, self.buckets, routed)
        return {"inputs": rows, "kept": rows}

    def _views(self, path: str) -> Iterator[pa.Table]:
        """Read views with titles spelled as in dumps, so that equal titles hash to the same bucket."""
        for views in read_views(path, self.project):
            yield views.set_column(0, "title", pc.replace_substring(views["title"], "_", " "))


@dataclass(frozen=True)
class _MergeWords:
    files: list[str]
    min_count: int

    def run(self, bucket: int, output: UnitOutput) -> Mapping[str, int]:
        """Write the frequent words and bigrams of a bucket; count the words of running text."""
        total = add_up(gather(output.workspace, self.files, bucket, COUNTS))
        words = pc.sum(total.filter(pc.field("second") == "")["count"]).as_py() or 0
        frequent = total.filter(pc.field("count") >= self.min_count)
        kept = pc.sum(frequent.filter(pc.field("second") == "")["count"]).as_py() or 0
        output.write_table(f"words/counts-{bucket:05d}.parquet", frequent)
        return {"inputs": words, "kept": kept, "rare": words - kept}


@dataclass(frozen=True)
class _MergeTitles:
    views: list[str]
    articles: list[str]
    has_dump: bool
    max_titles: int

    def run(self, bucket: int, output: UnitOutput) -> Mapping[str, int]:
        """Write the most viewed articles of a bucket."""
        views = gather(output.workspace, self.views, bucket, VIEWS)
        summed = views.group_by("title", use_threads=False).aggregate([("views", "sum")]).rename_columns(VIEWS.names)
        articles = gather(output.workspace, self.articles, bucket, _TITLES)["title"] if self.has_dump else None
        of_articles = keep_articles(summed, articles)
        kept = rank_titles(of_articles)[: self.max_titles]
        output.write_table(f"titles/views-{bucket:05d}.parquet", kept)
        return {
            "inputs": summed.num_rows,
            "kept": kept.num_rows,
            "no_article": summed.num_rows - of_articles.num_rows,
            "few_views": of_articles.num_rows - kept.num_rows,
        }


def _read(workspace: Workspace, words: Marker, titles: Marker, inputs: WikipediaInputs) -> WikipediaCounts:
    """Read the counts, and the `max_titles` most viewed titles."""
    counts = [workspace.read_table(name) for name in sorted(words.outputs) if not name.startswith(_ARTICLES)]
    views = VIEWS.empty_table()
    for name in sorted(titles.outputs):
        views = rank_titles(pa.concat_tables([views, workspace.read_table(name)]))[: inputs.max_titles]
    pages = {reason: n for reason, n in words.counts.items() if reason != _WORDS}
    return WikipediaCounts(pa.concat_tables([COUNTS.empty_table(), *counts]), words.counts.get(_WORDS, 0), views, pages)
