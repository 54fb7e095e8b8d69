"""fetched/ + dedup/ -> shards/: WebDataset tars of the kept pairs, a Parquet of every pair, and the manifest.

Fetched part i becomes shard i, so no image is sent between workers. `manifest.json` is removed before anything changes
and written last: if it exists, the dataset is complete.
"""

import re
import tarfile
from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, BinaryIO, cast

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.account import Account
from pipeline.consent.policy import Signal
from pipeline.engine.run import Build, run_units
from pipeline.engine.units import Marker, Stateless, Unit, UnitOutput, digest, discard_stale, unfinished, write_marker
from pipeline.engine.workspace import Workspace
from pipeline.errors import UserError
from pipeline.records import DROPPED, LOCATION, SCORE, SHARD, Reason
from pipeline.shards.manifest import FORMAT
from pipeline.shards.tar import TarWriter
from pipeline.stages.listed import Withdrawn

VERSION = 4
"""Raise it when the same decisions would give other bytes."""

FURTHER_CAPTIONS = ("caption_2", "caption_3", "caption_4", "caption_5")
"""Keys of a sample's json: the captions after the first, empty where there are no more."""

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
    withdrawn: Withdrawn

    @property
    def stem(self) -> str:
        return f"shards/{self.number:05d}"


def run_shards(
    build: Build,
    fetched: Mapping[str, Marker],
    filtered: Mapping[str, Marker],
    decided: Marker,
    withdrawn: Mapping[str, Withdrawn],
) -> dict[str, Marker]:
    """Fill shards/ with one tar, one Parquet and one stats file per part; `write_manifest` completes the set.

    `filtered` has the rows of the parts where images are filtered. Pairs that are listed now are left out, even if they
    were not when they were fetched: `withdrawn` by part.
    """
    nothing = Withdrawn()
    units = [
        _unit(i, name, marker, filtered.get(name), decided, withdrawn.get(name, nothing))
        for i, (name, marker) in enumerate(fetched.items())
    ]
    if unfinished(build.workspace, "shards", units):
        build.workspace.remove(["shards/manifest.json"])
    return run_units(build, "shards", units, Stateless(WriteShard()))


def _unit(
    number: int, name: str, fetched: Marker, filtered: Marker | None, decided: Marker, withdrawn: Withdrawn
) -> Unit:
    decisions = f"dedup/decisions/{name}.parquet"
    rows = f"fetched/{name}.parquet" if filtered is None else f"filtered/{name}.parquet"
    outputs = fetched.outputs if filtered is None else fetched.outputs | filtered.outputs
    inputs = sorted((file, facts.sha256) for file, facts in outputs.items())
    hashes = dict(inputs) | {decisions: decided.outputs[decisions].sha256}
    part = Part(number, rows, f"fetched/{name}.tar", decisions, hashes, withdrawn)
    unit_digest = digest(VERSION, inputs, hashes[decisions], withdrawn.sha256, withdrawn.captions)
    return Unit(f"{number:05d}", unit_digest, part)


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
class WriteShard:
    """Write one shard. Rows keep the order of the plan, which is random by construction.

    Raises:
        DamagedFileError: an input has changed since it was written, so the manifest must not certify the shard.
    """

    def run(self, part: Part, output: UnitOutput) -> Mapping[str, int]:
        fetched, decisions = (
            output.workspace.read_table(name, sha256=part.sha256[name]) for name in (part.fetched, part.decisions)
        )
        rows = join_decisions(fetched, decisions)
        decided = pc.sum(pc.equal(rows["status"], "success")).as_py() or 0
        if part.withdrawn.file is not None:
            rows = drop_listed(rows, output.workspace.read_table(part.withdrawn.file, sha256=part.withdrawn.sha256))
        rows = drop_captions(rows, dict(part.withdrawn.captions))
        kept = rows.filter(pc.equal(rows["status"], "success"))
        locations = _write_tar(part, kept, output)
        output.write_table(f"{part.stem}.parquet", add_locations(rows, f"{part.number:05d}.tar", locations))
        output.write_json(f"{part.stem}_stats.json", shard_stats(rows))
        return {"inputs": decided, "kept": kept.num_rows, Reason.OPTED_OUT: decided - kept.num_rows}


_SAYS_NOTHING = frozenset(
    {"key", "uid", "status", "reason", "refused_by", "source", "query_ids", "selected_by", "http_status"}
)
"""Columns that a pair keeps when it is taken down."""

_EMPTY: Mapping[str, Any] = {"url": "", "page_url": "", "caption": ""}
"""Columns that readers expect in every row; the others become null."""


