"""sources -> pairs/: read candidates, match their text against the allowlist, keep those that a query matches.

What matches must pass the filters on single pairs (pipeline/filters/pairs.py). Some of the rows that go are written to
dropped/, for the report. One unit per source file; units share only the matcher, which is built once per process.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import Config, PairsConfig, SourceConfig
from pipeline.engine.run import Build, run_units
from pipeline.engine.units import Marker, Unit, UnitOutput, Work, digest
from pipeline.engine.workspace import FileFacts
from pipeline.errors import ConfigError
from pipeline.filters.examples import Examples
from pipeline.filters.pairs import OpenPairFilters, PairFilters
from pipeline.filters.text import REASON
from pipeline.records import PAIRS, Reason, pair_uid
from pipeline.sources import SourceBatch, expand_paths, file_versions, read_source
from pipeline.sources.batch import Origin
from queries.allowlist import Allowlist
from queries.match import QueryMatcher
from queries.redact import redact

VERSION = 4
"""Raise it when the same input would give other pairs."""


@dataclass(frozen=True)
class SourceFile:
    """One unit: a file to read, and its source's settings."""

    source: SourceConfig
    path: str
    name: str  # without secrets and the config's folder, for `pairs.source`

    @property
    def unit(self) -> str:
        """Name the unit and its output: the file's stem for readers, and a hash of the whole name to make it unique."""
        stem = re.sub(r"[^\w-]", "_", Path(urlsplit(self.name).path).name.split(".")[0][:40])  # "[" would be a pattern
        return f"{stem}-{digest(self.name)[:16]}"


def run_pairs(
    build: Build, config: Config, base_dir: Path, allowlist: Allowlist, allowlist_path: str
) -> dict[str, Marker]:
    """Fill pairs/ with one Parquet file per source file; return the markers by unit name."""
    filters = PairFilters.of(config.filters, base_dir)
    prepare = _OpenMatcher(allowlist_path, config.pairs, config.fetch.agent, filters)
    return run_units(build, "pairs", units(config, base_dir, allowlist, filters), prepare)


def pair_files(pairs: Mapping[str, Marker]) -> dict[str, FileFacts]:
    """Return the files of pairs/, in the order of the units."""
    outputs = (facts for marker in pairs.values() for facts in sorted(marker.outputs.items()))
    return {name: facts for name, facts in outputs if name.startswith("pairs/")}


def units(config: Config, base_dir: Path, allowlist: Allowlist, filters: PairFilters) -> list[Unit]:
    """List the source files, in the order of the config; a file listed twice is read once."""
    listed: dict[str, SourceFile] = {}
    for source in config.sources:
        for path, name in _named_files(source, base_dir).items():
            file = SourceFile(source, path, name)
            if listed.setdefault(path, file).source != source:
                raise ConfigError(f"sources: {file.name} is listed by two [[sources]] tables; list it once")
    if not listed:
        raise ConfigError("sources: no files to read")
    return [_unit(file, config, allowlist, filters) for file in _with_unique_names(list(listed.values()))]


def _named_files(source: SourceConfig, base_dir: Path) -> dict[str, str]:
    """Return path -> name of a source's files, sorted by path.

    A name contains neither secrets nor the config's folder: the names of local files are relative to the config's
    folder, or, if the pattern is absolute, to the folder of its first wildcard.
    """
    names: dict[str, str] = {}
    for pattern in source.paths:
        for path in expand_paths((pattern,), base_dir):
            names.setdefault(path, _public_name(path, pattern, base_dir))
    return dict(sorted(names.items()))


def _public_name(path: str, pattern: str, base_dir: Path) -> str:
    if not os.path.isabs(path):
        return redact(path)
    pattern = pattern.removeprefix("file://")
    if Path(path).is_relative_to(base_dir) or not pattern.startswith(("/", "~")):
        return os.path.relpath(path, base_dir)
    fixed = re.split(r"[*?\[]", os.path.expanduser(pattern), maxsplit=1)[0]
    return os.path.relpath(path, fixed.rpartition("/")[0] or "/")


def _with_unique_names(files: list[SourceFile]) -> list[SourceFile]:
    """Tell local files of the same name apart by as many of their folders as it takes.

    Raises:
        ConfigError: two URLs differ by their secrets only.
    """
    folders = 0
    while True:
        twins = {name for name, n in Counter(file.name for file in files).items() if n > 1}
        if not twins:
            return files
        folders += 1
        for i, file in enumerate(files):
            if file.name in twins:
                parts = Path(file.path).parts
                if not os.path.isabs(file.path) or folders >= len(parts):
                    raise ConfigError(f"sources: {file.name} is named twice, with other secrets; list it once")
                files[i] = replace(file, name="/".join(parts[-folders - 1 :]))


def _unit(file: SourceFile, config: Config, allowlist: Allowlist, filters: PairFilters) -> Unit:
    reads = file.source.model_dump(exclude={"paths"}) | {"agent": config.fetch.agent}
    decides = [VERSION, reads, file.name, file_versions(file.path), config.pairs.model_dump(), allowlist.sha256]
    unit_digest = digest(*decides, *([filters.version] if filters.version else []))
    return Unit(file.unit, unit_digest, file, file.name)


@dataclass(frozen=True)
class _OpenMatcher:
    allowlist: str
    limits: PairsConfig
    agent: str
    filters: PairFilters

    def open(self) -> Work:
        matcher = QueryMatcher(Allowlist.load(self.allowlist).queries)
        return _ExtractPairs(PairSelection(matcher, self.filters.open()), self.limits, self.agent)


@dataclass(frozen=True)
class _ExtractPairs:
    selection: "PairSelection"
    limits: PairsConfig
    agent: str

    def run(self, file: SourceFile, output: UnitOutput) -> Counter[str]:
        counts: Counter[str] = Counter(inputs=0, kept=0)
        examples = Examples(file.unit, file.name)

        def selected() -> Iterator[pa.RecordBatch]:
            for batch in read_source(file.source, file.path, self.limits, self.agent):
                pairs, dropped = self.selection.select(batch.candidates, file.name, examples)
                count_batch(counts, batch, pairs.num_rows, dropped)
                if pairs.num_rows:
                    yield pairs

        output.write_batches(f"pairs/{file.unit}.parquet", PAIRS, selected())
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
