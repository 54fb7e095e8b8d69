"""Reading directives for robots."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.web.robots_directives import Wanted, find_directive

OURS = Wanted(frozenset({"noai"}), frozenset({"noai"}), frozenset({"us"}))
WORDS = st.sampled_from(["noai", "nofollow", "otherbot", "us", "max-snippet", "unavailable_after", "2010-01-01", "x y"])
MARKS = st.sampled_from([",", ":", ";", " ", ", ", ": "])


@given(st.lists(WORDS | MARKS | st.text(max_size=4), max_size=12).map("".join))
def test_any_line_has_an_answer_that_adding_noai_makes_a_refusal(line: str):
    now = datetime(2024, 1, 1, tzinfo=UTC)
    found = find_directive([line], OURS, now)
    said = ("noai", "unavailable_after")
    assert found in (None, *said, *(f"{word} for us" for word in said))
    assert find_directive([line, "noai"], OURS, now) in (found or "noai", "noai")


def test_the_directive_found_is_one_wanted():
    assert find_directive(["noindex, noai"], OURS) == "noai"
    assert find_directive(["noindex"], OURS) is None
    assert find_directive(["US: noai"], OURS) == "noai for us"
    assert find_directive(["unavailable_after: 2010-01-01"], OURS) is None  # no time was given


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("gptbot: noai", "noai for gptbot"),
        ("GPTBot/1.2: nofollow, NoAI", "noai for gptbot"),
        ("GPTBot* : noai", "noai for gptbot"),
        ("Kangaroo Bot: noai", "noai for kangaroo bot"),
        ("nofollow Kangaroo Bot/1.0: noai", "noai for kangaroo bot"),
        ("otherbot: noai, kangaroo bot: noai", "noai for kangaroo bot"),
        ("gptbot: noindex", "noindex for gptbot"),
        ("gptbot: nofollow, otherbot: noindex", None),
        ("gptbot: nofollow, *: noindex", None),
        ("bot: noai", None),
        ("wallaby-kangaroo bot: noai", None),
        ("gptbotanist: noai", None),
        ("gptbot: all", None),
        ("noindex: noai", "noai"),
    ],
)
def test_directives_addressed_by_name(line: str, found: str | None):
    by_name = Wanted(frozenset({"noai"}), frozenset({"noai", "noindex"}), frozenset({"gptbot", "kangaroo bot"}))
    assert find_directive([line], by_name) == found
