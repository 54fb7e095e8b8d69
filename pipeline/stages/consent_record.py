"""`wit why`: the outcome and the consent record of one pair or URL."""

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow.compute as pc

from pipeline.engine.workspace import Workspace
from pipeline.errors import UserError

_COLUMNS = [
    "uid",
    "url",
    "page_url",
    "caption",
    "status",
    "reason",
    "error_message",
    "http_status",
    "refused_by",
    "consent_checked",
    "consent_said",
    "rights",
    "creator",
    "license_url",
]


def find_records(workspace: Workspace, wanted: str) -> Iterator[dict[str, Any]]:
    """Yield a dictionary for each pair with this uid or URL: its columns, then those of the ledger.

    Reads shards/, or fetched/ if the set is not finished, one part at a time.

    Raises:
        UserError: nothing has been fetched yet.
    """
    tables = _tables(workspace, "shards", "shards/") or _tables(workspace, "fetched", "fetched/part-")
    if not tables:
        raise UserError(f"{workspace.root}: nothing has been fetched yet; run `wit build` first")
    column = "url" if "/" in wanted else "uid"
    for name, number in tables.items():
        rows = workspace.read_table(name, _COLUMNS)
        found = rows.filter(pc.equal(rows[column], wanted)).to_pylist()
        ledger = _ledger(workspace, number, {row["url"] for row in found})
        for row in found:
            yield row | ledger.get(row["url"], {})


def _tables(workspace: Workspace, folder: str, prefix: str) -> dict[str, str]:
    """Return table -> the number of its part."""
    names = sorted(name for name in workspace.sizes(folder) if name.endswith(".parquet"))
    return {name: name.removeprefix(prefix).removesuffix(".parquet") for name in names}


def _ledger(workspace: Workspace, number: str, urls: set[str]) -> Mapping[str, dict[str, Any]]:
    name = f"consent/part-{number}.parquet"
    if not urls or not workspace.exists(name):
        return {}
    rows = workspace.read_table(name).to_pylist()
    return {row["url"]: {key: row[key] for key in row if key != "url"} for row in rows if row["url"] in urls}
