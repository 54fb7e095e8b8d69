"""consent/: when each URL's consent was looked for, and when it had its outcome.

The marker of a file has its checksum, and nothing that a later stage depends on.
"""

import re
from collections.abc import Collection, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine.units import Marker, UnitOutput, marker_name
from pipeline.engine.workspace import Workspace
from pipeline.records import LEDGER


def keep_ledger(
    workspace: Workspace, name: str, plan: pa.Table | None, ledger: pa.Table, *, earlier: Sequence[str] = ()
) -> None:
    """Write the ledger of a part; for planned URLs (None: all URLs) not requested now it keeps the rows of before.

    They are in the file that it replaces, else in those of `earlier`.
    """
    rows = ledger
    for older in (name, *earlier):
        if workspace.exists(older):
            before = _read_ledger(workspace, older)
            if plan is not None:
                before = before.filter(pc.is_in(before["url"], plan["url"]))
            rows = pa.concat_tables([rows, before.filter(pc.invert(pc.is_in(before["url"], rows["url"])))])
    rows = rows.sort_by("url")
    unit = name.removeprefix("consent/").removesuffix(".parquet")
    workspace.remove([marker_name("consent", unit)])  # a run killed before the new one leaves a file without a checksum
    output = UnitOutput(workspace)
    output.write_table(name, rows)
    Marker("", output.files, {"inputs": rows.num_rows, "kept": rows.num_rows}).write(workspace, "consent", unit)


def drop_ledgers(workspace: Workspace, parts: Collection[str]) -> None:
    """Remove the ledgers of parts that the plan does not have: of an earlier plan with more parts."""
    found = {match[1] for name in workspace.sizes("consent") if (match := _LEDGER.fullmatch(name))}
    for part in sorted(found - set(parts)):
        workspace.remove([f"consent/{part}.parquet"])
        workspace.remove([marker_name("consent", part)])


_LEDGER = re.compile(r"consent/(part-[0-9]+)\.parquet")


def _read_ledger(workspace: Workspace, name: str) -> pa.Table:
    """Read a ledger; those of earlier versions have fewer columns."""
    table = workspace.read_table(name)
    for field_of in LEDGER:
        if field_of.name not in table.column_names:
            table = table.append_column(field_of, pa.nulls(table.num_rows, field_of.type))
    return table.select(LEDGER.names).cast(LEDGER)
