"""Lists of hosts, as rules on the end of a name.

    example.org      the host and every host below it
    *.example.org    only those below it
    *.co.uk          everything below a public suffix; without "*." such an entry is refused, because it is a slip

The Public Suffix List comes with the package `publicsuffixlist`: nothing is downloaded.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
from publicsuffixlist import PublicSuffixList

from pipeline.web.urls import normalize_url


class HostEntryError(ValueError):
    """An entry that is not a host."""


@dataclass(frozen=True)
class HostRules:
    """Host names, of which those in `below` stand for what is below them only."""

    at_and_below: frozenset[str] = frozenset()
    below: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, entries: Iterable[str]) -> "HostRules":
        """Read entries; empty ones and those that begin with # are skipped.

        Raises:
            HostEntryError: an entry is not a host, or a public suffix without "*.".
        """
        at_and_below, below = set[str](), set[str]()
        for entry in (line.strip() for line in entries):
            if not entry or entry.startswith("#"):
                continue
            name = _ascii_name(entry.removeprefix("*."))
            if name is None:
                raise HostEntryError(
                    f"{entry!r} is not a host: write example.org, or *.example.org for what is below it"
                )
            if entry.startswith("*."):
                below.add(name)
            elif is_public_suffix(name):
                raise HostEntryError(f"{entry!r} is a public suffix: write *.{entry} for every host below it")
            else:
                at_and_below.add(name)
        return cls(frozenset(at_and_below), frozenset(below))

    def __bool__(self) -> bool:
        return bool(self.at_and_below or self.below)

    def matches(self, host: str) -> bool:
        """Return whether a rule is about this host name."""
        if host in self.at_and_below:
            return True
        end = host.find(".")
        while end >= 0:
            parent = host[end + 1 :]
            if parent in self.at_and_below or parent in self.below:
                return True
            end = host.find(".", end + 1)
        return False

    def of_urls(self, urls: pa.StringArray) -> np.ndarray:
        """Return which normalised URLs have a host that a rule is about, (n,) bool."""
        known: dict[str, bool] = {}
        found = np.zeros(len(urls), bool)
        for row, url in enumerate(urls.to_pylist()):
            host = host_of(url)
            if host not in known:
                known[host] = self.matches(host)
            found[row] = known[host]
        return found


def host_of(url: str) -> str:
    """Return the host name of a normalised URL, "" where it has none."""
    authority = url.partition("://")[2].partition("/")[0]
    if authority.startswith("["):
        return urlsplit(url).hostname or ""
    return authority.rpartition("@")[2].partition(":")[0].partition("?")[0].rstrip(".")


def is_public_suffix(name: str) -> bool:
    """Return whether names are registered directly below this one: com, co.uk, github.io."""
    return bool(_suffixes().is_public(name))


def registered_domain(host: str) -> str:
    """Return the part of a host name that somebody registered: a.example.co.uk -> example.co.uk; else the host."""
    return _suffixes().privatesuffix(host) or host


def _ascii_name(entry: str) -> str | None:
    url = normalize_url(f"http://{entry}/") if entry and not set(entry) & set("/:@?# \t*") else None
    return url[len("http://") : -1] if url else None


@cache
def _suffixes() -> PublicSuffixList:
    return PublicSuffixList(accept_unknown=False)


def host_reasons(
    urls: pa.StringArray, page_urls: pa.StringArray, allow: HostRules, block: HostRules
) -> Sequence[np.ndarray]:
    """Return which pairs are not of an allowed host, and which have an image or a page on a blocked one, (n,) bool.

    Allowed is what `allow` says of the image's host; without such rules all hosts are.
    """
    not_allowed = ~allow.of_urls(urls) if allow else np.zeros(len(urls), bool)
    blocked = block.of_urls(urls) | block.of_urls(page_urls) if block else np.zeros(len(urls), bool)
    return not_allowed, blocked
