"""`wit annotate`: new columns of samples, joined by uid, as Parquet beside the shards; tars stay as they are.

annotations/<name>/00000.parquet has one row for each sample of shard 00000, in its order: `uid`, then the columns, null
where the tables had none. Rows are joined through files, so that tables and set may have any size:

    rows    tables of the user -> buckets by the first digits of the uid
    uids    shards -> buckets of the uids of samples, with their shard
    join    bucket -> annotated uids, in groups of shards
    write   group -> one file per shard
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.engine.run import Build, run_units
from pipeline.engine.shuffle import MAX_BUCKETS, gather, group_count, group_of_part, spill
from pipeline.engine.units import (
    Marker,
    Stateless,
    Unit,
    UnitOutput,
    add_counts,
    digest,
    finish_stage,
    finished_stage,
    read_markers,
)
from pipeline.engine.workspace import Workspace
from pipeline.errors import ConfigError, UserError, one_line
from pipeline.paths import file_versions
from pipeline.records import SHARD

VERSION = 1
"""Raise it when the same tables would give other files."""

FOLDER = "annotations"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_ROWS_PER_BUCKET = 500_000
_UIDS = pa.schema([("uid", pa.string()), ("shard", pa.int32()), ("row", pa.int32())])


@dataclass(frozen=True)
class Annotated:
    """What `wit annotate` joined: rows of the tables, samples that got one, and samples in all."""

    rows: int
    annotated: int
    samples: int


def run_annotate(build: Build, name: str, tables: Sequence[str], columns: Sequence[str] = ()) -> Annotated:
    """Join the columns of Parquet tables (paths or fsspec URLs) to the samples of a finished set.

    Raises:
        ConfigError: the name or a table is unusable.
        UserError: there is no finished set, or a uid is annotated twice.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r}: a name has lower-case letters, digits, - and _ only, and at most 64 of them")
    shards = read_markers(build.workspace, "shards")
    if not shards or not build.workspace.exists("shards/manifest.json"):
        raise UserError(f"{build.workspace.root}: no finished dataset; run `wit build` first")
    schema = _schema_of(tables, columns)
    files = {file: facts.sha256 for m in shards.values() for file, facts in m.outputs.items() if _is_table(file)}
    inputs = [file_versions(path) for path in tables]
    stage, stage_digest = f"{FOLDER}/{name}", digest(VERSION, sorted(files.items()), inputs, schema.names)
    done = finished_stage(build.workspace, stage, stage_digest)
    if done is None:
        done = _Steps(build, stage, stage_digest, schema, list(shards)).run(tables)
    return Annotated(done.counts["inputs"], done.counts["kept"], add_counts(shards.values())["kept"])


def _is_table(name: str) -> bool:
    return name.endswith(".parquet")


def _schema_of(tables: Sequence[str], columns: Sequence[str]) -> pa.Schema:
    """Return `uid` and the chosen columns, which all tables must have with the same types."""
    found: pa.Schema | None = None
    for path in tables:
        try:
            schema = pq.read_schema(path, filesystem=None) if "://" not in path else _remote_schema(path)
        except Exception as error:  # any error of a store, or a file that is no Parquet
            raise ConfigError(f"{path}: cannot be read as Parquet: {one_line(error)}") from None
        wanted = list(columns) or [field for field in schema.names if field != "uid"]
        missing = [column for column in ("uid", *wanted) if column not in schema.names]
        if missing:
            raise ConfigError(f"{path}: has no column {missing[0]!r}; it has {', '.join(schema.names)}")
        if not wanted:
            raise ConfigError(f"{path}: has no column beside uid")
        if clash := sorted(set(wanted) & set(SHARD.names)):
            raise ConfigError(f"{path}: the tables of a set have a column {clash[0]!r} already: rename it")
        if not (pa.types.is_string(schema.field("uid").type) or pa.types.is_large_string(schema.field("uid").type)):
            raise ConfigError(f"{path}: the column uid has the type {schema.field('uid').type}, not string")
        own = pa.schema([("uid", pa.string()), *((column, schema.field(column).type) for column in wanted)])
        if found is not None and own != found:
            raise ConfigError(f"{path}: its columns or their types are not those of {tables[0]}")
        found = own
    if found is None:
        raise ConfigError("no table is given")
    return found


