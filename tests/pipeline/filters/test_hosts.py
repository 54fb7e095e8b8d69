"""Rules on hosts, against a comparison label by label; the mistakes that they refuse."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.filters.hosts import HostEntryError, HostRules, host_of, host_reasons, registered_domain

LABELS = st.lists(st.sampled_from(["a", "b", "example", "org"]), min_size=2, max_size=5).map(".".join)
ENTRIES = st.builds(lambda star, name: f"*.{name}" if star or name in ("org", "b.org") else name, st.booleans(), LABELS)


def is_below(host: str, rule: str) -> bool:
    at_too, name = not rule.startswith("*."), rule.removeprefix("*.").split(".")
    labels = host.split(".")
    return labels[-len(name) :] == name and (at_too or len(labels) > len(name))


@given(st.lists(ENTRIES, max_size=4), LABELS)
def test_a_rule_is_about_what_ends_like_it(entries: list[str], host: str) -> None:
    assert HostRules.parse(entries).matches(host) == any(is_below(host, entry) for entry in entries)


def test_entries_are_read_as_people_write_them() -> None:
    rules = HostRules.parse(["# ours", "", "Example.ORG", "*.co.uk", "bücher.example", " cdn.example.net "])
    assert rules.at_and_below == {"example.org", "xn--bcher-kva.example", "cdn.example.net"}
    assert rules.below == {"co.uk"}
    assert not HostRules.parse([])


@pytest.mark.parametrize("entry", ["com", "co.uk", "github.io"])
def test_a_bare_public_suffix_is_a_slip(entry: str) -> None:
    with pytest.raises(HostEntryError, match=rf"'{entry}' is a public suffix: write \*\.{entry}"):
        HostRules.parse([entry])


@pytest.mark.parametrize("entry", ["https://example.org/", "example.org/a", "two words", "*", "a@example.org"])
def test_what_is_not_a_host_is_named(entry: str) -> None:
    with pytest.raises(HostEntryError, match="is not a host"):
        HostRules.parse([entry])


def test_hosts_of_normalised_urls() -> None:
    urls = {
        "https://a.example.org/x.jpg": "a.example.org",
        "http://example.org:8080/x@y": "example.org",
        "http://example.org?x": "example.org",
        "http://[2001:db8::1]/x.jpg": "2001:db8::1",
        "": "",
    }
    assert {url: host_of(url) for url in urls} == urls
    assert registered_domain("a.b.example.co.uk") == "example.co.uk"
    assert registered_domain("me.github.io") == "me.github.io"
    assert registered_domain("192.0.2.1") == "192.0.2.1"


def test_the_image_must_be_allowed_and_neither_image_nor_page_blocked() -> None:
    urls = pa.array(["http://a.example/1", "http://b.example/1", "http://a.example/2"])
    pages = pa.array(["", "http://a.example/", "http://x.bad.example/"])
    allow, block = HostRules.parse(["a.example"]), HostRules.parse(["bad.example"])
    not_allowed, blocked = host_reasons(urls, pages, allow, block)
    assert not_allowed.tolist() == [False, True, False]
    assert blocked.tolist() == [False, False, True]
    assert not any(map(any, host_reasons(urls, pages, HostRules(), HostRules())))
