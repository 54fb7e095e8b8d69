"""sources -> pairs/: read candidates, match their text against the allowlist, keep those that a query matches.

What matches must pass the filters on single pairs (pipeline/filters/pairs.py). Some of the rows that go are written to
dropped/, for the report. One unit per source file; units share only the matcher, which is built once per process.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import Config, PairsConfig
from pipeline.engine.run import Build, run_units
from pipeline.engine.units import Marker, Unit, UnitOutput, Work, digest, marker_name, read_markers
from pipeline.engine.workspace import FileFacts, Workspace
from pipeline.errors import UserError
from pipeline.filters.examples import Examples
from pipeline.filters.pairs import OpenPairFilters, PairFilters
from pipeline.filters.text import REASON
from pipeline.records import PAIRS, Reason, pair_uid
from pipeline.sources import SourceBatch, file_versions, read_source
from pipeline.sources.batch import Origin
from pipeline.sources.opt_out import PagePolicy
from pipeline.sources.range_stream import SourceUnavailable
from pipeline.stages.source_files import SourceFile, searched_files, source_files
from queries.allowlist import Allowlist
from queries.match import QueryMatcher

logger = logging.getLogger(__name__)

VERSION = 7
"""Raise it when the same input would give other pairs."""


def run_pairs(
    build: Build, config: Config, base_dir: Path, allowlist: Allowlist, allowlist_path: str
) -> dict[str, Marker]:
    """Fill pairs/ with one Parquet file per source file; return the markers by unit name."""
    filters = PairFilters.of(config.filters, base_dir)
    prepare = _OpenMatcher(allowlist_path, config.pairs, PagePolicy.of(config.fetch), filters)
    files = source_files(config, base_dir, build.workspace) + searched_files(config, build.workspace)
    forget_unavailable(build.workspace)
    markers = run_units(build, "pairs", [_unit(file, config, allowlist, filters) for file in files], prepare)
    _report_unavailable(markers)
    return markers


def pair_files(pairs: Mapping[str, Marker]) -> dict[str, FileFacts]:
    """Return the files of pairs/, in the order of the units."""
    outputs = (facts for marker in pairs.values() for facts in sorted(marker.outputs.items()))
    return {name: facts for name, facts in outputs if name.startswith("pairs/")}


def forget_unavailable(workspace: Workspace) -> None:
    """Remove the markers of files that an earlier run could not read, so that this one tries them again."""
    for name, marker in read_markers(workspace, "pairs").items():
        if marker.counts.get(Reason.SOURCE_UNAVAILABLE):
            workspace.remove(marker.outputs)
            workspace.remove([marker_name("pairs", name)])


def _report_unavailable(markers: Mapping[str, Marker]) -> None:
    """Warn of files that could not be read.

    Raises:
        UserError: there are no others.
    """
    failed = [marker.about for marker in markers.values() if marker.counts.get(Reason.SOURCE_UNAVAILABLE)]
    if not failed:
        return
    what = f"{len(failed):,} of {len(markers):,} source files could not be read, such as {failed[0]}"
    if len(failed) == len(markers):
        raise UserError(f"{what}: run again later; the log says why")
    logger.warning("%s; run again to try them again", what)


def _unit(file: SourceFile, config: Config, allowlist: Allowlist, filters: PairFilters) -> Unit:
    reads = file.source.model_dump(exclude=_WHICH_FILES) | {"agent": config.fetch.agent}
    if file.source.has_pages:
        reads["page_policy"] = PagePolicy.of(config.fetch).facts()
    # Files of Common Crawl never change, and asking for the version of each would be a request for each.
    versions = [] if file.source.kind == "common-crawl" else file_versions(file.path)
    decides = [VERSION, reads, file.name, versions, config.pairs.model_dump(), allowlist.sha256]
    unit_digest = digest(*decides, *([filters.version] if filters.version else []))
    return Unit(file.unit, unit_digest, file, file.name, file.chain)


_WHICH_FILES = {"paths", "crawls", "sample", "limit", "base_url", "connections"}
"""Keys that say which files to read, and where from, not what is in them."""


@dataclass(frozen=True)
class _OpenMatcher:
    allowlist: str
    limits: PairsConfig
    policy: PagePolicy
    filters: PairFilters

    def open(self) -> Work:
        matcher = QueryMatcher(Allowlist.load(self.allowlist).queries)
        return _ExtractPairs(PairSelection(matcher, self.filters.open()), self.limits, self.policy)


@dataclass(frozen=True)
class _ExtractPairs:
    selection: "PairSelection"
    limits: PairsConfig
    policy: PagePolicy

    def run(self, file: SourceFile, output: UnitOutput) -> Counter[str]:
        counts: Counter[str] = Counter(inputs=0, kept=0)
        examples = Examples(file.unit, file.name)

        def selected() -> Iterator[pa.RecordBatch]:
            for batch in read_source(file.source, file.path, self.limits, self.policy):
                pairs, dropped = self.selection.select(batch.candidates, file.name, examples)
                count_batch(counts, batch, pairs.num_rows, dropped)
                if pairs.num_rows:
                    yield pairs

        name = f"pairs/{file.unit}.parquet"
        try:
            output.write_batches(name, PAIRS, selected())
        except SourceUnavailable as error:
            logger.warning("%s: %s", file.name, error)
            output.write_table(name, PAIRS.empty_table())
            counts, examples = Counter({"inputs": 1, "kept": 0, Reason.SOURCE_UNAVAILABLE: 1}), Examples(file.unit, "")
        output.write_table(f"dropped/{file.unit}.parquet", examples.table())
        return counts


def count_batch(counts: Counter[str], batch: SourceBatch, kept: int, dropped: Mapping[str, int]) -> None:
    """Enter one batch in the account; `dropped` counts its candidates that are not pairs, by reason."""
    counts["inputs"] += batch.candidates.num_rows + batch.dropped.total()
    counts["kept"] += kept
    counts.update({str(reason): n for reason, n in batch.dropped.items()})
    counts.update(dropped)


@dataclass(frozen=True)
class PairSelection:
    """Which candidates are pairs: those that a query matches and that pass the filters."""

    matcher: QueryMatcher
    filters: OpenPairFilters

    def select(
        self, candidates: pa.RecordBatch, source: str, examples: Examples | None = None
    ) -> tuple[pa.RecordBatch, Counter[str]]:
        """Return the pairs, with the columns of PAIRS, and how many candidates are dropped for each reason.

        `examples` are given those that are dropped.
        """
        dropped: Counter[str] = Counter()
        query_ids = self.matcher.match(candidates.column("caption"))
        found = pc.greater(pc.list_value_length(query_ids), 0)
        unmatched = np.where(found.to_numpy(zero_copy_only=False), "", Reason.NO_MATCH).astype(REASON)
        _note(candidates, unmatched, dropped, examples)
        candidates, query_ids = candidates.filter(found), query_ids.filter(found)

        reasons = self.filters.reasons(candidates)
        passes = _note(candidates, reasons, dropped, examples)
        candidates, query_ids = candidates.filter(passes), query_ids.filter(passes)
        languages, sure_languages = self.filters.languages(candidates.column("caption"))
        pairs = _pairs(candidates, query_ids, languages, source)
        reasons = self.filters.pair_reasons(pairs, sure_languages)
        return pairs.filter(_note(pairs, reasons, dropped, examples)), dropped


def _note(rows: pa.RecordBatch, reasons: np.ndarray, dropped: Counter[str], examples: Examples | None) -> pa.Array:
    """Count rows that are dropped and show them to `examples`; return which stay."""
    stays = reasons == ""
    if not stays.all():
        names, counts = np.unique(reasons[~stays], return_counts=True)
        dropped.update(dict(zip(names.tolist(), counts.tolist(), strict=True)))
        if examples is not None:
            examples.add(reasons, rows.column("url"), rows.column("caption"))
    return pa.array(stays)


def _pairs(
    candidates: pa.RecordBatch, query_ids: pa.ListArray, languages: pa.StringArray, source: str
) -> pa.RecordBatch:
    urls, captions = candidates.column("url"), candidates.column("caption")
    columns = {
        "uid": pa.array(_uids(urls.to_pylist(), captions.to_pylist()), pa.string()),
        "url": urls,
        "caption": captions,
        "text_field": candidates.column("text_field"),
        "page_url": candidates.column("page_url"),
        "source": pa.array(np.full(len(urls), source, dtype=object), pa.string()),
        **{name: candidates.column(name) for name in Origin._fields},
        "language": languages,
        "query_ids": query_ids,
    }
    return pa.RecordBatch.from_arrays(
        [columns[name].cast(PAIRS.field(name).type) for name in PAIRS.names], schema=PAIRS
    )


def _uids(urls: Sequence[str], captions: Sequence[str]) -> list[str]:
    return [pair_uid(url, caption) for url, caption in zip(urls, captions, strict=True)]
