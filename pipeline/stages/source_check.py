"""The first rows of each source, to see whether the config means what its author thinks, in seconds."""

import csv
import itertools
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import fsspec
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import Config, PairsConfig
from pipeline.config.filters import FiltersConfig
from pipeline.config.sources import SourceConfig
from pipeline.errors import UserError, one_line
from pipeline.filters.frequency import CAPTION_USES, frequent_captions
from pipeline.records import Reason
from pipeline.sources import SourceBatch, read_source
from pipeline.sources.language import identify_languages
from pipeline.sources.opt_out import PagePolicy
from pipeline.sources.presets import Layout
from pipeline.sources.range_stream import SourceUnavailable
from pipeline.sources.table_lines import COMPRESSIONS, MAX_LINE_BYTES, Lines
from pipeline.stages.caption_families import over_family_cap
from pipeline.stages.pairs import PairSelection
from pipeline.stages.plan_candidates import url_hashes
from pipeline.stages.source_files import SourceFile

EXAMPLES = 10
POOL_EXAMPLES = 3
_MEMBERS_LOOKED_AT = 100
_SHOWN_CHARS = 60

_PAIR_FILTERS = {  # in the order in which they name the reason
    "allow_hosts": Reason.HOST_NOT_ALLOWED,
    "allow_host_files": Reason.HOST_NOT_ALLOWED,
    "block_hosts": Reason.BLOCKED_HOST,
    "block_host_files": Reason.BLOCKED_HOST,
    "file_names": Reason.FILE_NAME_CAPTION,
    "urls": Reason.URL_CAPTION,
    "markup": Reason.MARKUP,
    "min_words": Reason.TOO_FEW_WORDS,
    "max_words": Reason.TOO_MANY_WORDS,
    "min_letter_fraction": Reason.TOO_FEW_LETTERS,
    "max_repeated_chars": Reason.REPEATED_CHARACTERS,
    "languages": Reason.LANGUAGE,
}
_IMAGE_FILTERS = ("single_colour", "max_urls_per_image")

_POOLED = pa.schema([("uid", pa.string()), ("url", pa.string()), ("caption", pa.string())])


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
    pairs: list[pa.RecordBatch] = field(default_factory=list)  # what the filters on single pairs leave, _POOLED
    problem: str = ""


@dataclass(frozen=True)
class PoolEffect:
    """What a filter over the whole pool drops if the rows that were read are the pool."""

    filter: str  # its key and value
    reason: Reason
    pairs: int
    dropped: int
    examples: list[tuple[str, int]]  # the most frequent captions that go, and how many pairs of each


def pair_filters(filters: FiltersConfig) -> list[tuple[str, str]]:
    """Return (key and value, reason) of each filter on single pairs that is on, in the order in which they act; those
    in Python together, with "python:" in the place of a reason.
    """
    stated = filters.model_dump(mode="json", exclude_defaults=True)
    keys: dict[str, list[str]] = {}
    for key, reason in _PAIR_FILTERS.items():
        if stated.get(key):
            keys.setdefault(reason, []).append(_key_value(key, stated[key]))
    listed = [(", ".join(names), str(reason)) for reason, names in keys.items()]
    calls = filters.python_on("pairs")
    return listed + ([(f"python {', '.join(calls)}", "python:")] if calls else [])


def later_filters(config: Config) -> list[str]:
    """Return the filters that need images, as they are configured."""
    stated = config.filters.model_dump(mode="json", exclude_defaults=True)
    listed = [_key_value(key, stated[key]) for key in _IMAGE_FILTERS if stated.get(key)]
    listed += [f"python {call}" for call in config.filters.python_on("images")]
    scores = config.scores
    limits = {} if scores is None else {"min": scores.min, "keep_fraction": scores.keep_fraction}
    return listed + [f"scores.{_key_value(key, value)}" for key, value in limits.items() if value is not None]


def _key_value(key: str, value: object) -> str:
    shown = orjson.dumps(value).decode()
    return f"{key} = {shown}" if len(shown) <= _SHOWN_CHARS else f"{key} = {shown[: _SHOWN_CHARS - 1]}…"


