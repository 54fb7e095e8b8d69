"""fetched/ + dedup/ -> shards/: WebDataset tars of the kept pairs, a Parquet of every pair, and the manifest.

Fetched part i becomes shard i, so no image is sent between workers. `manifest.json` is removed before anything changes
and written last: if it exists, the dataset is complete.
"""

import re
import tarfile
from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.account import Account
from pipeline.consent.block_lists import BlockLists
from pipeline.consent.policy import Signal
from pipeline.engine.run import Build, run_units
from pipeline.engine.units import Marker, Unit, UnitOutput, Work, digest, discard_stale, unfinished, write_marker
from pipeline.engine.workspace import Workspace
from pipeline.errors import UserError
from pipeline.fetching.block_files import BlockFiles, read_block_lists
from pipeline.paths import file_versions
from pipeline.records import DROPPED, SCORE, SHARD, Reason
from pipeline.shards.manifest import FORMAT
from pipeline.shards.tar import TarWriter

VERSION = 2
"""Raise it when the same decisions would give other bytes."""

_MANIFEST_STEP = "manifest"
_SHARD_FILE = re.compile(r"[0-9]{5,}(\.tar|\.parquet|_stats\.json)")


@dataclass(frozen=True)
class Part:
    """One unit: the files of the fetched and dedup stages for a part, with the SHA-256 of each file."""

    number: int
    fetched: str
    tar: str
    decisions: str
    sha256: Mapping[str, str]

    @property
    def stem(self) -> str:
        return f"shards/{self.number:05d}"


def run_shards(
    build: Build,
    fetched: Mapping[str, Marker],
    filtered: Mapping[str, Marker],
    decided: Marker,
    block_files: BlockFiles,
) -> dict[str, Marker]:
    """Fill shards/ with one tar, one Parquet and one stats file per part; `write_manifest` completes the set.

    `filtered` has the rows of the parts where images are filtered. Images on the current block lists are left out, even
    if they were not on them when they were fetched.
    """
    lists = digest({kind: [file_versions(path) for path in paths] for kind, paths in block_files.items() if paths})
    units = [
        _unit(i, name, marker, filtered.get(name), decided, lists) for i, (name, marker) in enumerate(fetched.items())
    ]
    if unfinished(build.workspace, "shards", units):
        build.workspace.remove(["shards/manifest.json"])
    return run_units(build, "shards", units, _OpenShards(block_files))


def _unit(number: int, name: str, fetched: Marker, filtered: Marker | None, decided: Marker, lists: str) -> Unit:
    decisions = f"dedup/decisions/{name}.parquet"
    rows = f"fetched/{name}.parquet" if filtered is None else f"filtered/{name}.parquet"
    outputs = fetched.outputs if filtered is None else fetched.outputs | filtered.outputs
    inputs = sorted((file, facts.sha256) for file, facts in outputs.items())
    hashes = dict(inputs) | {decisions: decided.outputs[decisions].sha256}
    part = Part(number, rows, f"fetched/{name}.tar", decisions, hashes)
    return Unit(f"{number:05d}", digest(VERSION, inputs, decided.outputs[decisions].sha256, lists), part)


def write_manifest(
    build: Build, shards: Mapping[str, Marker], account: Account, recipe: Mapping[str, Any], code_version: str
) -> None:
    """Write `sizes.json`, then `manifest.json`, unless they are up to date. Shards of a killed run that are not in this
    set are removed, because readers of `*.tar` would find them.
    """
    files = {name.rsplit("/", 1)[1]: f for marker in shards.values() for name, f in marker.outputs.items()}
    if strays := _strays(build.workspace, files.keys()):
        build.workspace.remove(strays)
        if left := _strays(build.workspace, files.keys()):
            raise UserError(f"{left[0]} belongs to another build and cannot be removed: delete it and run again")
    samples = {f"{name}.tar": marker.counts["kept"] for name, marker in shards.items()}
    content = {
        "format": FORMAT,
        "code_version": code_version,
        "recipe": dict(recipe),
        "samples": sum(samples.values()),
        "shards": [{"tar": tar, "samples": count} for tar, count in samples.items()],
        "files": {name: {"bytes": f.bytes, "sha256": f.sha256} for name, f in sorted(files.items())},
        "account": account.to_json(),
    }
    unit = Unit("set", digest(samples, content))
    if unit.name not in discard_stale(build.workspace, _MANIFEST_STEP, [unit]):
        output = UnitOutput(build.workspace)
        output.write_json("shards/sizes.json", samples)
        output.write_json("shards/manifest.json", content)
        write_marker(build.workspace, _MANIFEST_STEP, unit, output, {})


def _strays(workspace: Workspace, own: Set[str]) -> list[str]:
    found = {name.rsplit("/", 1)[1] for name in workspace.sizes("shards")}
    return [f"shards/{name}" for name in sorted(found - own) if _SHARD_FILE.fullmatch(name)]


