"""`wit peek`: some of the kept pairs at random, to look at."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dedup.decode import decode_rgb
from dedup.eval_sets.index import thumbnail
from pipeline.engine.workspace import Workspace
from pipeline.errors import UserError
from pipeline.records import LOCATION

_COLUMNS = ["uid", "caption", "url", "language", "width", "height", "selected_by", *LOCATION.names]
_MAX_SHOWN_BYTES = 200_000  # of a JPEG; larger ones, and other formats, are shown as thumbnails
_THUMBNAIL_PX = 256


def peek(workspace: Workspace, count: int, seed: int, queries: Sequence[str]) -> tuple[list[dict[str, Any]], int]:
    """Return `count` random pairs of a finished set, with image and queries, and how many pairs there are.

    Every pair is as likely as any other; the same seed gives the same pairs.

    Raises:
        UserError: the build is not finished.
    """
    if not workspace.exists("shards/manifest.json"):
        raise UserError(f"{workspace.root}: no finished shards to look at; run `wit build` first")
    shards = workspace.read_json("shards/manifest.json")["shards"]
    sizes = np.array([shard["samples"] for shard in shards], np.int64)
    total = int(sizes.sum())
    chosen = np.random.default_rng(seed).permutation(total)[:count] if total else np.zeros(0, np.int64)
    ends = np.cumsum(sizes)
    found: dict[int, dict[str, Any]] = {}
    for number in sorted(set(np.searchsorted(ends, chosen, side="right").tolist())):
        stem = shards[number]["tar"].removesuffix(".tar")
        first = int(ends[number] - sizes[number])
        places = [int(place) for place in chosen if first <= place < ends[number]]
        rows = _rows(workspace, stem, [place - first for place in places])
        found |= dict(zip(places, rows, strict=True))
    pairs = [found[int(place)] for place in chosen]
    for pair in pairs:
        pair["queries"] = [queries[query] for query in pair["selected_by"]]
    return pairs, total


def _rows(workspace: Workspace, stem: str, places: list[int]) -> list[dict[str, Any]]:
    table = workspace.read_table(f"shards/{stem}.parquet")
    kept = table.filter(pc.equal(table["status"], "success"))
    columns = [*_COLUMNS, *(["score"] if "score" in kept.column_names else [])]
    rows = [{"score": None} | row for row in kept.select(columns).take(pa.array(places)).to_pylist()]
    ranges = [(f"shards/{row['shard']}", row["offset"], row["offset"] + row["size"]) for row in rows]
    for row, image in zip(rows, workspace.read_ranges(ranges), strict=True):
        is_shown = image.startswith(b"\xff\xd8") and len(image) <= _MAX_SHOWN_BYTES
        row["jpeg"] = image if is_shown else thumbnail(decode_rgb(image, min_side=_THUMBNAIL_PX), _THUMBNAIL_PX)
    return rows
