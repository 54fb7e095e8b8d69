"""`wit gc`: files of a workspace that nothing owns any more, such as those that a killed or changed build left.

Only folders that builds write are looked at. What markers name is owned, and so are the records that have none:
consent/, answers of search APIs, results of evaluated models, forecasts, annotations. What a stopped build has fetched
and not used yet (.wit/earlier, .wit/journal, .wit/crawl, .wit/cuts) is listed and never removed: it would have to be
requested again.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.engine.units import read_all_markers, unit_of
from pipeline.engine.workspace import Workspace

FOLDERS = (
    "searched",
    "pairs",
    "plan",
    "dropped",
    "forecast",
    "fetched",
    "filtered",
    "scored",
    "evals",
    "control",
    "described",
    "lookup",
    "consent",
    "dedup",
    "shards",
    "measured",
    "report",
    "annotations",
    "index",
    ".wit",
)
"""The folders that builds write."""

FOLDERS_OF_USERS = ("allowlist",)
"""Folders of the layout that users fill as well, so that nothing in them is known to be garbage."""

_WITHOUT_MARKERS = re.compile(
    r"consent/(withdrawn\.txt|takedowns\.jsonl|takedown/(refilled/)?[a-z_]+\.txt)|evals/[^/]+/results/.*"
    r"|shards/takedowns\.jsonl|\.wit/.*\.json|\.wit/.*/markers\.packed|\.wit/(lock|run|merged)|\.wit/crawls/.*"
)
_WRITTEN_BY_US = re.compile(r".*\.(tar|parquet|rows|npy)|.*_stats\.json|\.wit/.*")
"""Files with other names in these folders are notes of users."""
_LEDGER = re.compile(r"consent/(part-[0-9]+)\.parquet")
_SEARCHED = re.compile(r"(searched/[^/]+/[^/]+)\.parquet")
_NEEDED_TO_RESUME = (".wit/crawl/", ".wit/cuts/", ".wit/earlier/", ".wit/journal/")
_SCRATCH_NAMES = re.compile(r"\.wit/[^/]+/.+\.(parquet|rows)")


@dataclass(frozen=True)
class Stray:
    """A file that nothing owns; `is_removable` if removing it loses nothing that was fetched."""

    name: str
    bytes: int
    is_removable: bool


def find_strays(workspace: Workspace) -> Iterator[Stray]:
    """Yield the files that nothing owns, by name."""
    markers = read_all_markers(workspace)
    owned = {file for marker in markers.values() for file in marker.outputs}
    unfinished = {name.split("/")[1] for name in markers}
    parts = {unit_of(file) for file in owned if file.startswith(("plan/", "fetched/"))}
    for folder in FOLDERS:
        sizes = workspace.sizes(folder)
        answers = {name.rpartition("/")[0] for name in sizes} if folder == "searched" else set()
        for name, size in sorted(sizes.items()):
            ledger, searched = _LEDGER.fullmatch(name), _SEARCHED.fullmatch(name)
            if name in owned or _WITHOUT_MARKERS.fullmatch(name) or (ledger and ledger[1] in parts):
                continue
            if (searched and searched[1] in answers) or not _WRITTEN_BY_US.fullmatch(name):
                continue
            scratch = _SCRATCH_NAMES.fullmatch(name)
            if scratch and name.split("/")[1] in unfinished and not name.startswith(_NEEDED_TO_RESUME):
                continue  # thresholds and the like, which a stage keeps while it is unfinished
            yield Stray(name, size, not name.startswith(_NEEDED_TO_RESUME))
