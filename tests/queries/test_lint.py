import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from queries.lint import REASONS, lint
from queries.normal_form import normalize

QUERIES = ["dog", "?!", "Dog", "x" * 101, "12", "3.5 1", "A", "the", "東", "C#", "", "hot dog", "é", "dog!", "🐶", "4k"]
CAPTIONS = [pa.array(["the dog", "The cat", None, "the"]), pa.array(["a hot dog"])]


def found(reason: str, **options: float) -> list[str]:
    return [QUERIES[row] for row in lint(pa.array(QUERIES), CAPTIONS, **options).rows[reason]]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("no_tokens", ["?!", ""]),
        ("duplicate", ["Dog", "dog!"]),
        ("too_long", ["x" * 101]),
        ("digits", ["12", "3.5 1"]),
        ("single", ["A", "é"]),
        ("too_common", ["the"]),
    ],
)
def test_what_is_wrong_is_found(reason: str, expected: list[str]) -> None:
    assert found(reason, max_fraction=0.5) == expected


def test_limits_can_be_set() -> None:
    assert found("too_long", max_chars=5) == ["x" * 101, "hot dog"]
    assert found("too_common", max_fraction=0.3) == ["dog", "Dog", "the", "dog!"]
    assert found("too_common", max_fraction=1.0) == []


def test_shares_are_those_of_all_captions_of_the_sample() -> None:
    fractions = lint(pa.array(QUERIES), CAPTIONS).fractions
    assert fractions is not None
    assert dict(zip(QUERIES, fractions, strict=True))["the"] == 3 / 5
    assert dict(zip(QUERIES, fractions, strict=True))["hot dog"] == 1 / 5
    assert lint(pa.array(QUERIES)).fractions is None
    assert len(lint(pa.array(QUERIES)).rows["too_common"]) == 0


def test_the_most_common_come_first_among_the_examples() -> None:
    findings = lint(pa.array(QUERIES), CAPTIONS, max_fraction=0.1)
    assert QUERIES[findings.examples("too_common", 1)[0]] == "the"


@given(st.lists(st.text(st.sampled_from("aB1 !é東"), max_size=4), max_size=10), st.sets(st.sampled_from(REASONS)))
def test_what_is_left_has_none_of_the_reasons(queries: list[str], keep: set[str]) -> None:
    findings = lint(pa.array(queries, pa.string()))
    dropped = findings.dropped(keep)
    left = [query for row, query in enumerate(queries) if row not in set(dropped)]
    again = lint(pa.array(left, pa.string()))
    assert all(len(rows) == 0 for reason, rows in again.rows.items() if reason not in keep)
    assert sorted(dropped) == sorted({row for reason in set(REASONS) - keep for row in findings.rows[reason]})
    if not keep:
        normal = [normalize(query) for query in left]
        assert len(set(normal)) == len(normal)
        assert "" not in normal
    assert dropped.dtype == np.int64
