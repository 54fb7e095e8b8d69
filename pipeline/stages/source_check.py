"""The first rows of each source, to see whether the config means what its author thinks, in seconds."""

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import fsspec
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import PairsConfig
from pipeline.config.sources import SourceConfig
from pipeline.errors import UserError, one_line
from pipeline.records import Reason
from pipeline.sources import SourceBatch, read_source
from pipeline.sources.language import identify_languages
from pipeline.sources.opt_out import PagePolicy
from pipeline.sources.range_stream import SourceUnavailable
from pipeline.stages.pairs import PairSelection
from pipeline.stages.source_files import SourceFile

EXAMPLES = 10


@dataclass
class SourceSample:
    """What the first rows of a source hold; `problem` is why no more could be read, "" for nothing."""

    source: SourceConfig
    files: int
    rows: int = 0
    candidates: int = 0
    matched: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    filtered: Counter[str] = field(default_factory=Counter)  # of those that match
    languages: Counter[str] = field(default_factory=Counter)
    fields: Counter[str] = field(default_factory=Counter)
    hosts: set[str] = field(default_factory=set)
    columns: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    examples: list[tuple[str, str]] = field(default_factory=list)  # caption, URL
    problem: str = ""


def check_sources(
    files: list[SourceFile], limits: PairsConfig, policy: PagePolicy, selection: PairSelection | None, max_rows: int
) -> Iterator[SourceSample]:
    """Read the first rows of each source, from as many of its files as that takes."""
    for source, group in itertools.groupby(files, key=lambda file: file.source):
        listed = list(group)
        found = SourceSample(source, len(listed))
        try:
            found.columns = _columns(listed[0])
            for file in listed:
                for batch in read_source(source, file.path, limits, policy):
                    _add(found, batch, selection)
                    if found.rows >= max_rows:
                        break
                if found.rows >= max_rows:
                    break
        except (UserError, SourceUnavailable, OSError) as error:
            found.problem = one_line(error)
        yield found


def _add(found: SourceSample, batch: SourceBatch, selection: PairSelection | None) -> None:
    candidates = batch.candidates
    found.rows += candidates.num_rows + batch.dropped.total()
    found.candidates += candidates.num_rows
    found.dropped.update({str(reason): n for reason, n in batch.dropped.items()})
    captions = candidates.column("caption")
    found.fields.update(candidates.column("text_field").to_pylist())
    found.languages.update(identify_languages(captions).to_pylist())
    found.hosts.update(url.split("/")[2] for url in candidates.column("url").to_pylist())
    if not found.extra and candidates.column("extra").null_count < candidates.num_rows:
        found.extra = list(orjson.loads(candidates.column("extra").drop_null()[0].as_py()))
    shown = candidates
    if selection is not None:
        shown, dropped = selection.select(candidates, "")
        found.matched += candidates.num_rows - dropped.pop(Reason.NO_MATCH, 0)
        found.filtered.update(dropped)
    # Spread over the batch: neighbours are often of one page.
    step = max(1, shown.num_rows // EXAMPLES)
    rows = shown.select(["caption", "url"]).take(pa.array(range(0, shown.num_rows, step), pa.int64())).to_pylist()
    found.examples += [(row["caption"], row["url"]) for row in rows[: EXAMPLES - len(found.examples)]]


def _columns(file: SourceFile) -> list[str]:
    """Return the columns of a Parquet table, [] for what has none."""
    if file.source.kind != "url-table" or not file.path.endswith(".parquet"):
        return []
    try:
        with fsspec.open(file.path, "rb") as opened:
            return list(pq.read_schema(opened).names)
    except (pa.ArrowException, OSError):
        return []
