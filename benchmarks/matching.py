"""Time the matching of real captions against 500,000 queries, in captions per CPU second of one core.

    python -m benchmarks.matching [--allowlist queries.parquet] [--captions 300000] [--runs 3]

The peers search for the same normal forms and must find the same matches: two Aho-Corasick automata (ahocorasick_rs and
pyahocorasick), a dictionary of n-grams, and brute-force substring search (on few captions: a caption takes 30 ms).
Normalisation is part of every time. Without
--allowlist the list is WordNet's nouns, wordfreq's English words, LAION's vocabulary and 100,000 art phrases, with
neighbouring words joined to fill it up to 500,000. Needs the folder of real data (WIT_SHARED_DATA) and the extras
`bench` and `starter`.
"""

import argparse
import gzip
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import ahocorasick
import pyarrow as pa
import pyarrow.parquet as pq
from ahocorasick_rs import AhoCorasick, Implementation
from rich.console import Console
from rich.table import Table
from wordfreq import get_frequency_dict

from queries.allowlist import Allowlist, import_allowlist
from queries.match import QueryMatcher
from queries.normal_form import normalize_batch

SHARED = Path(os.environ.get("WIT_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
SIZE = 500_000
BATCH_ROWS = 10_000
BRUTE_FORCE_CAPTIONS = 40

Match = Callable[[pa.Array], list[list[int]] | pa.ListArray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--allowlist", metavar="FILE")
    parser.add_argument("--captions", type=int, default=300_000, help="maximum number of captions")
    parser.add_argument("--runs", type=int, default=3, help="runs of each; the median counts")
    parser.add_argument("--only-build", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not SHARED.is_dir():
        sys.exit("benchmarks.matching: needs the folder of real data: set WIT_SHARED_DATA")
    with tempfile.TemporaryDirectory() as folder:
        path = args.allowlist or write_list(Path(folder))
        if args.build_lock:
            print(json.dumps(measure_build(path)))
        else:
            print_figures(measure(path, real_captions()[: args.captions], args.runs))


def write_list(folder: Path) -> str:
    """Write a list of real queries; return its path."""
    queries = SHARED / "queries"
    words = {"wordfreq": list(get_frequency_dict("en", wordlist="large"))}
    synsets = unpacked(queries / "wordnet_nouns.txt.gz").splitlines()
    words["wordnet"] = [lemma for synset in synsets for lemma in synset.split("\t")[1].split(", ")]
    for name in ("laion_vocabulary", "phrases"):
        words[name] = [line for _, text in archived(queries / f"{name}.tar.gz") for line in text.split("\n")]
    words["joined"] = [f"{one} {other}" for one, other in pairwise(words["wordnet"])]
    for name, lines in words.items():
        (folder / f"{name}.txt").write_text("\n".join(lines))
    whole, out = str(folder / "whole.parquet"), str(folder / "queries.parquet")
    import_allowlist([str(folder / f"{name}.txt") for name in words], whole)
    pq.write_table(pq.read_table(whole)[:SIZE], out)
    return out


def archived(path: Path) -> Iterator[tuple[str, str]]:
    with tarfile.open(path) as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is not None:
                yield member.name, file.read().decode(errors="replace")


def real_captions() -> pa.Array:
    """Return the captions of five sets, in four languages."""
    text = SHARED / "text"
    lines = unpacked(text / "cc3m_validation.tsv.gz").splitlines()
    found = [line.split("\t")[0] for line in lines]
    found += pq.read_table(text / "laion400m_1000.parquet")["TEXT"].to_pylist()
    found += [row["caption"] for row in json.loads(unpacked(text / "coco_val2017_captions.json.gz"))["annotations"]]
    found += unpacked(text / "multi30k_en_145k.txt.gz").splitlines()
    with tarfile.open(text / "multi30k_parallel_29k.tar.gz") as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is not None:
                found += gzip.decompress(file.read()).decode().splitlines()
    return pa.array(found)


def unpacked(path: Path) -> str:
    return gzip.decompress(path.read_bytes()).decode()


def measure_build(path: str) -> dict[str, float]:
    """Load a list and build its matcher; return the time and the peak memory of this process."""
    queries = Allowlist.load(path).queries
    before_s = time.process_time()
    QueryMatcher(queries)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"build_cpu_s": time.process_time() - before_s, "peak_mb": peak_mb}


def measure(path: str, captions: pa.Array, runs: int) -> dict[str, float]:
    build = [sys.executable, "-m", "benchmarks.matching", "--only-build", "--allowlist", path]
    figures = json.loads(subprocess.run(build, check=True, capture_output=True, text=True).stdout)
    queries = Allowlist.load(path).queries
    normal = normalize_batch(pa.array(queries)).to_pylist()
    matcher = QueryMatcher(queries)
    seconds, found = timed(matcher.match, captions, runs)
    figures |= {
        "queries": len(queries),
        "captions": len(captions),
        "matches_per_caption": sum(map(len, found)) / len(found),
        "matched_share": sum(map(bool, found)) / len(found),
        "queries_hit": len({query for ids in found for query in ids}),
        "ours_captions_per_s": len(captions) / seconds,
        "normalize_captions_per_s": len(captions) / timed(normalize_batch, captions, runs)[0],
    }
    few = captions[:: max(1, len(captions) // BRUTE_FORCE_CAPTIONS)]
    truth = found[:: max(1, len(captions) // BRUTE_FORCE_CAPTIONS)]
    peers: list[tuple[str, Match, pa.Array, list[list[int]], int]] = [
        ("ahocorasick_rs", by_ahocorasick_rs(normal), captions, found, runs),
        ("pyahocorasick", by_pyahocorasick(normal), captions, found, runs),
        ("ngrams", by_ngrams(normal), captions, found, runs),
        ("brute_force", by_brute_force(normal), few, truth, 1),
    ]
    for name, match, asked, expected, times in peers:
        seconds, answer = timed(match, asked, times)
        figures[f"{name}_captions_per_s"] = len(asked) / seconds
        figures[f"{name}_differences"] = sum(a != b for a, b in zip(answer, expected, strict=True))
        figures[f"ratio_{name}"] = figures["ours_captions_per_s"] / figures[f"{name}_captions_per_s"]
    return figures


def timed(match: Match, captions: pa.Array, runs: int) -> tuple[float, list[list[int]]]:
    """Return the median CPU seconds of some runs over all captions in batches, and the matches."""
    batches = [captions[i : i + BATCH_ROWS] for i in range(0, len(captions), BATCH_ROWS)]
    seconds = []
    for _ in range(runs):
        started = time.process_time()
        answers = [match(batch) for batch in batches]
        seconds.append(time.process_time() - started)
    lists = (answer.to_pylist() if isinstance(answer, pa.Array) else answer for answer in answers)
    return statistics.median(seconds), [ids for answer in lists for ids in answer]


def by_ahocorasick_rs(queries: list[str]) -> Match:
    automaton = AhoCorasick([f" {query} " for query in queries], implementation=Implementation.ContiguousNFA)
    search = automaton.find_matches_as_indexes

    def match(captions: pa.Array) -> list[list[int]]:
        normal = normalize_batch(captions).to_pylist()
        return [sorted({query_id for query_id, _, _ in search(f" {caption} ", overlapping=True)}) for caption in normal]

    return match


def by_pyahocorasick(queries: list[str]) -> Match:
    automaton = ahocorasick.Automaton()
    for query_id, query in enumerate(queries):
        automaton.add_word(f" {query} ", query_id)
    automaton.make_automaton()

    def match(captions: pa.Array) -> list[list[int]]:
        normal = normalize_batch(captions).to_pylist()
        return [sorted({query_id for _, query_id in automaton.iter(f" {caption} ")}) for caption in normal]

    return match


def by_ngrams(queries: list[str]) -> Match:
    """Look up every run of a caption's tokens, as long as the longest query that begins with the same token."""
    ids = {query: query_id for query_id, query in enumerate(queries)}
    longest: dict[str, int] = {}
    for query in queries:
        first, tokens = query.split(" ", 1)[0], query.count(" ") + 1
        longest[first] = max(longest.get(first, 0), tokens)

    def match_one(caption: str) -> list[int]:
        tokens = caption.split(" ")
        runs = (
            " ".join(tokens[start:end])
            for start, first in enumerate(tokens)
            for end in range(start + 1, min(start + longest.get(first, 0), len(tokens)) + 1)
        )
        return sorted({ids[run] for run in runs if run in ids})

    def match(captions: pa.Array) -> list[list[int]]:
        return [match_one(caption) for caption in normalize_batch(captions).to_pylist()]

    return match


def by_brute_force(queries: list[str]) -> Match:
    padded = [f" {query} " for query in queries]

    def match(captions: pa.Array) -> list[list[int]]:
        texts = [f" {caption} " for caption in normalize_batch(captions).to_pylist()]
        return [[query_id for query_id, query in enumerate(padded) if query in text] for text in texts]

    return match


def print_figures(figures: dict[str, float]) -> None:
    console = Console(width=110)
    title = f"{figures['captions']:,} captions, {figures['queries']:,} queries"
    table = Table("matcher", "captions per CPU second", "ours is faster by", "differences", title=title)
    table.add_row("ours", f"{figures['ours_captions_per_s']:,.0f}")
    for name in ("ahocorasick_rs", "pyahocorasick", "ngrams", "brute_force"):
        rate, ratio = figures[f"{name}_captions_per_s"], figures[f"ratio_{name}"]
        table.add_row(name, f"{rate:,.1f}", f"{ratio:,.1f}x", str(figures[f"{name}_differences"]))
    console.print(table)
    console.print(
        f"{figures['matches_per_caption']:.2f} matches per caption, {figures['matched_share']:.2%} of captions matched,"
        f" {figures['queries_hit']:,} queries hit; normalisation alone {figures['normalize_captions_per_s']:,.0f}/s; "
        f"matcher ready in {figures['build_cpu_s']:.1f} s of CPU, peak {figures['peak_mb']:,.0f} MB in its process"
    )
    console.print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
