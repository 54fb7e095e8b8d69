"""report/training.html: the curves are those of the metrics file, whatever a run has left in it."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engine.workspace import Workspace
from pipeline.stages.training_page import METRICS, Curve, read_curves, write_training_page

VALUES = st.floats(-1e6, 1e6)
CURVES = st.dictionaries(st.sampled_from(["train/loss", "val/loss", "val/objects"]),
                         st.dictionaries(st.integers(0, 1_000_000), VALUES, min_size=1, max_size=40))  # fmt: skip


def lines_of(curves: dict[str, dict[int, float]]) -> list[bytes]:
    return [json.dumps({"step": s, name: v}).encode() for name, curve in curves.items() for s, v in curve.items()]


@given(CURVES)
def test_every_value_is_in_its_curve_once(curves: dict[str, dict[int, float]]) -> None:
    found = read_curves(lines_of(curves))
    assert {curve.name: dict(curve.points) for curve in found} == curves
    for curve in found:
        steps = [step for step, _ in curve.points]
        assert steps == sorted(set(steps))
        assert (curve.low, curve.high) == (min(curves[curve.name].values()), max(curves[curve.name].values()))


@pytest.mark.parametrize("count", [1, 2, 399, 400, 401, 12_345])
def test_a_line_stays_within_its_chart_and_ends_with_the_last_value(count: int) -> None:
    """The largest value is at the top, y = 0; a curve that is flat is drawn too."""
    rising = Curve("a", tuple((10 * n, float(n)) for n in range(1, count + 1)))
    points = [tuple(map(float, point.split(","))) for point in rising.line(10 * count).split()]
    assert min(2, count) <= len(points) <= 402
    assert points[-1] == (400.0, 0.0)
    assert all(0 <= x <= 400 and 0 <= y <= 120 for x, y in points)
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    flat = Curve("b", tuple((n, 0.5) for n in range(count)))
    assert {point.split(",")[1] for point in flat.line(count).split()} == {"0.0"}


def test_lines_of_any_other_form_are_passed_over() -> None:
    good = b'{"step": 4, "train/loss": 2.5, "train/samples_per_s": 9.0, "val/objects": 0.5}'
    others = [b"", b"[1]", b"null", b"{", b'{"train/loss": 1.0}', b'{"step": "4", "train/loss": 1.0}', b"\xff",
              b'{"step": -1, "train/loss": 1.0}', b'{"step": 5, "train/loss": NaN}', b'{"step": 5, "val/x": "high"}',
              b'{"step": true, "train/loss": 1.0}', b'{"step": 5, "val/x": null}', good[:30], b"[" * 100_000,
              b'{"step": 5, "train/loss": 1' + b"0" * 400 + b"}", b'{"step": 5, "val/x": -1e999}']  # fmt: skip
    found = read_curves([*others, good, *others])
    assert {curve.name: curve.points for curve in found} == {"train/loss": ((4, 2.5),), "val/objects": ((4, 0.5),)}


def test_the_page_names_the_curves_and_runs_nothing(tmp_path) -> None:
    workspace = Workspace(str(tmp_path))
    assert write_training_page(workspace) is None
    (tmp_path / METRICS).parent.mkdir()
    (tmp_path / METRICS).write_bytes(b"{}\n")
    assert write_training_page(workspace) is None
    curves = {"train/loss": {10: 4.0, 20: 3.0}, "val/<script>alert(1)</script>": {20: 0.25}}
    (tmp_path / METRICS).write_bytes(b"\n".join(lines_of(curves)))
    page = write_training_page(workspace)
    assert page is not None
    assert re.findall(r"<h3>(.*?)</h3>", page) == ["train/loss", "val/&lt;script&gt;alert(1)&lt;/script&gt;"]
    assert "<script" not in page
    assert 'last, step 20</td><td class="number">3<' in page
    ends = [line.split()[-1].partition(",")[0] for line in re.findall(r'<polyline points="(.*?)"', page)]
    assert ends == ["400.0", "400.0"]


def test_a_curve_that_ends_early_ends_early_in_its_chart(tmp_path) -> None:
    (tmp_path / METRICS).parent.mkdir()
    (tmp_path / METRICS).write_bytes(b"\n".join(lines_of({"train/loss": {10: 4.0, 30: 3.0}, "val/loss": {40: 2.0}})))
    page = write_training_page(Workspace(str(tmp_path)))
    assert page is not None
    lines = [line.split()[-1].partition(",")[0] for line in re.findall(r'<polyline points="(.*?)"', page)]
    assert lines == ["300.0", "400.0"]
