"""Which headers mean that an image must not be used."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.consent.ai_crawlers import preset_tokens, product_tokens
from pipeline.fetching.opt_out import refusal, wanted_directives
from pipeline.web.robots_directives import find_directive

NOW = datetime(2024, 6, 1, 12, tzinfo=UTC)

OURS = wanted_directives(frozenset({"wit-pipeline"}))
ALL = wanted_directives(product_tokens(["wit-pipeline", "ai-crawlers"]))

REFUSED = [
    ["noai"],
    ["NoAI"],
    ["noimageai"],
    ["noindex"],
    ["noimageindex"],
    ["none"],
    ["noml"],
    [" nofollow ,  noindex "],
    ["noai, max-image-preview:large"],
    ["max-image-preview:large, noai"],
    ["max-snippet:-1, max-image-preview:large, max-video-preview:-1, noimageai"],
    ["nofollow", "noai"],
    ["wit-pipeline: noindex"],
    ["WIT-Pipeline: nofollow, noindex"],
    ["*: noai"],
    ["otherbot: nofollow, wit-pipeline: noai"],
    ["otherbot: noindex", "noai"],
    ["unavailable_after: 25 Jun 2010 15:00:00 GMT"],
    ["unavailable_after: Fri, 25 Jun 2010 15:00:00 GMT"],
    ["unavailable_after: Saturday, 30-Aug-80 12:00:00 GMT"],
    ["unavailable_after: 2024-05-31"],
    ["unavailable_after: 2024-05-31T23:59:59+02:00"],
    ["nofollow, unavailable_after: 25 Jun 2010 15:00:00 PST, noarchive"],
    ["wit-pipeline: unavailable_after: 25 Jun 2010 15:00:00 GMT"],
    ["unavailable_after: Mon, 01 Jan 2035 00:00:00 GMT, noai"],
    # Written in ways nobody defined
    ["noai; noimageai"],
    ["nofollow noimageai"],
    ["all: noai"],
    ["robots: noai"],
    ["index: noai"],
    ["noai: true"],
    ["noai=1"],
    ["noindex, noai=true"],
    ["noai|noimageai"],
    ["noai | noimageai"],
    ["[noai]"],
    ["{noai, noimageai}"],
    ["noai."],
    ["max-snippet=5, noai"],
    ["noindex, otherbot: nofollow"],
    ["otherbot: noai", "googlebot: nofollow", "NOIMAGEAI"],
    ["otherbot: nofollow, *: noai"],
    ["caf\xe9, noai"],
    ["\xe9: noai"],  # not an agent's name
    ["noai\xa0"],
    ["\tnoai\t,\tnofollow"],
    [", ,noai,,"],
    ["noarchive,noai,noimageai,nosnippet"],
    ["no-ai, no_index"],
    ["'noai'"],
    ['"noai, nofollow"'],
    ["max-image-preview: large noai"],
    ["otherbot: nofollow; wit-pipeline/1.0: noai"],
    ["wit-pipeline : noai"],
    ["unavailable_after 25 Jun 2010 15:00:00 GMT"],
    ["a: b, " * 3_000 + "otherbot: noai"],  # nobody can tell for whom
]

ALLOWED = [
    [],
    [""],
    ["all"],
    ["nofollow"],
    ["noarchive, nosnippet, notranslate, nocache, indexifembedded"],
    ["max-image-preview:large"],
    ["max-image-preview: none"],
    ["otherbot: noindex"],
    ["otherbot: nofollow, noindex, noai"],
    ["otherbot: none", "nofollow"],
    ["googlebot: noai"],
    ["otherbot: noimageai, noindex"],
    ["googlebot: nofollow", "otherbot: noindex, nofollow"],
    ["otherbot: noindex, nofollow, googlebot: nofollow"],
    ["wit-pipeline: nofollow, otherbot: noai"],
    ["not-wit-pipeline: noai", "wit-pipeline-2: noai"],
    ["no\u0430i", "n\xf8ai"],
    ["unavailable_after: 25 Jun 2035 15:00:00 GMT"],
    ["unavailable_after: Mon, 01 Jan 2035 00:00:00 GMT"],
    ["unavailable_after: soon"],
    ["unavailable_after:"],
    ["noaim", "notnoindex"],
    ["otherbot: unavailable_after: 25 Jun 2010 15:00:00 GMT"],
    ["noai: false"],
    ["noai=0"],
    ["otherbot=noai"],
    ["otherbot: noai; noimageai"],
    ["otherbot : noai"],
    ["otherbot/2.0: noai"],
    ["max-image-preview: noai"],
    ["casinoai, noairports"],
    [":" * 100_000],
]


@pytest.mark.parametrize("lines", REFUSED, ids=str)
def test_directives_that_forbid_the_use(lines: list[str]) -> None:
    assert refusal(lines, OURS, NOW) is not None


@pytest.mark.parametrize("lines", ALLOWED, ids=str)
def test_directives_that_do_not(lines: list[str]) -> None:
    assert refusal(lines, OURS, NOW) is None


@pytest.mark.parametrize("lines", ALLOWED, ids=str)
def test_other_crawlers_of_the_preset_list_add_nothing_to_what_is_said_to_nobody_on_it(lines: list[str]) -> None:
    assert refusal(lines, ALL, NOW) is None


@pytest.mark.parametrize("directive", ["noai", "noimageai", "noml", "noindex", "noimageindex", "none"])
def test_what_is_said_to_a_crawler_of_the_list_is_said_to_us(directive: str) -> None:
    for token in preset_tokens():
        line = f"nofollow, {token}: noarchive, {directive}"
        assert refusal([line], ALL, NOW) == f"{directive} for {token.lower()}"
        assert refusal([line], OURS, NOW) is None


def test_a_date_for_a_crawler_of_the_list() -> None:
    assert refusal(["CCBot: unavailable_after: 2010-01-01"], ALL, NOW) == "unavailable_after for ccbot"
    assert refusal(["CCBot: unavailable_after: 2035-01-01"], ALL, NOW) is None


def test_the_directive_is_named() -> None:
    assert refusal(["nofollow, NOAI"], OURS, NOW) == "noai"


WORDS = st.sampled_from(
    ["noai", "NoIndex", "otherbot", "wit-pipeline", "unavailable_after", "un-available-after", "2010"]
)
MARKS = st.sampled_from([",", ": ", ";", " ", "-01-01", "\xa0"])
LINES = st.lists(st.lists(WORDS | MARKS | st.text(max_size=3), max_size=8).map("".join), max_size=3)


@given(LINES, st.sampled_from([NOW, NOW.replace(year=2009)]))
def test_what_was_read_before_is_read_the_same(lines: list[str], now: datetime) -> None:
    expected = find_directive(lines, OURS, now)
    for _ in range(2):
        assert refusal(lines, OURS, now) == expected
