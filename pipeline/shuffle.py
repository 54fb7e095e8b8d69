"""Grouping through files: rows go to numbered buckets without passing through Beam's shuffle.

Beam's local runner keeps every shuffled byte in memory (about four times the payload), and each cluster shuffles
differently. So rows are spilled: each unit writes one file whose row groups hold one bucket each, and the unit of a
bucket reads just its row groups from all those files. Memory is one chunk when writing and one bucket when reading;
the result is the same on every runner and can be resumed.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.units import UnitOutput
from pipeline.workspace import Workspace

CHUNK_ROWS = 65_536
MAX_BUCKETS = 1_024
_BUCKET = "bucket"


def spill(output: UnitOutput, name: str, schema: pa.Schema, batches: Iterable[tuple[pa.Table, np.ndarray]]) -> int:
    """Write rows sorted into buckets; return how many. Each batch comes with the bucket number of every row."""
    rows = 0
    with output.create(name) as out, pq.ParquetWriter(out, schema.append(_FIELD), compression="zstd") as writer:
        for table, buckets in _chunks(batches):
            order = np.argsort(buckets, kind="stable")
            starts = np.flatnonzero(np.diff(buckets[order], prepend=-1))
            ordered = (
                table.cast(schema).take(pa.array(order)).append_column(_FIELD, pa.array(buckets[order], pa.int32()))
            )
            for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
                writer.write_table(ordered.slice(start, end - start))
            rows += len(order)
    return rows


_FIELD = pa.field(_BUCKET, pa.int32())


def _chunks(batches: Iterable[tuple[pa.Table, np.ndarray]]) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """Gather small batches into chunks of at least CHUNK_ROWS, so that a bucket is not a thousand tiny row groups."""
    tables: list[pa.Table] = []
    buckets: list[np.ndarray] = []
    for table, numbers in batches:
        if not len(numbers):
            continue
        tables.append(table)
        buckets.append(numbers)
        if sum(map(len, buckets)) >= CHUNK_ROWS:
            yield pa.concat_tables(tables), np.concatenate(buckets)
            tables, buckets = [], []
    if tables:
        yield pa.concat_tables(tables), np.concatenate(buckets)


def gather(workspace: Workspace, names: Sequence[str], bucket: int, schema: pa.Schema) -> pa.Table:
    """Read the rows of one bucket from spilled files, in the order of `names`."""
    found = [schema.empty_table()]
    for name in names:
        with workspace.open(name) as source, pq.ParquetFile(source) as spilled:
            groups = [i for i in range(spilled.num_row_groups) if _bucket_of(spilled, i) == bucket]
            if groups:
                found.append(spilled.read_row_groups(groups, columns=schema.names, use_threads=False).cast(schema))
    return pa.concat_tables(found)


def _bucket_of(spilled: pq.ParquetFile, group: int) -> int:
    column = spilled.metadata.row_group(group).column(spilled.metadata.num_columns - 1)
    return int(column.statistics.min)