def drop_listed(rows: pa.Table, listed: pa.Table) -> pa.Table:
    """Return the rows of a shard with those dropped that are in `listed` (schema LISTED).

    Of what was taken down, the content goes too, in or out of the tar: captions, URLs, hashes and metadata.
    """
    at = pc.index_in(rows["uid"], listed["uid"])
    signal = listed["signal"].take(at)
    leaves = pc.and_(pc.is_valid(signal), pc.equal(rows["status"], "success"))
    left_before = pc.and_(pc.is_valid(signal), pc.equal(rows["status"], DROPPED))
    left_before = pc.fill_null(pc.and_(left_before, pc.equal(rows["reason"], Reason.OPTED_OUT)), False)
    taken = pc.fill_null(pc.equal(signal, str(Signal.TAKEDOWN)), False)
    columns = dict(zip(rows.column_names, rows.columns, strict=True)) | {
        "status": pc.if_else(leaves, DROPPED, rows["status"]),
        "reason": pc.if_else(leaves, str(Reason.OPTED_OUT), rows["reason"]),
        "refused_by": pc.if_else(pc.or_(leaves, left_before), signal, rows["refused_by"]),
    }
    for name in columns.keys() - _SAYS_NOTHING:
        blank = pa.scalar(_EMPTY.get(name), rows.schema.field(name).type)
        columns[name] = pc.if_else(taken, blank, columns[name])
    return pa.table([columns[name] for name in rows.column_names], rows.schema)


def drop_captions(rows: pa.Table, lost: Mapping[str, tuple[str, ...]]) -> pa.Table:
    """Return the rows of a shard without the captions that survivors lose: uid -> captions."""
    if not lost:
        return rows
    captions = [
        texts and [text for text in texts if text not in lost.get(uid, ())]
        for uid, texts in zip(rows["uid"].to_pylist(), rows["captions"].to_pylist(), strict=True)
    ]
    field = SHARD.field("captions")
    return rows.set_column(rows.schema.get_field_index("captions"), field, pa.array(captions, field.type))


def add_locations(rows: pa.Table, shard: str, locations: Mapping[str, tuple[int, int]]) -> pa.Table:
    """Return rows with the columns of `LOCATION`; `locations` are the offset and size of each image by its uid."""
    found = [locations.get(uid) for uid in rows["uid"].to_pylist()]
    columns = {
        "shard": pa.array([at and shard for at in found], pa.string()),
        "offset": pa.array([at and at[0] for at in found], pa.int64()),
        "size": pa.array([at and at[1] for at in found], pa.int64()),
    }
    for field in LOCATION:
        rows = rows.set_column(rows.schema.get_field_index(field.name), field, columns[field.name])
    return rows


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
    columns |= {field.name: pa.nulls(fetched.num_rows, field.type) for field in LOCATION}
    known = dict(zip(fetched.column_names, fetched.columns, strict=True)) | columns
    schema = SHARD.append(SCORE) if SCORE.name in known else SHARD
    return pa.table([known[name] for name in schema.names], schema)


def _write_tar(part: Part, kept: pa.Table, output: UnitOutput) -> dict[str, tuple[int, int]]:
    """Write the samples; return the offset and size of each image by its uid."""
    wanted = {row["uid"]: row for row in kept.drop_columns(LOCATION.names).to_pylist()}
    locations = {}
    with (
        output.workspace.open_checked(part.tar, part.sha256[part.tar]) as source,
        tarfile.open(fileobj=cast(BinaryIO, source), mode="r|") as fetched,
        output.create(f"{part.stem}.tar") as out,
        TarWriter(cast(BinaryIO, out)) as tar,
    ):
        for member in fetched:
            row = wanted.pop(member.name.partition(".")[0], None)
            if row is not None:
                image = fetched.extractfile(member)
                assert image is not None
                suffix = member.name.partition(".")[2]
                locations[row["uid"]] = _add_sample(tar, row, image.read(), suffix)
        source.check()
        if wanted:
            raise ValueError(f"{part.tar}: {len(wanted)} images are missing, the first is {min(wanted)}")
    return locations


def _add_sample(tar: TarWriter, row: dict[str, Any], image: bytes, suffix: str) -> tuple[int, int]:
    """Write one sample; return the offset and size of its image.

    Its json has the row, and further captions each under a key of its own too: open_clip reads texts, no lists. All
    samples have the same keys, all texts, as `datasets` needs them.
    """
    uid = row["uid"]
    further = dict(zip_longest(FURTHER_CAPTIONS, row["captions"][1 : 1 + len(FURTHER_CAPTIONS)], fillvalue=""))
    offset = tar.add(f"{uid}.{suffix}", image)
    tar.add(f"{uid}.txt", row["caption"].encode())
    tar.add(f"{uid}.json", orjson.dumps(row | {"pdq": row["pdq"].hex()} | further, option=orjson.OPT_SORT_KEYS))
    return offset, len(image)


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
