"""report/training.html: the curves of a training run on this set, from the trainer's `train/metrics.jsonl`."""

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.engine.workspace import Workspace
from pipeline.pages import render_page

METRICS = "train/metrics.jsonl"
"""Where a run writes that has no other `train.output`."""
_WIDTH, _HEIGHT = 400, 120
_MOST_POINTS = 400
_GROUPS = ("train/loss", "val/")
"""The curves that are shown, by the beginning of their names: what the run learns, not how fast."""


@dataclass(frozen=True)
class Curve:
    """The values of a metric by step, in the order of the steps."""

    name: str
    points: tuple[tuple[int, float], ...]

    @property
    def low(self) -> float:
        return min(value for _, value in self.points)

    @property
    def high(self) -> float:
        return max(value for _, value in self.points)

    def line(self, steps: int) -> str:
        """Return the points of an SVG polyline as wide as `steps`; of a long run, evenly chosen ones with the last."""
        stride = -(-len(self.points) // _MOST_POINTS)
        chosen = [*self.points[:-1:stride], self.points[-1]]
        span = (self.high - self.low) or 1.0
        return " ".join(
            f"{_WIDTH * step / max(1, steps):.1f},{_HEIGHT * (self.high - value) / span:.1f}" for step, value in chosen
        )


def read_curves(lines: Iterable[bytes]) -> list[Curve]:
    """Return the curves of a metrics file, by name; lines and values of any other form are passed over."""
    found: dict[str, dict[int, float]] = {}
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # a run that was killed can leave half a line
            continue
        if not isinstance(row, dict) or type(row.get("step")) is not int or row["step"] < 0:
            continue
        for name, value in row.items():
            if name.startswith(_GROUPS) and isinstance(value, int | float) and abs(value) <= sys.float_info.max:
                found.setdefault(name, {})[row["step"]] = float(value)
    return [Curve(name, tuple(sorted(values.items()))) for name, values in sorted(found.items())]


def write_training_page(workspace: Workspace) -> str | None:
    """Return the page; None if no run has written curves."""
    if not workspace.exists(METRICS):
        return None
    curves = read_curves(workspace.read_bytes(METRICS).splitlines())
    if not curves:
        return None
    steps = max(curve.points[-1][0] for curve in curves)
    return render_page("training.html.j2", curves=curves, steps=steps, width=_WIDTH, height=_HEIGHT)
