"""The one rule for conflicts, as a table, and its laws."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.consent.policy import Signal, Statement, combine, refuses_use, refusing, shorten

S = Signal

# What robots.txt, headers and the image say (signal, refuses), and which signal decides.
CONFLICTS: list[tuple[list[tuple[Signal, bool]], Signal | None]] = [
    ([], None),
    ([(S.CONTENT_USAGE, False)], None),
    ([(S.CONTENT_USAGE, False), (S.CONTENT_USAGE, True)], S.CONTENT_USAGE),
    ([(S.CONTENT_SIGNAL, False), (S.CONTENT_USAGE, True)], S.CONTENT_USAGE),
    ([(S.CONTENT_SIGNAL, True), (S.CONTENT_USAGE, False)], S.CONTENT_SIGNAL),
    ([(S.TDM_RESERVATION, False), (S.PLUS_DATA_MINING, True)], S.PLUS_DATA_MINING),
    ([(S.TDM_RESERVATION, True), (S.PLUS_DATA_MINING, False)], S.TDM_RESERVATION),
    ([(S.RSL, False), (S.ALSO_OBEY, True)], S.ALSO_OBEY),
    ([(S.C2PA, False), (S.X_ROBOTS_TAG, True), (S.RSL, True)], S.X_ROBOTS_TAG),
    ([(S.BLOCK_LIST, True), (S.RSL, False), (S.CONTENT_USAGE, False)], S.BLOCK_LIST),
]


@pytest.mark.parametrize(("said", "decides"), CONFLICTS)
def test_the_most_restrictive_statement_wins(said: list[tuple[Signal, bool]], decides: Signal | None) -> None:
    refusal = refusing(Statement(signal, "", refuses) for signal, refuses in said)
    assert (None if refusal is None else refusal.signal) == decides


@given(st.lists(st.tuples(st.sampled_from(Signal), st.booleans())))
def test_no_order_and_no_allowance_outweighs_a_refusal(said: list[tuple[Signal, bool]]) -> None:
    statements = [Statement(signal, "", refuses) for signal, refuses in said]
    is_refused = any(refuses for _, refuses in said)
    assert (refusing(statements) is not None) == (refusing(statements[::-1]) is not None) == is_refused


@pytest.mark.parametrize(
    ("preferences", "is_refused"),
    [
        ({}, False),
        ({"train-ai": True}, False),
        ({"train-ai": False}, True),
        ({"train-ai": True, "search": False}, False),
        ({"train-ai": False, "search": True}, True),
        ({"search": False}, True),
        ({"search": True}, False),
        ({"ai-input": False}, True),
        ({"search": True, "ai-input": False}, True),
    ],
)
def test_training_decides_and_where_nothing_is_said_of_it_any_no(
    preferences: dict[str, bool], is_refused: bool
) -> None:
    assert refuses_use(preferences) == is_refused


PREFERENCES = st.dictionaries(st.sampled_from(["train-ai", "search", "ai-input"]), st.booleans())


@given(st.lists(PREFERENCES))
def test_combining_keeps_every_no_and_invents_nothing(stated: list[dict[str, bool]]) -> None:
    joined = combine(stated)
    assert joined.keys() == set().union(*stated)
    for use, is_allowed in joined.items():
        assert is_allowed == all(preferences.get(use, True) for preferences in stated)


def test_text_of_strangers_is_one_short_line() -> None:
    assert shorten("a\r\nb\x1b[31m" + "x" * 1000).startswith("a b [31mx")
    assert len(shorten("x" * 1000)) == 200
