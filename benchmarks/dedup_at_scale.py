"""Run the dedup stage on millions of made-up images, step by step: time, memory, files.

    python -m benchmarks.dedup_at_scale [--images 20000000] [--folder DIR]

Every eighth image is a copy of an earlier one: a third of these have the same file, the others a fingerprint 1 to 15
bits away. The rest have random fingerprints, which fill all buckets alike. Each row has three of 500,000 queries;
evaluation sets are left out. Everything runs in this process, so `peak MiB` is that of a worker and of the driver
together. With a folder, a run that was interrupted goes on. The table has what each step took and left; the last line
is JSON.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.steps import largest, noting_steps
from pipeline.beam.runner import parse_beam_options
from pipeline.config import Config
from pipeline.engine.progress import Progress
from pipeline.engine.run import Build
from pipeline.engine.units import Marker, Unit, UnitOutput, read_markers, write_marker
from pipeline.engine.workspace import Workspace
from pipeline.records import FETCHED
from pipeline.stages.balance.scans import QueryHashes
from pipeline.stages.dedup.steps import run_dedup
from queries.allowlist import Allowlist, import_allowlist

QUERIES = 500_000
PART_ROWS = 10_000
COPY_OF_EIGHT = 8
_STEP = "fetched"


def _mixed(numbers: np.ndarray, stream: int) -> np.ndarray:
    """Return a random 64-bit number for each number (splitmix64)."""
    x = numbers.astype(np.uint64) * np.uint64(8) + np.uint64(stream)
    x = (x + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def make_part(number: int) -> pa.Table:
    """Return PART_ROWS rows of a fetched part."""
    random = np.random.default_rng(number)
    own = np.arange(number * PART_ROWS, (number + 1) * PART_ROWS, dtype=np.uint64)
    is_copy = (own % COPY_OF_EIGHT == 7) & (own > PART_ROWS)
    original = np.where(is_copy, _mixed(own, 7) % np.maximum(own, 1), own)
    original -= np.where(is_copy & (original % COPY_OF_EIGHT == 7), np.uint64(1), np.uint64(0))
    is_exact = is_copy & (own % np.uint64(3) == 0)
    words = np.stack([_mixed(original, stream) for stream in range(4)], axis=1)
    bits = np.unpackbits(words.view(np.uint8), axis=1)
    for row in np.flatnonzero(is_copy & ~is_exact):
        bits[row, random.choice(256, random.integers(1, 16), replace=False)] ^= 1
    pdq = np.packbits(bits, axis=1)
    files = np.where(is_exact, original, own)
    hexes = [f"{a:016x}{b:016x}" for a, b in zip(_mixed(own, 4).tolist(), _mixed(own, 5).tolist(), strict=True)]
    queries = np.minimum(random.zipf(1.2, (PART_ROWS, 3)), QUERIES).astype(np.int32) - 1
    columns = {
        "uid": pa.array(hexes),
        "url": pa.array([f"https://host{n % 50_000}.example/pictures/{n}.jpg" for n in own.tolist()]),
        "caption": pa.array([f"a picture of some thing and another, number {n}" for n in own.tolist()]),
        "query_ids": pa.array(list(queries), pa.list_(pa.int32())),
        "status": pa.repeat("success", PART_ROWS),
        "sha256": pa.array([f"{n:064x}" for n in files.tolist()]),
        "pdq": pa.array([row.tobytes() for row in pdq], pa.binary(32)),
        "pdq_quality": pa.repeat(pa.scalar(90, pa.int32()), PART_ROWS),
    }
    arrays = [columns.get(field.name, pa.nulls(PART_ROWS, field.type)) for field in FETCHED]
    return pa.Table.from_arrays([array.cast(f.type) for array, f in zip(arrays, FETCHED, strict=True)], schema=FETCHED)


def make_fetched(workspace: Workspace, parts: int) -> dict[str, Marker]:
    """Write the parts that are not there yet; return their markers."""
    done = read_markers(workspace, _STEP)
    for number in range(parts):
        name = f"part-{number:05d}"
        if name not in done:
            output = UnitOutput(workspace)
            output.write_table(f"fetched/{name}.parquet", make_part(number))
            write_marker(workspace, _STEP, Unit(name, "made"), output, {"inputs": PART_ROWS, "kept": PART_ROWS})
    return {
        name: marker for name, marker in sorted(read_markers(workspace, _STEP).items()) if name < f"part-{parts:05d}"
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000_000)
    parser.add_argument("--folder", type=Path, help="keep the made-up parts and the results here")
    args = parser.parse_args()
    parts = max(1, args.images // PART_ROWS)
    with tempfile.TemporaryDirectory(prefix="wit-dedup-") as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        queries = folder / "queries.parquet"
        if not queries.exists():
            (folder / "queries.txt").write_text("".join(f"query{i}\n" for i in range(QUERIES)))
            import_allowlist(str(folder / "queries.txt"), str(queries))
        workspace = Workspace(str(folder / "work"))
        fetched = make_fetched(workspace, parts)
        config = Config.model_validate(
            {
                "workspace": "work",
                "seed": 5,
                "allowlist": {"path": "queries.parquet"},
                "sources": [{"kind": "warc", "paths": ["x"]}],
                "fetch": {"network": False},
                "balance": {"cap": 500},
            }
        )
        build = Build(workspace, parse_beam_options([]), Progress(None))
        allowlist = Allowlist.load(str(queries))
        with noting_steps(workspace, ("dedup", ".wit/dedup"), folder / "costs.jsonl") as steps:
            marker = run_dedup(build, config, folder, allowlist, QueryHashes(str(queries), 5), fetched, {})
        found = {
            "images": parts * PART_ROWS,
            "wall_s": round(sum(step.wall_s for step in steps)),
            "cpu_s": round(sum(step.cpu_s for step in steps)),
            "cpu_us_per_image": round(1e6 * sum(step.cpu_s for step in steps) / (parts * PART_ROWS), 1),
            **largest(steps),
            "counts": dict(marker.counts),
        }
        print(json.dumps(found))


if __name__ == "__main__":
    main()
