"""fetched/ + dedup/ -> consent/listed/: the pairs that block lists and takedowns name, part by part.

A part of which they name nothing has no file, so that its shard stays as it is when a list changes. Where a listed pair
is a duplicate of one that stays, the survivor loses its caption.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.consent.block_lists import BlockLists
from pipeline.consent.policy import Signal
from pipeline.engine.run import Build, run_units
from pipeline.engine.units import Marker, Unit, UnitOutput, Work, digest, discard_stale
from pipeline.engine.workspace import Workspace
from pipeline.fetching.block_files import BlockFiles, contents_of, read_block_lists
from pipeline.paths import file_versions
from pipeline.records import LISTED
from pipeline.shards.listed import STEP

VERSION = 1
"""Raise it when the same lists would name other pairs."""


@dataclass(frozen=True)
class ListedPart:
    """One unit: a fetched part and the decisions about it, with their SHA-256."""

    name: str
    fetched_sha256: str
    decisions_sha256: str


@dataclass(frozen=True)
class Withdrawn:
    """What leaves one shard: the file of its listed pairs, if any, and the captions that survivors lose."""

    file: str | None = None
    sha256: str = ""
    captions: tuple[tuple[str, tuple[str, ...]], ...] = ()


def run_listed(
    build: Build, fetched: Mapping[str, Marker], decided: Marker, named: BlockFiles, taken: BlockFiles
) -> dict[str, Withdrawn]:
    """Look up every fetched pair in the block lists that the config names, and in what was taken down.

    Return what leaves each part; parts that lose nothing are left out.
    """
    if not any([*named.values(), *taken.values()]):
        discard_stale(build.workspace, STEP, [])
        return {}
    versions = {kind: list(map(file_versions, paths)) for kind, paths in named.items()}
    lists = digest(versions, contents_of(taken))
    units = []
    for name, marker in fetched.items():
        part = ListedPart(
            name,
            marker.outputs[f"fetched/{name}.parquet"].sha256,
            decided.outputs[f"dedup/decisions/{name}.parquet"].sha256,
        )
        units.append(Unit(name, digest(VERSION, part.fetched_sha256, part.decisions_sha256, lists), part))
    markers = run_units(build, STEP, units, _OpenLists(named, taken))
    captions = lost_captions(build.workspace, markers)
    found = {}
    for name, marker in markers.items():
        lost = captions.get(name, ())
        if marker.outputs or lost:
            file, facts = next(iter(marker.outputs.items()), (None, None))
            found[name] = Withdrawn(file, facts.sha256 if facts else "", lost)
    return found


@dataclass(frozen=True)
class _OpenLists:
    named: BlockFiles
    taken: BlockFiles

    def open(self) -> Work:
        return _FindListed(read_block_lists(self.named), read_block_lists(self.taken))


@dataclass(frozen=True)
class _FindListed:
    named: BlockLists
    taken: BlockLists

    def run(self, part: ListedPart, output: UnitOutput) -> Mapping[str, int]:
        fetched = output.workspace.read_table(
            f"fetched/{part.name}.parquet", ["uid", "url", "sha256", "pdq"], sha256=part.fetched_sha256
        )
        decisions = output.workspace.read_table(
            f"dedup/decisions/{part.name}.parquet", ["uid", "reason", "selected_by"], sha256=part.decisions_sha256
        )
        listed = find_listed(fetched, ((Signal.TAKEDOWN, self.taken), (Signal.BLOCK_LIST, self.named)))
        decided = decisions.take(pc.index_in(listed["uid"], decisions["uid"]))
        kept = pc.and_(pc.is_valid(decided["uid"]), pc.is_null(decided["reason"]))
        selected_by = pc.if_else(kept, decided["selected_by"], pa.scalar([], LISTED.field("selected_by").type))
        rows = listed.append_column("kept", kept).append_column("selected_by", selected_by).cast(LISTED)
        if rows.num_rows:
            output.write_table(f"consent/listed/{part.name}.parquet", rows)
        return {"inputs": fetched.num_rows, "kept": fetched.num_rows}


def find_listed(rows: pa.Table, lists: Iterable[tuple[Signal, BlockLists]]) -> pa.Table:
    """Return `uid` and `signal` of the rows that some lists name; the first list that does counts.

    `rows` has the columns uid, url, sha256 and pdq; the last two are null where there was no image.
    """
    used = [(signal, listed) for signal, listed in lists if listed]
    columns = (rows[name].to_pylist() for name in ("uid", "url", "sha256", "pdq"))
    found: dict[str, str] = {}
    for uid, url, sha256, pdq in zip(*columns, strict=True) if used else ():
        host = urlsplit(url).hostname or ""
        for signal, listed in used:
            if (
                listed.of_url(url, host)
                or listed.of_uid(uid)
                or (sha256 and pdq and listed.of_fingerprints(sha256, pdq))
            ):
                found[uid] = str(signal)
                break
    schema = pa.schema([LISTED.field("uid"), LISTED.field("signal")])
    return pa.table([list(found.keys()), list(found.values())], schema)


def lost_captions(
    workspace: Workspace, markers: Mapping[str, Marker]
) -> dict[str, tuple[tuple[str, tuple[str, ...]], ...]]:
    """Return part -> (survivor, the captions it loses), for duplicates that are listed of pairs that are not.

    A caption that the survivor or another of its duplicates has too stays.
    """
    names = [name for marker in markers.values() for name in marker.outputs]
    if not names:
        return {}
    listed = pa.concat_tables([workspace.read_table(name, ["uid"]) for name in names])["uid"].combine_chunks()
    copies = _copies_of_survivors(workspace, listed)
    if not copies.num_rows:
        return {}
    captions = _captions(workspace, list(markers), copies)
    is_listed = pc.is_in(copies["uid"], listed).to_pylist()
    part_of: dict[str, int] = {}
    lost: dict[str, set[str]] = {}
    stays: dict[str, set[str]] = {}
    for row, gone in zip(copies.to_pylist(), is_listed, strict=True):
        survivor = row["survivor"]
        part_of[survivor] = row["survivor_part"]
        stays.setdefault(survivor, {captions[survivor]})
        (lost if gone else stays).setdefault(survivor, set()).add(captions[row["uid"]])
    found: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    parts = list(markers)
    for survivor, texts in sorted(lost.items()):
        if gone_texts := tuple(sorted(texts - stays[survivor])):
            found.setdefault(parts[part_of[survivor]], []).append((survivor, gone_texts))
    return {part: tuple(rows) for part, rows in found.items()}


def _copies_of_survivors(workspace: Workspace, listed: pa.Array) -> pa.Table:
    """Return the rows of dedup/duplicates.parquet of all duplicates of survivors that have a listed one."""
    name, columns = "dedup/duplicates.parquet", ["uid", "survivor", "part", "survivor_part"]
    survivors = [
        batch.filter(pc.is_in(batch["uid"], listed))["survivor"]
        for batch in workspace.read_batches(name, ["uid", "survivor"])
    ]
    wanted = pa.chunked_array(survivors, pa.string())
    wanted = wanted.filter(pc.invert(pc.is_in(wanted, listed))).unique()
    if not len(wanted):
        return pa.table({column: [] for column in columns})
    found = [b.filter(pc.is_in(b["survivor"], wanted)) for b in workspace.read_batches(name, columns)]
    return pa.Table.from_batches(found).select(columns)


def _captions(workspace: Workspace, parts: list[str], copies: pa.Table) -> dict[str, str]:
    """Return uid -> caption of duplicates and their survivors."""
    wanted: dict[int, set[str]] = {}
    for row in copies.to_pylist():
        wanted.setdefault(row["part"], set()).add(row["uid"])
        wanted.setdefault(row["survivor_part"], set()).add(row["survivor"])
    found: dict[str, str] = {}
    for number, uids in sorted(wanted.items()):
        rows = workspace.read_table(f"fetched/{parts[number]}.parquet", ["uid", "caption"])
        rows = rows.filter(pc.is_in(rows["uid"], pa.array(sorted(uids))))
        found.update(zip(rows["uid"].to_pylist(), rows["caption"].to_pylist(), strict=True))
    return found
