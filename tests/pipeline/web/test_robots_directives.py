"""Reading directives for robots."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from pipeline.web.robots_directives import find_directive

WORDS = st.sampled_from(["noai", "nofollow", "otherbot", "us", "max-snippet", "unavailable_after", "2010-01-01", "x y"])
MARKS = st.sampled_from([",", ":", ";", " ", ", ", ": "])


@given(st.lists(WORDS | MARKS | st.text(max_size=4), max_size=12).map("".join))
def test_any_line_has_an_answer_that_adding_noai_makes_a_refusal(line: str):
    now = datetime(2024, 1, 1, tzinfo=UTC)
    found = find_directive([line], ["noai"], agent="us", now=now)
    assert found in (None, "noai", "unavailable_after")
    assert find_directive([line, "noai"], ["noai"], agent="us", now=now) in ("noai", "unavailable_after")


def test_the_directive_found_is_one_wanted():
    assert find_directive(["noindex, noai"], ["noai"], agent="us") == "noai"
    assert find_directive(["noindex"], ["noai"], agent="us") is None
    assert find_directive(["us: noindex"], ["noindex"], agent="US") == "noindex"
    assert find_directive(["unavailable_after: 2010-01-01"], ["noai"], agent="us") is None  # no time was given
