"""The size of a stored image, and what a pair costs from fetched/ to a shard: bytes and CPU time on one core.

    python -m benchmarks.late_stages

Photos: COCO's from the folder of real data (WIT_SHARED_DATA), or made-up ones, stored as the fetcher does. A part of
10,000 pairs has these images, cycled. Every mode of `fetch.resize` is measured on the same photos, and the format
"original". The last line is JSON.
"""

import json
import os
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.dedup_at_scale import PART_ROWS, make_part
from benchmarks.photos import photo
from pipeline.config import FetchConfig
from pipeline.engine.units import UnitOutput
from pipeline.engine.workspace import Workspace
from pipeline.fetching.images import store_image
from pipeline.records import DECISIONS
from pipeline.shards.tar import TarWriter
from pipeline.stages.listed import Withdrawn
from pipeline.stages.shards import Part, WriteShard

SHARED = Path(os.environ.get("WIT_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


def photos() -> list[bytes]:
    path = SHARED / "photos" / "coco_159.tar"
    if not path.exists():
        return [photo(np.random.default_rng(number)) for number in range(40)]
    with tarfile.open(path) as tar:
        files = [tar.extractfile(member) for member in tar if member.name.endswith(".jpg")]
        return [file.read() for file in files if file is not None]


MODES = {
    "shorter_side": FetchConfig(),
    "longer_side": FetchConfig(resize="longer_side"),
    "center_crop": FetchConfig(resize="center_crop"),
    "pad": FetchConfig(resize="pad"),
    "none": FetchConfig(resize="none"),
    "original": FetchConfig(resize="none", format="original"),
}


def store(originals: list[bytes], config: FetchConfig) -> tuple[list[bytes], float]:
    """Return the stored files, and the CPU time of one in milliseconds."""
    start_s = time.process_time()
    images = [store_image(encoded, config).file for encoded in originals]
    return images, 1e3 * (time.process_time() - start_s) / len(originals)


def main() -> None:
    originals = photos()
    stored = {mode: store(originals, config) for mode, config in MODES.items()}
    images, store_ms = stored["shorter_side"]
    with tempfile.TemporaryDirectory(prefix="wit-late-") as folder:
        workspace = Workspace(folder)
        output = UnitOutput(workspace)
        rows = make_part(0)
        with output.create("fetched/part-00000.tar") as out, TarWriter(out) as tar:  # type: ignore[arg-type]
            for number, uid in enumerate(rows["uid"].to_pylist()):
                tar.add(f"{uid}.jpg", images[number % len(images)])
        output.write_table("fetched/part-00000.parquet", rows)
        decisions = {name: rows[name] for name in ("uid", "selected_by") if name in rows.column_names}
        decisions |= {
            "reason": pa.nulls(PART_ROWS, pa.string()),
            "survivor": pa.nulls(PART_ROWS, pa.string()),
            "captions": pa.array([[caption] for caption in rows["caption"].to_pylist()]),
        }
        table = pa.table([decisions[name] for name in DECISIONS.names], DECISIONS)
        output.write_table("dedup/decisions/part-00000.parquet", table)
        hashes = {name: facts.sha256 for name, facts in output.files.items()}
        names = [f"fetched/part-00000.{kind}" for kind in ("parquet", "tar")]
        part = Part(0, *names, "dedup/decisions/part-00000.parquet", hashes, Withdrawn())
        written, start_s = UnitOutput(workspace), time.process_time()
        WriteShard().run(part, written)
        shard_s = time.process_time() - start_s
    found = {
        "stored_image_bytes": round(sum(map(len, images)) / len(images)),
        "store_ms_per_image": round(store_ms, 2),
        "shard_us_per_pair": round(1e6 * shard_s / PART_ROWS, 1),
        "fetched_row_bytes": round(output.files["fetched/part-00000.parquet"].bytes / PART_ROWS),
        "fetched_tar_bytes": round(output.files["fetched/part-00000.tar"].bytes / PART_ROWS),
        "shard_tar_bytes": round(written.files["shards/00000.tar"].bytes / PART_ROWS),
        "shard_row_bytes": round(written.files["shards/00000.parquet"].bytes / PART_ROWS),
    }
    for mode, (files, cost_ms) in stored.items():
        found |= {f"{mode}_bytes": round(sum(map(len, files)) / len(files)), f"{mode}_ms": round(cost_ms, 2)}
    for name, value in found.items():
        print(f"{name:<22} {value:>10,}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