def _remote_schema(path: str) -> pa.Schema:
    import fsspec

    with fsspec.open(path, "rb") as file:
        return pq.read_schema(file)


@dataclass(frozen=True)
class _Steps:
    build: Build
    stage: str
    stage_digest: str
    schema: pa.Schema
    shards: list[str]

    @property
    def scratch(self) -> str:
        return f".wit/{self.stage}"

    def run(self, tables: Sequence[str]) -> Marker:
        samples = add_counts(read_markers(self.build.workspace, "shards").values())["kept"]
        buckets = min(MAX_BUCKETS, 1 + samples // _ROWS_PER_BUCKET)
        rows = self._step(
            "rows", {f"{i:05d}": path for i, path in enumerate(tables)}, SpillRows(self.schema, buckets, self.scratch)
        )
        uids = self._step("uids", {name: name for name in self.shards}, SpillUids(buckets, self.scratch))
        files = [[file for m in markers.values() for file in m.outputs] for markers in (rows, uids)]
        groups = group_count(len(self.shards))
        joining = JoinUids(self.schema, files[0], files[1], len(self.shards), self.scratch)
        joined = self._step("join", {f"{bucket:05d}": bucket for bucket in range(buckets)}, joining)
        names = [file for m in joined.values() for file in m.outputs]
        writing = WriteAnnotations(self.schema, names, self.shards, self.stage)
        written = self._step("write", {f"{group:05d}": group for group in range(groups)}, writing)
        outputs = {file: facts for m in written.values() for file, facts in m.outputs.items()}
        counts = {"inputs": add_counts(rows.values())["inputs"], "kept": add_counts(written.values())["kept"]}
        return finish_stage(self.build.workspace, self.stage, self.stage_digest, outputs, counts)

    def _step(self, step: str, payloads: Mapping[str, object], work: object) -> dict[str, Marker]:
        units = [Unit(name, digest(self.stage_digest, step, name), payload) for name, payload in payloads.items()]
        return run_units(self.build, f"{self.stage}/{step}", units, Stateless(work))  # type: ignore[arg-type]


def _bucket_of(uids: pa.Array | pa.ChunkedArray, buckets: int) -> np.ndarray:
    """Return the bucket of each uid, (n,) int32, by its first four digits."""
    first = np.array([int(uid[:4], 16) for uid in uids.to_pylist()], np.int64)
    return (first * buckets >> 16).astype(np.int32)


@dataclass(frozen=True)
class SpillRows:
    schema: pa.Schema
    buckets: int
    scratch: str

    def run(self, path: str, output: UnitOutput) -> Mapping[str, int]:
        name = f"{self.scratch}/spilled-rows/{digest(path)}.rows"
        rows = spill(output, name, self.schema, self.buckets, self._routed(path))
        return {"inputs": rows, "kept": rows}

    def _routed(self, path: str) -> Iterator[tuple[pa.Table, np.ndarray]]:
        import fsspec

        with fsspec.open(path, "rb") as file, pq.ParquetFile(file) as table:
            for batch in table.iter_batches(columns=self.schema.names):
                rows = pa.Table.from_batches([batch]).select(self.schema.names).cast(self.schema)
                is_uid = pc.fill_null(pc.match_substring_regex(rows["uid"], "^[0-9a-f]{32}$"), False)
                if not pc.all(is_uid).as_py():
                    wrong = rows["uid"].filter(pc.invert(is_uid))[0].as_py()
                    raise UserError(f"{path}: {wrong!r} is not a uid of 32 hexadecimal digits")
                yield rows, _bucket_of(rows["uid"], self.buckets)


@dataclass(frozen=True)
class SpillUids:
    buckets: int
    scratch: str

    def run(self, shard: str, output: UnitOutput) -> Mapping[str, int]:
        table = output.workspace.read_table(f"shards/{shard}.parquet", ["uid", "status"])
        uids = table.filter(pc.equal(table["status"], "success"))["uid"]
        numbers = np.full(len(uids), int(shard), np.int32)
        rows = pa.table([uids, numbers, np.arange(len(uids), dtype=np.int32)], _UIDS)
        name = f"{self.scratch}/spilled-uids/{shard}.rows"
        count = spill(output, name, _UIDS, self.buckets, [(rows, _bucket_of(uids, self.buckets))])
        return {"inputs": count, "kept": count}


@dataclass(frozen=True)
class JoinUids:
    schema: pa.Schema
    rows: list[str]
    uids: list[str]
    shards: int
    scratch: str

    def run(self, bucket: int, output: UnitOutput) -> Mapping[str, int]:
        rows = gather(output.workspace, self.rows, bucket, self.schema)
        uids = gather(output.workspace, self.uids, bucket, _UIDS)
        counted = pc.value_counts(rows["uid"].combine_chunks())
        if len(counted) < rows.num_rows:
            twice = counted.filter(pc.greater(counted.field("counts"), 1))[0]["values"].as_py()
            raise UserError(f"the tables have more than one row of uid {twice}: merge them into one row first")
        joined = rows.take(pc.index_in(uids["uid"], rows["uid"].combine_chunks()))
        table = uids.select(["shard", "row", "uid"])
        for field in self.schema:
            if field.name != "uid":
                table = table.append_column(field, joined[field.name])
        has_row = pc.sum(pc.is_valid(joined["uid"])).as_py() or 0
        schema = _joined_schema(self.schema)
        groups = group_of_part(table["shard"].to_numpy(), self.shards)
        name = f"{self.scratch}/joined/{bucket:05d}.rows"
        spill(output, name, schema, group_count(self.shards), [(table.cast(schema), groups)])
        return {"inputs": uids.num_rows, "kept": has_row}


def _joined_schema(schema: pa.Schema) -> pa.Schema:
    return pa.schema([("shard", pa.int32()), ("row", pa.int32()), *schema])


@dataclass(frozen=True)
class WriteAnnotations:
    schema: pa.Schema
    joined: list[str]
    shards: list[str]
    stage: str

    def run(self, group: int, output: UnitOutput) -> Mapping[str, int]:
        rows = gather(output.workspace, self.joined, group, _joined_schema(self.schema))
        rows = rows.sort_by([("shard", "ascending"), ("row", "ascending")])
        groups = group_of_part(np.arange(len(self.shards)), len(self.shards))
        kept = 0
        for number in np.flatnonzero(groups == group):
            of_shard = rows.filter(pc.equal(rows["shard"], int(number))).select(self.schema.names)
            kept += _annotated(of_shard)
            output.write_table(f"{self.stage}/{self.shards[number]}.parquet", of_shard)
        return {"inputs": rows.num_rows, "kept": kept}


def _annotated(rows: pa.Table) -> int:
    """Return how many rows have a value in some column."""
    has_value = np.zeros(rows.num_rows, bool)
    for name in rows.column_names[1:]:
        has_value |= pc.is_valid(rows[name]).to_numpy(zero_copy_only=False)
    return int(has_value.sum())


def read_annotations(workspace: Workspace) -> dict[str, Marker]:
    """Return the markers of the annotations of a set, by name."""
    return read_markers(workspace, f"stages/{FOLDER}")


def prune_annotations(workspace: Workspace, listed: Mapping[str, str]) -> None:
    """Remove the rows of pairs that left the set from its annotations: shard -> its file of `LISTED`."""
    for name, marker in read_annotations(workspace).items():
        outputs = dict(marker.outputs)
        for shard, file in listed.items():
            target = f"{FOLDER}/{name}/{shard}.parquet"
            if target not in outputs or not workspace.exists(target):
                continue
            rows = workspace.read_table(target)
            gone = pc.is_in(rows["uid"], workspace.read_table(file, ["uid"])["uid"].combine_chunks())
            output = UnitOutput(workspace)
            if pc.any(gone).as_py() or workspace.sizes(target).get(target) != outputs[target].bytes:
                output.write_table(target, rows.filter(pc.invert(gone)))
            outputs |= output.files
        if outputs != marker.outputs:
            Marker(marker.digest, outputs, marker.counts).write(workspace, f"stages/{FOLDER}", name)
