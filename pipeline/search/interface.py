"""What a search API is to the pipeline: it makes the request for a page of results, and reads the response.

A package may add its own: an entry point in the group `wit_pipeline.search` with the name for `search.api`, whose
value is called with the base URL (None: the own one of the API) and returns a `SearchApi`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Protocol

from pipeline.errors import ConfigError

ENTRY_POINTS = "wit_pipeline.search"
Continuation = dict[str, str]
"""Parameters of the next page, as the API gave them; {} for the first page."""


@dataclass(frozen=True)
class Found:
    """One image as an API describes it; what it does not say is ""."""

    url: str
    title: str
    description: str = ""
    page_url: str = ""
    license: str = ""
    license_url: str = ""
    creator: str = ""
    attribution: str = ""


@dataclass(frozen=True)
class Page:
    """Some results, and how to ask for the next; None after the last."""

    results: list[Found]
    following: Continuation | None


class ThrottledError(Exception):
    """A response that is not one, but says to come back later."""


class SearchApi(Protocol):
    """One search API."""

    url: str
    """Where pages of results are requested (GET)."""

    def parameters(self, query: str, continuation: Continuation, wanted: int) -> dict[str, str]:
        """Return the parameters of a request for a page, with up to `wanted` results."""

    def read(self, content: Any, continuation: Continuation) -> Page:
        """Return the results in a response, parsed from JSON; `continuation` is that of its request.

        Raises:
            ThrottledError: the API is busy. ValueError, KeyError, TypeError, AttributeError: it is not such a response.
        """

    def token_request(self) -> tuple[str, Mapping[str, str]] | None:
        """Return where to ask for an access token (POST) and the form to send, None if none is needed.

        Raises:
            ConfigError: there are no credentials.
        """


def open_api(name: str, base_url: str | None) -> SearchApi:
    """Return the API of a name.

    Raises:
        ConfigError: there is none.
    """
    from pipeline.search.commons import Commons
    from pipeline.search.openverse import Openverse

    if name == "wikimedia-commons":
        return Commons(base_url)
    if name == "openverse":
        return Openverse(base_url)
    found = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in found:
        known = ", ".join(["wikimedia-commons", "openverse", *sorted(found)])
        raise ConfigError(f"search.api = {name!r}: no such API; there are {known}")
    api: SearchApi = found[name].load()(base_url)
    return api