@dataclass(frozen=True)
class _OpenShards:
    block_files: BlockFiles

    def open(self) -> Work:
        return WriteShard(read_block_lists(self.block_files))


@dataclass(frozen=True)
class WriteShard:
    """Write one shard. Rows keep the order of the plan, which is random by construction.

    Raises:
        DamagedFileError: an input has changed since it was written, so the manifest must not certify the shard.
    """

    block_lists: BlockLists

    def run(self, part: Part, output: UnitOutput) -> Mapping[str, int]:
        fetched, decisions = (
            output.workspace.read_table(name, sha256=part.sha256[name]) for name in (part.fetched, part.decisions)
        )
        rows = join_decisions(fetched, decisions)
        decided = pc.sum(pc.equal(rows["status"], "success")).as_py() or 0
        if self.block_lists:
            rows = drop_listed(rows, self.block_lists)
        kept = rows.filter(pc.equal(rows["status"], "success"))
        _write_tar(part, kept, output)
        output.write_table(f"{part.stem}.parquet", rows)
        output.write_json(f"{part.stem}_stats.json", shard_stats(rows))
        return {"inputs": decided, "kept": kept.num_rows, Reason.OPTED_OUT: decided - kept.num_rows}


def drop_listed(rows: pa.Table, block_lists: BlockLists) -> pa.Table:
    """Return the rows of a shard with those dropped whose URL or image is on a block list."""
    listed = [
        status == "success"
        and (block_lists.of_url(url, _host(url)) or block_lists.of_fingerprints(sha256, pdq)) is not None
        for status, url, sha256, pdq in zip(
            *(rows[name].to_pylist() for name in ("status", "url", "sha256", "pdq")), strict=True
        )
    ]
    columns = {"status": DROPPED, "reason": Reason.OPTED_OUT, "refused_by": Signal.BLOCK_LIST}
    for name, value in columns.items():
        rows = rows.set_column(
            rows.schema.get_field_index(name), SHARD.field(name), pc.if_else(pa.array(listed), str(value), rows[name])
        )
    return rows


def _host(url: str) -> str:
    return urlsplit(url).hostname or ""


def join_decisions(fetched: pa.Table, decisions: pa.Table) -> pa.Table:
    """Return a part's rows with the columns of SHARD: fetch outcomes, overridden by the decisions of dedup."""
    at = pc.index_in(fetched["uid"], decisions["uid"])
    decided = decisions.take(at)  # nulls where the fetch had failed already
    dropped = pc.fill_null(pc.is_valid(decided["reason"]), False)
    columns = {
        "key": fetched["uid"],
        "status": pc.if_else(dropped, DROPPED, fetched["status"]),
        "reason": pc.coalesce(decided["reason"], fetched["reason"]),
        "selected_by": decided["selected_by"],
        "captions": decided["captions"],
    }
    known = dict(zip(fetched.column_names, fetched.columns, strict=True)) | columns
    schema = SHARD.append(SCORE) if SCORE.name in known else SHARD
    return pa.table([known[name] for name in schema.names], schema)


def _write_tar(part: Part, kept: pa.Table, output: UnitOutput) -> None:
    wanted = {row["uid"]: row for row in kept.to_pylist()}
    with (
        output.workspace.open_checked(part.tar, part.sha256[part.tar]) as source,
        tarfile.open(fileobj=cast(BinaryIO, source), mode="r|") as fetched,
        output.create(f"{part.stem}.tar") as out,
        TarWriter(cast(BinaryIO, out)) as tar,
    ):
        for member in fetched:
            row = wanted.pop(member.name.split(".")[0], None)
            if row is not None:
                image = fetched.extractfile(member)
                assert image is not None
                _add_sample(tar, row, image.read())
        source.check()
        if wanted:
            raise ValueError(f"{part.tar}: {len(wanted)} images are missing, the first is {min(wanted)}")


def _add_sample(tar: TarWriter, row: dict[str, Any], image: bytes) -> None:
    uid = row["uid"]
    tar.add(f"{uid}.jpg", image)
    tar.add(f"{uid}.txt", row["caption"].encode())
    tar.add(f"{uid}.json", orjson.dumps(row | {"pdq": row["pdq"].hex()}, option=orjson.OPT_SORT_KEYS))


def shard_stats(rows: pa.Table) -> dict[str, Any]:
    """Return img2dataset's counters for one shard, and the pairs that each signal refused.

    Without img2dataset's clock times: they would differ on every run.
    """
    statuses = Counter(rows["status"].to_pylist())
    reasons = Counter(reason for reason in rows["reason"].to_pylist() if reason is not None)
    return {
        "count": rows.num_rows,
        "successes": statuses["success"],
        "failed_to_download": statuses["failed_to_download"],
        "failed_to_resize": statuses["failed_to_resize"],
        "dropped": statuses[DROPPED],
        "refused_by": dict(sorted(Counter(rows["refused_by"].drop_null().to_pylist()).items())),
        "status_dict": {"success": statuses["success"], **dict(sorted(reasons.items()))},
    }
