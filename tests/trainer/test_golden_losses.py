"""The numbers of training: a change that should not change them shows the same losses."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from support.golden_losses import PATH, RUNS, losses

# Other processors and builds of torch sum in another order: 20 steps of Adam turn 1e-7 into some 1e-5 of the loss.
TOLERANCE = 2e-4


@pytest.mark.parametrize("name", RUNS)
def test_the_loss_curve_is_the_committed_one(tmp_path: Path, name: str):
    expected = json.loads(PATH.read_text())[name]
    found = losses(tmp_path, **RUNS[name])
    assert len(found) == 20
    assert found == pytest.approx(expected, rel=TOLERANCE), "if the change is intended: `make golden`"


def test_the_curves_can_tell_runs_apart():
    """The tolerance is far below what the smallest change of a recipe does."""
    curves = json.loads(PATH.read_text())
    assert set(curves) == set(RUNS)
    for curve in curves.values():
        steps = [abs(a - b) / a for a, b in pairwise(curve)]
        assert max(steps) > 50 * TOLERANCE
