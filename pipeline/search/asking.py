"""Asks one API, within a daily budget that no kill and no restart exceeds.

A request is entered in `searched/<api>/budget.json` before it is sent. What a query has found so far is one file,
written after each page, with how to go on: a query that is done is never asked again.
"""

import hashlib
import json
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import requests

from pipeline.engine.workspace import Workspace
from pipeline.errors import UserError
from pipeline.search.interface import Found, SearchApi, ThrottledError

_TIMEOUT_S = (20.0, 60.0)
_TRIES = 4  # of a page, in one run
_LONGEST_WAIT_S = 120.0  # the longest Retry-After before the search is left to another run
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError)


class SearchEndsError(Exception):
    """Nothing more can be asked now; the message says why, and when to go on."""


@dataclass
class Asker:
    """Asks `api`, whose files are in `searched/<name>/`; a request at least `interval_s` after the one before."""

    workspace: Workspace
    name: str
    api: SearchApi
    session: requests.Session
    daily_budget: int
    interval_s: float
    sleep: Callable[[float], object] = time.sleep
    now: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))
    _token: str | None = None
    _last_s: float = 0.0

    def file_of(self, query: str) -> str:
        """Return the name of the file of a query; the first folder groups them for the pairs stage."""
        digest = hashlib.blake2b(query.encode(), digest_size=16).hexdigest()
        return f"searched/{self.name}/{digest[:2]}/{digest}.json"

    def is_done(self, query: str) -> bool:
        """Return whether a query needs no request any more."""
        name = self.file_of(query)
        return self.workspace.exists(name) and self.workspace.read_json(name)["following"] is None

    def ask(self, query: str, wanted: int) -> bool:
        """Ask for up to `wanted` results, going on where an earlier run stopped; return whether the query is done.

        Raises:
            SearchEndsError: the budget is used up, or the API is not to be asked for now.
        """
        name = self.file_of(query)
        state: dict[str, Any] = {"query": query, "results": [], "following": {}}
        if self.workspace.exists(name):
            state = self.workspace.read_json(name)
        while state["following"] is not None:
            left = wanted - len(state["results"])
            content = self._page(query, state["following"], left)
            if content is None:
                return False
            results, following = content
            state["results"] += [asdict(one) for one in results[:left]]
            state["following"] = following if results and len(state["results"]) < wanted else None
            self.workspace.write_json(name, state)
        return True

    def _page(
        self, query: str, following: dict[str, str], left: int
    ) -> tuple[list[Found], dict[str, str] | None] | None:
        """Return the results of a page and how to go on; None where the API gives none that can be read."""
        parameters = self.api.parameters(query, following, left)
        for attempt in range(_TRIES):
            response = self._request("GET", self.api.url, params=parameters, headers=self._headers())
            wait_s = 2.0**attempt
            if response is not None and response.status_code == 401:
                self._token = None
            elif response is not None and response.status_code in (403, 404):
                raise SearchEndsError(f"HTTP status {response.status_code}: the API refuses our requests")
            elif response is not None and response.status_code in (429, 503):
                wait_s = max(wait_s, _retry_after_s(response))
            elif response is not None and response.status_code == 200:
                try:
                    page = self.api.read(response.json(), following)
                    return page.results, page.following
                except ThrottledError:
                    wait_s = max(wait_s, _retry_after_s(response))
                except _MALFORMED:
                    pass
            self._wait(wait_s)
        return None

    def _headers(self) -> dict[str, str]:
        if self._token is None and (asked := self.api.token_request()) is not None:
            url, form = asked
            response = self._request("POST", url, data=dict(form))
            try:
                if response is None or response.status_code != 200:
                    raise ValueError
                self._token = str(response.json()["access_token"])
            except _MALFORMED:
                raise UserError(f"search: {self.name} returned no access token: check the credentials") from None
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}

    def _wait(self, wait_s: float) -> None:
        if wait_s > _LONGEST_WAIT_S:
            self._enter(0, until=self.now().timestamp() + wait_s)
            raise SearchEndsError(f"the API requests a pause of {wait_s:,.0f} s; run again after it")
        self.sleep(wait_s * random.uniform(1.0, 1.1))

    def _request(self, method: str, url: str, **options: Any) -> requests.Response | None:
        """Send one request, once it is in the budget; None where there is no response.

        Raises:
            SearchEndsError: the budget is used up.
        """
        self._enter(1)
        if (rest_s := self._last_s + self.interval_s - time.monotonic()) > 0:
            self.sleep(rest_s)
        try:
            return self.session.request(method, url, timeout=_TIMEOUT_S, **options)
        except requests.RequestException:
            return None
        finally:
            self._last_s = time.monotonic()

    def _enter(self, requests_: int, until: float = 0.0) -> None:
        """Enter requests in the budget of the day (UTC), before they are sent.

        Raises:
            SearchEndsError: it is used up, or an earlier run was told to wait until later.
        """
        name, now = f"searched/{self.name}/budget.json", self.now()
        spent = self.workspace.read_json(name) if self.workspace.exists(name) else {}
        if spent.get("day") != f"{now:%Y-%m-%d}":
            spent = {"day": f"{now:%Y-%m-%d}", "requests": 0, "until": spent.get("until", 0.0)}
        if requests_ and now.timestamp() < spent["until"]:
            raise SearchEndsError(
                f"the API requested a pause, which lasts {spent['until'] - now.timestamp():,.0f} s more; "
                "run again after it"
            )
        if requests_ and spent["requests"] + requests_ > self.daily_budget:
            raise SearchEndsError(
                f"the daily budget of {self.daily_budget:,} requests is used up: run again tomorrow (UTC)"
            )
        spent["requests"] += requests_
        spent["until"] = max(spent["until"], until)
        self.workspace.write_json(name, spent)


def _retry_after_s(response: requests.Response) -> float:
    """Return how long Retry-After says to wait; 0 where it does not."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()) if text else 0.0
    except (ValueError, TypeError):
        return 0.0


def results_of(content: bytes) -> list[dict[str, str]]:
    """Return the results in the file of a query, each with the query."""
    state = json.loads(content)
    return [result | {"query": state["query"]} for result in state["results"]]
