"""`wit takedown --shards`: pairs leave a set of shards that somebody received, without its workspace.

Only shards that lose something are written again: the tar, then the statistics, then the table, each whole. Their names
are kept in the folder until the manifest, written last, agrees: a run that is killed is completed by the next one. The
captions that a pair gave away as a duplicate cannot be traced without the workspace, and stay.
"""

import json
import tarfile
from collections.abc import Iterable, Mapping
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.consent.policy import Signal
from pipeline.engine.progress import Progress
from pipeline.engine.units import UnitOutput
from pipeline.engine.workspace import FileFacts, Workspace
from pipeline.errors import UserError
from pipeline.records import LISTED, LOCATION, Reason
from pipeline.shards.manifest import Manifest, read_manifest
from pipeline.shards.tar import TarWriter
from pipeline.stages.listed import find_listed
from pipeline.stages.shards import add_locations, drop_listed, shard_stats
from pipeline.stages.takedown import Request, now, write_audit_line

AUDIT_LOG = "takedowns.jsonl"
_PENDING = "takedown.pending"
_LOOKED_AT = ["uid", "url", "sha256", "pdq", "status"]


def take_from_shards(folder: str, request: Request, progress: Progress) -> tuple[int, int, int]:
    """Take pairs out of a folder of shards; return how many left, of how many shards, and how many shards there are.

    Raises:
        UserError: there is no manifest, or it cannot be read.
    """
    workspace = Workspace(folder)
    try:
        manifest = read_manifest(folder)
    except FileNotFoundError:
        raise UserError(f"{folder}: not a set of shards: manifest.json is missing") from None
    stems = [shard.path.rsplit("/", 1)[1].removesuffix(".tar") for shard in manifest.shards]
    pending = workspace.read_json(_PENDING) if workspace.exists(_PENDING) else []
    touched = sorted({*pending, *(stem for stem in stems if _find(workspace, stem, request).num_rows)})
    if not touched:
        return 0, 0, len(stems)
    workspace.write_json(_PENDING, touched)
    facts: dict[str, FileFacts] = {}
    samples: dict[str, int] = {}
    for stem in touched:
        samples[f"{stem}.tar"] = _rewrite(workspace, stem, request, facts)
        progress.say(f"{stem}.tar: {samples[f'{stem}.tar']:,} samples")
    left = _write_manifest(workspace, manifest, facts, samples)
    line = {"at": now(), "request": request.id, "entries": dict(request.counts), "pairs": left, "shards": len(touched)}
    write_audit_line(workspace, AUDIT_LOG, line)
    workspace.remove([_PENDING])
    workspace.remove_folder(".wit")
    return left, len(touched), len(stems)


def count_listed(folder: str, stems: Iterable[str], request: Request) -> dict[str, int]:
    """Return the shards that would lose samples, and how many each."""
    workspace = Workspace(folder)
    counts = {stem: pc.sum(_find(workspace, stem, request)["kept"]).as_py() for stem in stems}
    return {stem: count for stem, count in counts.items() if count}


def _find(workspace: Workspace, stem: str, request: Request) -> pa.Table:
    """Return the rows of LISTED of one shard."""
    rows = workspace.read_table(f"{stem}.parquet", _LOOKED_AT)
    rows = rows.filter(pc.not_equal(rows["url"], ""))  # of pairs that were taken down before, it is
    listed = find_listed(rows, [(Signal.TAKEDOWN, request.block_lists)])
    status = rows["status"].take(pc.index_in(listed["uid"], rows["uid"]))
    listed = listed.append_column("kept", pc.equal(status, "success"))
    return listed.append_column("selected_by", pa.nulls(listed.num_rows, LISTED.field("selected_by").type)).cast(LISTED)


def _rewrite(workspace: Workspace, stem: str, request: Request, facts: dict[str, FileFacts]) -> int:
    """Write a shard again without what is listed; return how many samples are left."""
    rows = workspace.read_table(f"{stem}.parquet")
    listed = _find(workspace, stem, request)
    rows = drop_listed(rows, listed)
    kept = set(rows.filter(pc.equal(rows["status"], "success"))["uid"].to_pylist())
    output = UnitOutput(workspace)
    locations = {}
    with (
        workspace.open(f"{stem}.tar") as source,
        tarfile.open(fileobj=source, mode="r|") as before,
        output.create(f"{stem}.tar") as out,
        TarWriter(cast(BinaryIO, out)) as tar,
    ):
        for member in before:
            uid, _, kind = member.name.partition(".")
            if uid in kept:
                content = before.extractfile(member)
                assert content is not None
                offset = tar.add(member.name, content.read())
                if kind not in ("txt", "json"):
                    locations[uid] = offset, member.size
    if set(LOCATION.names) <= set(rows.column_names):
        rows = add_locations(rows, f"{stem}.tar", locations)
    output.write_json(f"{stem}_stats.json", shard_stats(rows))
    output.write_table(f"{stem}.parquet", rows)
    facts.update(output.files)
    return len(kept)


def _write_manifest(
    workspace: Workspace, manifest: Manifest, facts: Mapping[str, FileFacts], samples: Mapping[str, int]
) -> int:
    """Write sizes.json, then manifest.json, with other files and counts; return how many pairs left."""
    content = json.loads(json.dumps(manifest.content))
    content["files"] |= {name: {"bytes": f.bytes, "sha256": f.sha256} for name, f in facts.items()}
    for shard in content["shards"]:
        shard["samples"] = samples.get(shard["tar"], shard["samples"])
    content["samples"] = sum(shard["samples"] for shard in content["shards"])
    left = int(manifest.samples - content["samples"])
    for stage in content["account"][-1:]:
        stage["kept"] -= left
        reasons = stage["reasons"]
        reasons[str(Reason.OPTED_OUT)] = reasons.get(str(Reason.OPTED_OUT), 0) + left
    workspace.write_json("sizes.json", {shard["tar"]: shard["samples"] for shard in content["shards"]})
    workspace.write_json("manifest.json", content)
    return left
