"""Openverse: openly licensed images of many providers (api.openverse.org/v1).

    {"page_count": 3, "page": 1, "results": [{"title", "url", "foreign_landing_url", "creator", "license",
                                              "license_version", "license_url", "attribution", ...}]}

Its terms forbid to copy the catalogue; who searches registers an application, and stays in its limits: at most 20 pages
a query. Credentials come from the environment, OPENVERSE_CLIENT_ID and OPENVERSE_CLIENT_SECRET.
"""

import os
from collections.abc import Mapping
from typing import Any

from pipeline.errors import ConfigError
from pipeline.search.interface import Continuation, Found, Page

_MOST_RESULTS = 50
_MOST_PAGES = 20
_CREDENTIALS = ("OPENVERSE_CLIENT_ID", "OPENVERSE_CLIENT_SECRET")


class Openverse:
    """The API of Openverse, or of an instance of it at `base_url`."""

    def __init__(self, base_url: str | None) -> None:
        self._base_url = base_url or "https://api.openverse.org"
        self.url = f"{self._base_url}/v1/images/"

    def parameters(self, query: str, continuation: Continuation, wanted: int) -> dict[str, str]:
        """See `SearchApi`."""
        quoted = query.replace('"', " ")
        size = continuation.get("page_size") or str(min(wanted, _MOST_RESULTS))
        return {"q": f'"{quoted}"', "page": "1", "page_size": size, **continuation}

    def read(self, content: Any, continuation: Continuation) -> Page:
        """See `SearchApi`."""
        results = [_found(item) for item in content["results"]]
        page, pages = int(continuation.get("page", "1")), min(int(content["page_count"]), _MOST_PAGES)
        size = str(int(content["page_size"]))
        return Page(results, {"page": str(page + 1), "page_size": size} if page < pages else None)

    def token_request(self) -> tuple[str, Mapping[str, str]] | None:
        """See `SearchApi`."""
        identity, secret = (os.environ.get(name) for name in _CREDENTIALS)
        if not identity or not secret:
            raise ConfigError(f"search: openverse needs the environment variables {' and '.join(_CREDENTIALS)}")
        form = {"grant_type": "client_credentials", "client_id": identity, "client_secret": secret}
        return f"{self._base_url}/v1/auth_tokens/token/", form


def _found(item: Any) -> Found:
    licence = " ".join(str(item[name]) for name in ("license", "license_version") if item.get(name))
    return Found(
        url=str(item["url"]),
        title=str(item.get("title") or ""),
        page_url=str(item.get("foreign_landing_url") or ""),
        license=licence,
        license_url=str(item.get("license_url") or ""),
        creator=str(item.get("creator") or ""),
        attribution=str(item.get("attribution") or ""),
    )
