"""What filters drop of real captions, how well languages are told apart, and rows per CPU second with everything on.

    python -m benchmarks.filters [--examples 20]

Captions: Conceptual Captions (validation), COCO (2017 validation), Multi30k and 1,000 rows of LAION-400M, and the alt
texts of real pages, from the folder of real data (WIT_SHARED_DATA). Languages: Multi30k's sentences in en, de, fr and
cs, and the alt texts of pages that state their language.
"""

import argparse
import gzip
import json
import os
import random
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from benchmarks.languages import texts as alt_texts
from pipeline.config.filters import FiltersConfig
from pipeline.filters.characters import Characters
from pipeline.filters.pairs import PairFilters
from pipeline.filters.text import _conditions
from pipeline.sources.batch import CANDIDATES, clean_text
from pipeline.sources.language import identify_languages
from pipeline.stages.pairs import PairSelection
from queries.match import QueryMatcher

SHARED = Path(os.environ.get("WIT_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
EVERYTHING = FiltersConfig(
    block_hosts=("ads.example.com", "*.tracker.example"),
    min_words=2,
    max_words=80,
    min_letter_fraction=0.6,
    max_repeated_chars=5,
    file_names=True,
    urls=True,
    markup=True,
    languages=("en", "und"),
    min_language_probability=0.6,
)
_BATCH = 16_384
_QUERIES = 300_000


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--examples", type=int, default=0, help="of each filter, how many dropped captions are printed")
    args = parser.parse_args()
    if not SHARED.is_dir():
        sys.exit("benchmarks.filters: needs the folder of real data: set WIT_SHARED_DATA")
    captions = [(name, clean_text(text)) for name, text in real_captions()]
    captions = [(name, text) for name, text in captions if text]
    show_drops(captions, args.examples)
    show_languages()
    show_rate([text for _, text in captions])


def real_captions() -> Iterator[tuple[str, str]]:
    with gzip.open(SHARED / "text/cc3m_validation.tsv.gz", "rt", encoding="utf-8") as file:
        yield from (("CC3M", line.split("\t")[0]) for line in file)
    with gzip.open(SHARED / "text/multi30k_en_145k.txt.gz", "rt", encoding="utf-8") as file:
        yield from (("Multi30k", line) for line in file)
    with gzip.open(SHARED / "text/coco_val2017_captions.json.gz", "rt", encoding="utf-8") as file:
        yield from (("COCO", entry["caption"]) for entry in json.load(file)["annotations"])
    yield from (("Multi30k", text) for text in sentences()["en"])
    laion = pq.read_table(SHARED / "text/laion400m_1000.parquet")["TEXT"].to_pylist()
    yield from (("LAION", text) for text in laion if text)
    yield from (("alt texts", text) for text in dict.fromkeys(text for text, _ in alt_texts()) if text)


def sentences() -> dict[str, list[str]]:
    """Return language -> the same 29,000 captions in it."""
    with tarfile.open(SHARED / "text/multi30k_parallel_29k.tar.gz") as archive:
        found = {}
        for code in ("en", "de", "fr", "cs"):
            file = archive.extractfile(f"multi30k/data/task1/raw/train.{code}.gz")
            assert file is not None
            found[code] = [clean_text(line) for line in gzip.decompress(file.read()).decode().splitlines()]
        return found


def show_drops(captions: list[tuple[str, str]], examples: int) -> None:
    names = list(dict.fromkeys(name for name, _ in captions))
    totals = Counter(name for name, _ in captions)
    table = Table("dropped for", *(f"{name} ({totals[name]:,})" for name in names))
    column = pa.array([text for _, text in captions], pa.string())
    drops = [(str(reason), dropped.tolist()) for reason, dropped in _conditions(column, EVERYTHING)]
    codes = identify_languages(column, EVERYTHING.min_language_probability).to_pylist()
    drops += [("language, not en", [code != "en" for code in codes])]
    drops += [("language, not en or und", [code not in ("en", "und") for code in codes])]
    for reason, dropped in drops:
        found = Counter(name for (name, _), is_dropped in zip(captions, dropped, strict=True) if is_dropped)
        table.add_row(reason, *(f"{found[name]:,}" for name in names))
    Console(width=150).print(table)
    for reason, dropped in drops if examples else ():
        print(f"\n{reason}")
        chosen = [row for row, is_dropped in zip(captions, dropped, strict=True) if is_dropped]
        for name, text in random.Random(0).sample(chosen, min(examples, len(chosen))):
            print(f"    {name:10} {text[:140]}")


def show_languages() -> None:
    """Print precision and recall of each language of Multi30k, and of English on alt texts."""
    rows = [(text, code) for code, found in sentences().items() for text in found]
    stated = [(text, code) for text, code in dict(alt_texts()).items() if code and text]
    for title, known in (("sentences", rows), ("alt texts of pages with a lang", stated)):
        for probability in (0.5, 0.7, 0.9):
            texts = pa.array([clean_text(text) for text, _ in known], pa.string())
            codes = identify_languages(texts, probability).to_pylist()
            table = Table(
                "language", "texts", "precision", "recall", "und", title=f"{title}, at least {probability:.0%} sure"
            )
            for language in ("en", "de", "fr", "cs"):
                of_it = [code for code, (_, true) in zip(codes, known, strict=True) if true == language]
                called = [true for code, (_, true) in zip(codes, known, strict=True) if code == language]
                right = of_it.count(language)
                if of_it and called:
                    shares = [right / len(called), right / len(of_it), of_it.count("und") / len(of_it)]
                    table.add_row(language, f"{len(of_it):,}", *(f"{share:.1%}" for share in shares))
            Console(width=150).print(table)


def show_rate(captions: list[str]) -> None:
    """Print rows per CPU second through `PairSelection`, without filters and with all of them."""
    words = Counter(word for text in captions for word in text.lower().split() if word.isalnum())
    matcher = QueryMatcher([word for word, _ in words.most_common(_QUERIES)])
    urls = [f"https://host{i % 5_000}.example/{i}.jpg" for i in range(len(captions))]
    columns = {"url": urls, "caption": captions, "text_field": ["alt"] * len(urls), "page_url": [""] * len(urls)}
    arrays = [
        pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(len(urls), f.type) for f in CANDIDATES
    ]
    candidates = pa.RecordBatch.from_arrays(arrays, schema=CANDIDATES)
    Characters.of(candidates.column("caption").slice(0, 1)).letter_fractions()  # makes its table once
    for title, config in (("without filters", FiltersConfig()), ("with everything on", EVERYTHING)):
        selection = PairSelection(matcher, PairFilters.of(config, Path.cwd()).open())
        start_s, kept = time.process_time(), 0
        for first in range(0, len(urls), _BATCH):
            kept += selection.select(candidates.slice(first, _BATCH), "benchmark")[0].num_rows
        spent_s = time.process_time() - start_s
        print(f"{title}: {len(urls) / spent_s:,.0f} rows per CPU second, {kept:,} of {len(urls):,} kept")


if __name__ == "__main__":
    main()
