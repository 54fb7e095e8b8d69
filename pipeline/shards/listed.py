"""Which pairs of a finished set have left it since it was balanced: what block lists and takedowns name."""

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine.units import read_markers
from pipeline.engine.workspace import Workspace
from pipeline.records import LISTED

STEP = "listed"


def read_listed(workspace: Workspace) -> pa.Table:
    """Return the rows of `LISTED` of all parts."""
    names = [name for marker in read_markers(workspace, STEP).values() for name in sorted(marker.outputs)]
    return pa.concat_tables([LISTED.empty_table(), *(workspace.read_table(name) for name in names)])


def left_since(workspace: Workspace) -> pa.Table:
    """Return the rows of `LISTED` of the pairs that were kept, and are in the tars no more."""
    listed = read_listed(workspace)
    return listed.filter(listed["kept"])


def without(overlap: pa.Table, left: pa.Table) -> pa.Table:
    """Return the rows of an overlap table; those of pairs that have left the set are not `kept`."""
    kept = pc.and_(overlap["kept"], pc.invert(pc.is_in(overlap["uid"], left["uid"].combine_chunks())))
    return overlap.set_column(overlap.schema.get_field_index("kept"), overlap.schema.field("kept"), kept)
