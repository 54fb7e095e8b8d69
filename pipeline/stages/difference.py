"""`wit diff A B`: which pairs came and went between two sets, and why.

Compared uid by uid, some uids at a time, so that memory stays bounded: both sets are read once for each range of uids.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine.workspace import Workspace
from pipeline.errors import UserError
from pipeline.shards.manifest import Manifest, read_manifest

_SAMPLES_AT_ONCE = 5_000_000
_EXAMPLES = 3
_COLUMNS = ["uid", "url", "status", "reason"]

NOT_PLANNED = "not_planned"
"""Why a pair is not in a set that has no row of it: no source had it, or no query selected it."""


@dataclass
class Difference:
    """Samples of both sets, and those of one only: counted by why the other lacks them, with example URLs."""

    first: int = 0
    second: int = 0
    both: int = 0
    came: Counter[str] = field(default_factory=Counter)
    went: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    recipe: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return all fields, for a JSON file."""
        return vars(self) | {"came": dict(self.came.most_common()), "went": dict(self.went.most_common())}

    def note(self, way: str, reason: str, urls: list[str]) -> None:
        known = self.examples.setdefault(f"{way}: {reason}", [])
        known.extend(urls[: max(0, _EXAMPLES - len(known))])


def compare_sets(first: str, second: str) -> Difference:
    """Compare two folders of shards, paths or fsspec URLs.

    Raises:
        UserError: one has no manifest.
    """
    before, after = _open(first), _open(second)
    found = Difference(recipe=_recipe_difference(before[1], after[1]))
    ranges = max(1, math.ceil(max(before[1].samples, after[1].samples) / _SAMPLES_AT_ONCE))
    for number in range(ranges):
        old, new = (_rows(*opened, number, ranges) for opened in (before, after))
        _compare(old, new, found)
    return found


def _open(folder: str) -> tuple[Workspace, Manifest]:
    try:
        return Workspace(folder), read_manifest(folder)
    except FileNotFoundError:
        raise UserError(f"{folder}: not a finished set of shards: manifest.json is missing") from None


def _recipe_difference(before: Manifest, after: Manifest) -> dict[str, tuple[Any, Any]]:
    """Return the keys of the recipes that differ, with both values."""
    old, new = (dict(_flat(manifest.content.get("recipe", {}))) for manifest in (before, after))
    keys = sorted(old.keys() | new.keys())
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else name)
    else:
        yield key, value


def _rows(workspace: Workspace, manifest: Manifest, number: int, ranges: int) -> pa.Table:
    """Return the rows whose uid is in one of some ranges of equal width."""
    low, high = (f"{(256 * i + ranges - 1) // ranges:02x}" for i in (number, number + 1))
    tables = []
    for shard in manifest.shards:
        rows = workspace.read_table(f"{shard.path.rsplit('/', 1)[1][:-4]}.parquet", _COLUMNS)
        if ranges > 1:
            wanted = pc.greater_equal(rows["uid"], low)
            if number + 1 < ranges:
                wanted = pc.and_(wanted, pc.less(rows["uid"], high))
            rows = rows.filter(wanted)
        tables.append(rows)
    return pa.concat_tables(tables) if tables else pa.table({name: pa.array([], pa.string()) for name in _COLUMNS})


def _compare(old: pa.Table, new: pa.Table, found: Difference) -> None:
    kept = [rows.filter(pc.equal(rows["status"], "success")) for rows in (old, new)]
    found.first += kept[0].num_rows
    found.second += kept[1].num_rows
    for way, mine, other_rows, other_kept, counter in (
        ("came", kept[1], old, kept[0], found.came),
        ("went", kept[0], new, kept[1], found.went),
    ):
        only = mine.filter(pc.invert(pc.is_in(mine["uid"], other_kept["uid"].combine_chunks())))
        at = pc.index_in(only["uid"], other_rows["uid"].combine_chunks())
        reasons = pc.fill_null(other_rows["reason"].take(at), NOT_PLANNED)
        for row in pc.value_counts(reasons).to_pylist():
            counter[row["values"]] += row["counts"]
            urls = only["url"].filter(pc.equal(reasons, row["values"])).slice(0, _EXAMPLES).to_pylist()
            found.note(way, row["values"], urls)
        if way == "went":
            found.both += mine.num_rows - only.num_rows
