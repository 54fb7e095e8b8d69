"""The memory and CPU time of bringing candidates together: rows of a part, gathered, sorted, without repeats, written.

    python -m benchmarks.candidates [--rows 400000]

`plan` has at most a million rows of a part in memory at a time. URLs and captions have the length of real ones.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.steps import peak_mib
from pipeline.engine.shuffle import gather, spill
from pipeline.engine.units import UnitOutput
from pipeline.engine.workspace import Workspace
from pipeline.records import PAIRS
from pipeline.stages.plan_candidates import _ROUTED, drop_repeats


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


def write_rows(folder: str, count: int) -> None:
    rows = make_rows(count)
    spill(UnitOutput(Workspace(folder)), "spilled.rows", _ROUTED, 1, [(rows, np.zeros(count, np.int32))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=400_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wit-candidates-") as folder:
        output = UnitOutput(Workspace(folder))
        maker = multiprocessing.get_context("spawn").Process(target=write_rows, args=(folder, args.rows))
        maker.start()  # of its own, so that memory it frees is not used again here
        maker.join()
        peak_mib()
        status = Path("/proc/self/status").read_text().splitlines()
        before_kib = int(next(line for line in status if line.startswith("VmRSS")).split()[1])
        start_s = time.process_time()
        unique = drop_repeats(gather(output.workspace, ["spilled.rows"], 0, _ROUTED))
        output.write_table("candidates.parquet", unique.select(PAIRS.names))
        cpu_s, peak = time.process_time() - start_s, peak_mib()
        spilled_bytes = output.workspace.sizes("")["spilled.rows"]
    found = {
        "rows": args.rows,
        "peak_bytes_per_row": round((peak * 1024 - before_kib) * 1024 / args.rows),
        "cpu_us_per_row": round(1e6 * cpu_s / args.rows, 2),
        "spilled_bytes_per_row": round(spilled_bytes / args.rows),
        "parquet_bytes_per_row": round(output.files["candidates.parquet"].bytes / args.rows),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
