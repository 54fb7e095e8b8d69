"""Time the comparison of fingerprints as in a set of hundreds of millions of images, and of one image in many versions.

    python -m benchmarks.dense_buckets [--images 600000000] [--values 4] [--versions 100000]

A set of n images has n / 65,536 fingerprints for each value of a 16-bit band, and 16 bands. Some of these buckets are
made from random fingerprints, every hundredth a copy of another within 10 bits, and compared; the last line
extrapolates to the whole set. Random fingerprints fill all values alike: real ones cost more, by how much their fullest
values exceed the mean. "versions" is one image in many versions, all within 12 bits of each other.
"""

import argparse
import resource
import time

import numpy as np

from dedup.duplicates import find_edges
from dedup.hamming import BANDS

_MAX_DISTANCE_BITS = 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=600_000_000)
    parser.add_argument("--values", type=int, default=4, help="band values to compare")
    parser.add_argument("--versions", type=int, default=100_000, help="of one image")
    args = parser.parse_args()
    rows = max(2, args.images >> 16)
    random = np.random.default_rng(0)
    print("| bucket | rows | CPU s | pairs per CPU s | edges | rows not compared with all | peak MiB |")
    print("|---|---|---|---|---|---|---|")
    cpu_s = _measure("random", np.concatenate([_bucket(random, value, rows) for value in range(args.values)]), rows)
    _measure("versions", _versions(random, args.versions), args.versions)
    hours = cpu_s / args.values * (1 << 16) * BANDS / 3600
    pairs = rows**2 / 2 * (1 << 16) * BANDS
    print(f"\n{args.images:,} images: {rows:,} rows a value, {pairs:.1e} pairs: {hours:.0f} CPU hours")


def _bucket(random: np.random.Generator, value: int, rows: int) -> np.ndarray:
    """Return fingerprints with one value in the first band, (rows, 32) uint8."""
    hashes = random.integers(0, 256, (rows, 32), dtype=np.uint8)
    hashes[:, :2] = (value >> 8, value & 255)
    copies = np.arange(1, rows, 100)
    hashes[copies] = hashes[copies - 1]
    bits = np.unpackbits(hashes[copies], axis=1)
    bits[np.arange(len(copies))[:, None], random.integers(16, 256, (len(copies), 10))] ^= 1
    hashes[copies] = np.packbits(bits, axis=1)
    return hashes


def _versions(random: np.random.Generator, rows: int) -> np.ndarray:
    """Return distinct fingerprints that share the first band's value, each 6 bits from the same one."""
    bits = np.tile(random.integers(0, 2, 256, dtype=np.uint8), (rows, 1))
    flipped = np.argsort(random.random((rows, 240), dtype=np.float32), axis=1)[:, :6] + 16
    bits[np.arange(rows)[:, None], flipped] ^= 1
    return np.packbits(bits, axis=1)


def _measure(name: str, hashes: np.ndarray, rows: int) -> float:
    start = time.process_time()
    edges = limited = 0
    for block in find_edges(np.zeros(len(hashes), np.int32), hashes, _MAX_DISTANCE_BITS):
        edges += len(block.edges.first)
        limited += block.limited
    cpu_s = time.process_time() - start
    pairs = len(hashes) * (rows - 1) / 2
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"| {name} | {rows:,} | {cpu_s:.2f} | {pairs / cpu_s:.1e} | {edges:,} | {limited:,} | {peak_mib} |")
    return cpu_s


if __name__ == "__main__":
    main()
