"""Inspect a finished set: the outcome of every row, its duplicates, and its overlap with evaluation sets.

python examples/inspect_set.py WORKSPACE
"""

import sys

import pyarrow.compute as pc

from dedup import near_duplicates, overlap_statistics
from pipeline import open_set

built = open_set(sys.argv[1])

for stage in built.account.stages:
    reasons = ", ".join(f"{reason} {rows:,}" for reason, rows in stage.reasons.items())
    print(f"{stage.stage:<8} {stage.inputs:>9,} in {stage.kept:>9,} kept  {reasons}")

samples = built.samples(["uid", "caption", "pdq"])
print(f"{samples.num_rows:,} samples, such as {samples['caption'][0].as_py()!r}")

for reason in pc.value_counts(built.duplicates()["reason"]).to_pylist():
    print(f"dropped as {reason['values']}: {reason['counts']:,}")

rows = near_duplicates(samples["pdq"], max_distance_bits=31)  # wider than the build's own 15
print(f"within 31 bits, {(rows != range(len(rows))).sum():,} more samples are near another one")

for name in built.evals:
    overlap = built.overlap(name)
    fraction = overlap_statistics(overlap.filter(overlap["kept"]), built.eval_index(name)).share
    low, high = f"{fraction.low:.1%}", f"{fraction.high:.1%}"
    print(f"{name}: {fraction.count} of {fraction.total} images are in the set ({low} to {high})")
