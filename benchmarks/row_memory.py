"""Memory of a row, with the copies that are made of it, where a unit holds as many as `run.memory_bytes` allows.

    python -m benchmarks.row_memory [--rows 400000] [--kind candidate]

Rows are spilled and then gathered, sorted, compared and written by the stages' own functions, each kind in a process of
its own. URLs and captions have the length of real ones. `allowed` is what the stage reckons with: it must be more. Each
line is JSON.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.steps import peak_mib
from pipeline.config import DedupConfig
from pipeline.engine.shuffle import Pieces, gather, spill
from pipeline.engine.units import UnitOutput
from pipeline.engine.workspace import Workspace
from pipeline.filters.frequency import CAPTION_USES, frequent_captions
from pipeline.records import PAIRS, Reason
from pipeline.stages.balance.exact import PACKED_UID
from pipeline.stages.dedup import steps as dedup_steps
from pipeline.stages.dedup.duplicates import _BANDED, _IMAGES, CompareBands, GroupImages
from pipeline.stages.dedup.settle import (
    EDGE_BYTES,
    EDGES,
    LISTENERS,
    PACKED_DUPLICATES,
    SettleFirst,
    WriteDuplicates,
)
from pipeline.stages.plan_candidates import _ROUTED, USE_BYTES, drop_repeats
from pipeline.stages.plan_parts import CANDIDATE_BYTES

SPILLED = "spilled.rows"
_random = np.random.default_rng(0)


def make_rows(count: int) -> pa.Table:
    random = np.random.default_rng(0)
    numbers = range(count)
    columns = {
        "uid": [random.bytes(16).hex() for _ in numbers],
        "url": [
            f"https://images.host{i % 5000}.example/folder/of/pictures/2024/03/picture-{i}-1024x768.jpg"
            for i in numbers
        ],
        "caption": [f"a picture of a thing in some place with number {i}, and more words" for i in numbers],
        "text_field": ["alt"] * count,
        "page_url": [f"https://www.host{i % 5000}.example/2024/03/an-article-{i}.html" for i in numbers],
        "source": ["crawl-data/segments/0"] * count,
        "language": ["en"] * count,
        "query_ids": [[1, 2, 3]] * count,
        "part": np.zeros(count, np.int32),
        "url_hash": random.integers(0, 1 << 63, count).astype(np.uint64),
    }
    arrays = [pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(count, f.type) for f in _ROUTED]
    return pa.table(arrays, _ROUTED)


def _packed(count: int) -> pa.Array:
    return pa.array([row.tobytes() for row in _random.integers(0, 256, (count, 16), np.uint8)], PACKED_UID)


def _pdq(count: int) -> pa.Array:
    return pa.array([row.tobytes() for row in _random.integers(0, 256, (count, 32), np.uint8)], pa.binary(32))


def make_uses(count: int) -> pa.Table:
    captions = _random.zipf(1.3, count).astype(np.uint64)
    urls = _random.integers(0, 1 << 63, count).astype(np.uint64)
    return pa.table([captions, urls, _random.integers(0, 1_024, count, np.int32)], CAPTION_USES)


def make_images(count: int) -> pa.Table:
    columns = {
        "uid": _packed(count),
        "rank": _random.integers(0, 1 << 63, count).astype(np.uint64),
        "part": np.zeros(count, np.int32),
        "url_hash": pa.array([row.tobytes() for row in _random.integers(0, 256, (count, 8), np.uint8)], pa.binary(8)),
        "sha256": [_random.bytes(32).hex() for _ in range(count)],
        "pdq": _pdq(count),
        "pdq_quality": np.full(count, 90, np.int32),
    }
    return pa.table(columns, _IMAGES)


def make_bands(count: int) -> pa.Table:
    """Return rows of `count` images: 32 each, as at distances of more than 15 bits."""
    images = make_images(count).select(["uid", "rank", "part", "pdq"])
    bands = [images.append_column("band", pa.array(np.full(count, band, np.int32))) for band in range(32)]
    return pa.concat_tables(bands).select(_BANDED.names).cast(_BANDED)


def make_edges(count: int) -> pa.Table:
    images = _packed(count // 8 + 1)
    worse, better = (_random.integers(0, len(images), count) for _ in range(2))
    ranks = _random.integers(0, 1 << 63, count).astype(np.uint64)
    zeros = np.zeros(count, np.int32)
    columns = [images.take(pa.array(worse)), zeros, images.take(pa.array(better)), ranks, zeros, zeros]
    return pa.table(columns, EDGES)


def make_duplicates(count: int) -> pa.Table:
    parts, zeros = _random.integers(0, 400, count, np.int32), np.zeros(count, np.int32)
    columns = [_packed(count), _packed(count), [str(Reason.EXACT_DUPLICATE)] * count, zeros, parts, zeros]
    return pa.table(columns, PACKED_DUPLICATES)


def _candidates(output: UnitOutput) -> None:
    unique = drop_repeats(gather(output.workspace, [SPILLED], 0, _ROUTED))
    output.write_table("candidates.parquet", unique.select(PAIRS.names))


def _uses(output: UnitOutput) -> None:
    frequent_captions(gather(output.workspace, [SPILLED], 0, CAPTION_USES), 1_000)


def _images(output: UnitOutput) -> None:
    one = Pieces(1)
    GroupImages([SPILLED], DedupConfig(), one, one, one, 1 << 40, None).run(0, output)


def _bands(output: UnitOutput) -> None:
    CompareBands([SPILLED], 31, Pieces(1), Pieces(1)).run(0, output)


def _edges(output: UnitOutput) -> None:
    spill(output, "listeners.rows", LISTENERS, 1, [])
    SettleFirst([SPILLED], ["listeners.rows"], Pieces(1), 1 << 40).run(0, output)


def _duplicates(output: UnitOutput) -> None:
    WriteDuplicates(1, {}).run([SPILLED], output)


@dataclass(frozen=True)
class Kind:
    """`allowed` is the bytes that a stage reckons with for a row."""

    allowed: int
    schema: pa.Schema
    make: Callable[[int], pa.Table]
    work: Callable[[UnitOutput], None]


KINDS = {
    "candidate": Kind(CANDIDATE_BYTES, _ROUTED, make_rows, _candidates),
    "use of a caption": Kind(USE_BYTES, CAPTION_USES, make_uses, _uses),
    "image": Kind(dedup_steps._IMAGE_BYTES, _IMAGES, make_images, _images),
    "bands of an image": Kind(dedup_steps._BANDS_BYTES, _BANDED, make_bands, _bands),
    "edge": Kind(EDGE_BYTES, EDGES, make_edges, _edges),
    "duplicate": Kind(dedup_steps._DUPLICATE_BYTES, PACKED_DUPLICATES, make_duplicates, _duplicates),
}


def write_rows(folder: str, name: str, count: int) -> None:
    kind = KINDS[name]
    rows = kind.make(count)
    batches = [(rows, np.zeros(rows.num_rows, np.int32))]
    spill(UnitOutput(Workspace(folder)), SPILLED, kind.schema, 1, batches)


def measure(folder: str, name: str, count: int) -> None:
    """Print what the work on the spilled rows takes, as JSON."""
    output = UnitOutput(Workspace(folder))
    peak_mib()
    status = Path("/proc/self/status").read_text().splitlines()
    before_kib = int(next(line for line in status if line.startswith("VmRSS")).split()[1])
    start_s = time.process_time()
    KINDS[name].work(output)
    cpu_s, peak = time.process_time() - start_s, peak_mib()
    found = {
        "kind": name,
        "rows": count,
        "allowed": KINDS[name].allowed,
        "bytes_per_row": round((peak * 1024 - before_kib) * 1024 / count),
        "cpu_us_per_row": round(1e6 * cpu_s / count, 2),
        "spilled_bytes_per_row": round(output.workspace.sizes("")[SPILLED] / count),
    }
    print(json.dumps(found), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--kind", choices=KINDS, action="append")
    args = parser.parse_args()
    new = multiprocessing.get_context("spawn").Process
    for name in args.kind or KINDS:
        with tempfile.TemporaryDirectory(prefix="wit-rows-") as folder:
            for work in (write_rows, measure):  # in processes of their own, so that memory one frees is not used again
                process = new(target=work, args=(folder, name, args.rows))
                process.start()
                process.join()


if __name__ == "__main__":
    main()
