"""Time near-duplicate look-ups: `HammingIndex` against faiss's flat binary index, one thread each, on the same hashes.

    python -m benchmarks.hamming_index [--hashes 1000000] [--queries 10000]

Half of the queries are copies of indexed hashes with 0 to 31 random bit errors, half are unrelated. Recall is relative
to the flat index, which is exact. Needs the `bench` extra.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable

import faiss
import numpy as np
from rich.console import Console
from rich.table import Table

from dedup.hamming import HammingIndex

Pairs = set[tuple[int, int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hashes", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=3, help="runs of each; the median counts")
    arguments = parser.parse_args()
    print_figures(measure(arguments.hashes, arguments.queries, arguments.runs))


def measure(hashes: int, queries: int, runs: int) -> dict[str, float]:
    """Return milliseconds per query, recall and build time of both indexes, at the two thresholds in use."""
    rng = np.random.default_rng(0)
    known = rng.integers(0, 256, (hashes, 32), dtype=np.uint8)
    asked = copies_and_strangers(known, queries, rng)
    started = time.perf_counter()
    ours = HammingIndex.build(known)
    figures = {"hashes": hashes, "queries": queries, "build_s": time.perf_counter() - started}

    faiss.omp_set_num_threads(1)
    flat = faiss.IndexBinaryFlat(256)
    flat.add(known)
    few = asked[:: max(1, queries // 1_000)]  # the flat index takes milliseconds per query, regardless of the query
    for bits in (15, 31):
        time_ms, found = timed(lambda b=bits: our_pairs(ours, asked, b), len(asked), runs)
        flat_ms, _ = timed(lambda b=bits: flat_pairs(flat, few, b), len(few), runs)
        truth = flat_pairs(flat, asked, bits)
        figures |= {
            f"ours_ms_{bits}_bits": time_ms,
            f"faiss_flat_ms_{bits}_bits": flat_ms,
            f"ratio_{bits}_bits": flat_ms / time_ms,
            f"recall_{bits}_bits": len(found & truth) / len(truth),
            f"false_matches_{bits}_bits": len(found - truth),
        }
    return figures


def copies_and_strangers(known: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return `count` queries: even rows near a known hash (0 to 31 errors in turn), odd rows random."""
    asked = rng.integers(0, 256, (count, 32), dtype=np.uint8)
    copies = known[rng.integers(0, len(known), (count + 1) // 2)]
    errors = np.arange(len(copies)) % 32
    order = rng.random((len(copies), 256)).argsort(axis=1)
    asked[::2] = np.packbits(np.unpackbits(copies, axis=1) ^ (order < errors[:, None]), axis=1)
    return asked


def our_pairs(index: HammingIndex, asked: np.ndarray, bits: int) -> Pairs:
    found = index.search(asked, bits)
    return set(zip(found.query_rows.tolist(), found.index_rows.tolist(), strict=True))


def flat_pairs(index: faiss.IndexBinaryFlat, asked: np.ndarray, bits: int) -> Pairs:
    limits, _, rows = index.range_search(asked, bits + 1)  # faiss counts distances below the radius
    queries = np.repeat(np.arange(len(asked)), np.diff(limits.astype(np.int64)))
    return set(zip(queries.tolist(), rows.tolist(), strict=True))


def timed(search: Callable[[], Pairs], queries: int, runs: int) -> tuple[float, Pairs]:
    """Return the median milliseconds per query of `runs` searches, and the result of the last one."""
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        found = search()
        times.append((time.perf_counter() - started) / queries * 1e3)
    return statistics.median(times), found


def print_figures(figures: dict[str, float]) -> None:
    table = Table(title=f"{figures['hashes']:,.0f} x 256-bit hashes, one thread")
    for heading in ("distance", "ours, ms/query", "faiss flat, ms/query", "ratio", "recall"):
        table.add_column(heading, justify="right")
    for bits in (15, 31):
        table.add_row(
            f"<= {bits} bits",
            f"{figures[f'ours_ms_{bits}_bits']:.4f}",
            f"{figures[f'faiss_flat_ms_{bits}_bits']:.3f}",
            f"{figures[f'ratio_{bits}_bits']:.0f}x",
            f"{figures[f'recall_{bits}_bits']:.2%}",
        )
    Console(width=100).print(table)
    print(
        f"build {figures['build_s']:.1f} s; {platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, ",
        end="",
    )
    print(f"Python {platform.python_version()}, NumPy {np.__version__}, faiss {faiss.__version__}")
    print(json.dumps({name: round(value, 5) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
