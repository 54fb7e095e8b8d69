"""The account closes, or says where it does not."""

import json

from hypothesis import given
from hypothesis import strategies as st

from pipeline.account import Account, StageAccount
from pipeline.engine.units import Marker
from pipeline.records import Reason


@given(st.dictionaries(st.sampled_from(list(Reason)), st.integers(0, 50)), st.integers(0, 50), st.integers(-3, 3))
def test_a_stage_closes_exactly_when_everything_adds_up(reasons, kept, error):
    counts = {**reasons, "kept": kept, "inputs": kept + sum(reasons.values()) + error}
    assert bool(StageAccount.of("pairs", counts).problems()) == (error != 0)


def test_reasons_are_a_closed_list():
    stage = StageAccount.of("pairs", {"inputs": 2, "kept": 1, "bad_mood": 1})
    assert stage.problems() == ["pairs: unknown reason 'bad_mood'"]


def test_what_leaves_a_stage_enters_the_next():
    account = Account((StageAccount("pairs", 5, 3, {"no_match": 2}), StageAccount("plan", 2, 2, {})))
    (problem,) = account.problems()
    assert problem.startswith("plan: pairs kept 3 pairs, but 2 were read")
    assert account.up_to("pairs").problems() == []


def test_markers_survive_json():
    marker = Marker("d", {}, {"inputs": 1, "kept": 1})
    assert Marker.parse(json.dumps(marker.to_json()).encode()) == marker
