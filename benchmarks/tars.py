"""Time the reading of candidates from shards of others, against the webdataset library reading the same samples.

    python -m benchmarks.tars [--megabytes 300] [--runs 5]

The shard is cc12m_32.tar of the folder of real data (WIT_SHARED_DATA), repeated under other keys. Ours reads text and
JSON of each sample, checks them and makes candidates; the library gives every member's bytes, images included.
"""

import argparse
import io
import os
import statistics
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from pipeline.config import PairsConfig
from pipeline.config.sources import SourceConfig
from pipeline.sources import read_source

SHARED = Path(os.environ.get("WIT_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--runs", type=int, default=5, help="of each, alternating; the median counts")
    args = parser.parse_args()
    if not SHARED.is_dir():
        sys.exit("benchmarks.tars: needs the folder of real data: set WIT_SHARED_DATA")
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "00000.tar")
        samples = write_tar(path, args.megabytes * 1_000_000)
        timed_ours(path, samples), timed_library(path, samples)  # imports, and the file into memory
        ours, theirs = [], []
        for _ in range(args.runs):
            ours.append(timed_ours(path, samples))
            theirs.append(timed_library(path, samples))
    for name, runs in (("ours", ours), ("webdataset", theirs)):
        print(f"{name}: {samples / statistics.median(runs):,.0f} samples per CPU second")


def write_tar(path: str, least_bytes: int) -> int:
    """Write a tar of at least so many bytes; return the number of samples."""
    with tarfile.open(SHARED / "shards/cc12m_32.tar") as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar if m.isfile()]  # type: ignore[union-attr]
    copies = -(-least_bytes // sum(len(content) for _, content in members))
    with tarfile.open(path, "w") as tar:
        for copy in range(copies):
            for name, content in members:
                info = tarfile.TarInfo(f"{copy:05d}{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return copies * sum(name.endswith(".json") for name, _ in members)


def timed_ours(path: str, samples: int) -> float:
    source = SourceConfig(kind="webdataset", paths=(path,))
    start_s = time.process_time()
    rows = sum(batch.candidates.num_rows for batch in read_source(source, path, PairsConfig()))
    assert rows == samples
    return time.process_time() - start_s


def timed_library(path: str, samples: int) -> float:
    import webdataset

    start_s = time.process_time()
    rows = sum(1 for _ in webdataset.WebDataset(path, shardshuffle=False))
    assert rows == samples
    return time.process_time() - start_s


if __name__ == "__main__":
    main()
