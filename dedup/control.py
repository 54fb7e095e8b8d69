"""The negative control: rendered images that no other set can contain, indexed like an evaluation set.

Any match with one of them is false, so their matches measure the false positive rate of a run.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from dedup.copies.control import control_image
from dedup.copies.detector import Detector
from dedup.eval_sets.index import EvalSummary, index_eval_set
from dedup.statistics import Proportion, contamination

CONTROL_IMAGES = 100
CONTROL_SET = "rendered"
"""The name under which the control is indexed."""

CONTROL = pa.schema([("eval_id", pa.string()), ("uids", pa.list_(pa.string()))])
"""One row for each rendered image: the images that match it, all of them falsely."""

_SEED = 0


@dataclass(frozen=True)
class Control:
    """How many of the rendered `pictures` matched any of the `images` that were compared with them."""

    pictures: int
    images: int
    matches: int

    @classmethod
    def of(cls, table: pa.Table, images: int) -> Self:
        """Count the rows of a `CONTROL` table."""
        matches = pc.sum(pc.greater(pc.list_value_length(table["uids"]), 0)).as_py() or 0
        return cls(table.num_rows, images, matches)

    @property
    def rate(self) -> Proportion:
        """The fraction of the rendered images with a match, the rate of false matches."""
        return contamination(self.matches, self.pictures)

    def to_json(self) -> dict[str, Any]:
        """Return it for overlap.json."""
        return vars(self) | {"rate": self.rate.value, "high": self.rate.high}


def index_control(count: int, out_dir: Path, detector: Detector | None) -> EvalSummary:
    """Render `count` images and index them into `out_dir/CONTROL_SET`."""
    with tempfile.TemporaryDirectory(prefix="wit-control-") as scratch:
        for number in range(count):
            Image.fromarray(control_image(number, _SEED)).save(Path(scratch) / f"{number:05d}.png", compress_level=0)
        return index_eval_set(CONTROL_SET, "folder", scratch, out_dir, detector=detector)


def control_table(eval_ids: pa.ChunkedArray, overlap: pa.Table) -> pa.Table:
    """Return the `CONTROL` table of a control with these ids, from its overlap rows."""
    uids: dict[str, list[str]] = {name: [] for name in eval_ids.to_pylist()}
    for name, uid in zip(overlap["eval_id"].to_pylist(), overlap["uid"].to_pylist(), strict=True):
        uids[name].append(uid)
    return pa.table([list(uids), [sorted(found) for found in uids.values()]], CONTROL)
