"""Path patterns of robots.txt, against a regular expression that says the same."""

import re
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.consent.path_patterns import PathPattern, path_of


@pytest.mark.parametrize(
    ("pattern", "url", "matches"),
    [
        ("/", "http://e.com", True),
        ("/fish", "http://e.com/fish.jpg", True),
        ("/fish", "http://e.com/Fish.jpg", False),
        ("/fish*", "http://e.com/fishheads/yummy.png", True),
        ("/*.php$", "http://e.com/a/b.php", True),
        ("/*.php$", "http://e.com/a.php?x", False),
        ("/*.php", "http://e.com/a.php?x", True),
        ("/this/*/exactly$", "http://e.com/this/path/exactly", True),
        ("/a$", "http://e.com/a", True),
        ("/a$", "http://e.com/ab", False),
        ("/a*a$", "http://e.com/a", False),
        ("/path/foo-%24", "http://e.com/path/foo-%24", True),
        ("/%7Eme", "http://e.com/~me/a.jpg", True),
        ("/~me", "http://e.com/%7eme/a.jpg", True),
        ("/caf\u00e9", "http://e.com/caf%C3%A9.jpg", True),
        ("/a%2fb", "http://e.com/a%2Fb", True),
        ("/a%2fb", "http://e.com/a/b", False),
        ("/a?b=", "http://e.com/a?b=1", True),
        ("", "http://e.com/anything", True),
    ],
)
def test_what_matches(pattern: str, url: str, matches: bool) -> None:
    assert PathPattern.parse(pattern).matches(path_of(url)) == matches


@given(st.text("ab/?#:@%&=.", max_size=12))
def test_the_path_is_that_of_the_url_parser(rest: str) -> None:
    for url in (f"https://e.com/{rest}", f"http://e.com:80?{rest}", f"http://[::1]/a#{rest}"):
        parts = urlsplit(url)
        assert path_of(url) == path_of(
            "http://e.com" + (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        )
        assert path_of(url).startswith("/")


SMALL = st.text("ab/*$", max_size=8)


@given(SMALL, st.text("ab/", max_size=12))
def test_matching_is_that_of_the_regular_expression(pattern: str, path: str) -> None:
    body = pattern.removesuffix("$")
    expression = ".*".join(re.escape(piece) for piece in body.split("*")) + ("$" if pattern.endswith("$") else "")
    assert PathPattern.parse(pattern).matches(path) == (re.match(expression, path) is not None)


def test_many_stars_take_no_time() -> None:
    assert not PathPattern.parse("/" + "*a" * 200 + "b$").matches("/" + "a" * 20_000)