def pool_effects(samples: Sequence[SourceSample], filters: FiltersConfig, seed: int) -> Iterator[PoolEffect]:
    """Yield what each filter over the pool would drop of the sampled pairs, in the order in which they act."""
    pairs = pa.Table.from_batches([batch for found in samples for batch in found.pairs], _POOLED)
    _, first = np.unique(np.array(pairs["uid"].to_pylist(), object), return_index=True)
    pairs = pairs.take(pa.array(np.sort(first)))
    if (most := filters.max_images_per_caption) is not None:
        captions, urls = (url_hashes(pairs[name].to_pylist(), seed) for name in ("caption", "url"))
        uses = pa.table([captions, urls, np.zeros(len(urls), np.int32)], CAPTION_USES)
        is_over = np.isin(captions, frequent_captions(uses, most)["caption_hash"].to_numpy())
        yield _effect(_key_value("max_images_per_caption", most), Reason.FREQUENT_CAPTION, pairs, is_over)
        pairs = pairs.filter(pa.array(~is_over))
    if (most := filters.max_pairs_per_family) is not None:
        is_over = over_family_cap(pairs, filters, seed)
        yield _effect(_key_value("max_pairs_per_family", most), Reason.NEAR_EQUAL_CAPTION, pairs, is_over)


def _effect(name: str, reason: Reason, pairs: pa.Table, is_dropped: np.ndarray) -> PoolEffect:
    counts = Counter(pairs["caption"].filter(pa.array(is_dropped)).to_pylist())
    return PoolEffect(name, reason, pairs.num_rows, int(is_dropped.sum()), counts.most_common(POOL_EXAMPLES))


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
    found.hosts.update(host for url in candidates.column("url").to_pylist() if (host := url.split("/")[2]))
    if not found.extra and candidates.column("extra").null_count < candidates.num_rows:
        found.extra = list(orjson.loads(candidates.column("extra").drop_null()[0].as_py()))
    shown = candidates
    if selection is not None:
        shown, dropped = selection.select(candidates, "")
        found.matched += candidates.num_rows - dropped.pop(Reason.NO_MATCH, 0)
        found.filtered.update(dropped)
        found.pairs.append(shown.select(_POOLED.names))
    # Spread over the batch: neighbours are often of one page.
    step = max(1, shown.num_rows // EXAMPLES)
    rows = shown.select(["caption", "url"]).take(pa.array(range(0, shown.num_rows, step), pa.int64())).to_pylist()
    found.examples += [(row["caption"], row["url"]) for row in rows[: EXAMPLES - len(found.examples)]]


def _columns(file: SourceFile) -> list[str]:
    """Return the columns of a table, or the keys of the first JSON of a tar; [] for what has none or cannot be read."""
    try:
        if file.source.kind == "webdataset":
            return _keys_in_tar(file.path)
        if file.source.kind == "url-table":
            return _header(file)
    except (pa.ArrowException, OSError, ValueError, EOFError, csv.Error, tarfile.TarError):
        pass  # reading it says why
    return []


def _header(file: SourceFile) -> list[str]:
    suffixes = PurePosixPath(file.path).suffixes
    if suffixes[-1:] == [".parquet"]:
        with fsspec.open(file.path, "rb") as opened:
            return list(pq.read_schema(opened).names)
    packed = suffixes[-1][1:] if suffixes and suffixes[-1][1:] in COMPRESSIONS else None
    with fsspec.open(file.path, "rb") as opened:
        lines = Lines(opened, packed, any_end=".csv" in suffixes)
        line = next((line for line in lines if line.strip()), b"").decode()
    if ".jsonl" in suffixes:
        return _keys(line)
    if not {".csv", ".tsv"} & set(suffixes):
        return []
    names = next(csv.reader([line], delimiter="\t" if ".tsv" in suffixes else ","))
    return names if Layout(file.source).header else [str(number + 1) for number in range(len(names))]


def _keys(encoded: str | bytes) -> list[str]:
    value = orjson.loads(encoded)
    return list(value) if isinstance(value, dict) else []


def _keys_in_tar(path: str) -> list[str]:
    with fsspec.open(path, "rb") as opened, tarfile.open(fileobj=opened, mode="r|") as tar:
        for member in itertools.islice(tar, _MEMBERS_LOOKED_AT):
            if member.name.endswith(".json") and (content := tar.extractfile(member)) is not None:
                return _keys(content.read(MAX_LINE_BYTES))
    with fsspec.open(f"{path.removesuffix('.tar')}.parquet", "rb") as opened:
        return list(pq.read_schema(opened).names)
