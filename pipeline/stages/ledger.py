"""consent/: when each URL's consent was looked for, and when it had its outcome.

The marker of a file has its checksum, and nothing that a later stage depends on.
"""

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine.units import Marker, UnitOutput, marker_name
from pipeline.engine.workspace import Workspace
from pipeline.records import LEDGER


def keep_ledger(workspace: Workspace, name: str, plan: pa.Table | None, ledger: pa.Table) -> None:
    """Write the ledger of a part; for planned URLs (None: all URLs) not requested now it keeps the earlier rows."""
    before = _read_ledger(workspace, name) if workspace.exists(name) else LEDGER.empty_table()
    if plan is not None:
        before = before.filter(pc.is_in(before["url"], plan["url"]))
    older = before.filter(pc.invert(pc.is_in(before["url"], ledger["url"])))
    rows = pa.concat_tables([ledger, older]).sort_by("url")
    unit = name.removeprefix("consent/").removesuffix(".parquet")
    workspace.remove([marker_name("consent", unit)])  # a run killed before the new one leaves a file without a checksum
    output = UnitOutput(workspace)
    output.write_table(name, rows)
    Marker("", output.files, {"inputs": rows.num_rows, "kept": rows.num_rows}).write(workspace, "consent", unit)


def _read_ledger(workspace: Workspace, name: str) -> pa.Table:
    """Read a ledger; those of earlier versions have fewer columns."""
    table = workspace.read_table(name)
    for field_of in LEDGER:
        if field_of.name not in table.column_names:
            table = table.append_column(field_of, pa.nulls(table.num_rows, field_of.type))
    return table.select(LEDGER.names).cast(LEDGER)
