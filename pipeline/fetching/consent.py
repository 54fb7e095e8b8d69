"""Consent while fetching: convert the statements read by `pipeline/consent/` to failures and the record of a URL."""

import asyncio
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from pipeline.config.fetch import ConsentConfig, FetchConfig
from pipeline.consent.ai_crawlers import product_tokens
from pipeline.consent.block_lists import BlockLists
from pipeline.consent.bot_walls import PAYMENT_REQUIRED, challenge_in_headers, challenge_in_page, price_in_headers
from pipeline.consent.policy import Signal, Statement, refusing
from pipeline.consent.response_headers import statements_of_headers
from pipeline.consent.rsl import licence_links
from pipeline.fetching.addresses import Target
from pipeline.fetching.client import Client, Headers, Response
from pipeline.fetching.opt_out import refusal, wanted_directives
from pipeline.fetching.outcome import Checked, FetchFailure, Outcome
from pipeline.fetching.responses import check_status, is_redirect
from pipeline.fetching.robots_file import RobotRules
from pipeline.fetching.site_terms import Licences, asks_for_more, fetch_licence, fetch_terms
from pipeline.records import Reason

NOT_HEEDED = " [not heeded]"
"""Appended to a refusal in `consent_said` if its signal was switched off."""

_WALL_STATUSES = frozenset({401, 403, 405, 406, 429, 503})  # beside 200, whose body is read in any case
_MAX_PAGE_BYTES = 1 << 16
_MAX_PAUSE_S = 30.0  # between robots.txt and the document it refers to, regardless of the Crawl-delay
_REASONS = {Signal.ALSO_OBEY: Reason.ROBOTS_DISALLOWED}


@dataclass(slots=True)
class ConsentRecord:
    """The checks made for one URL, including redirects, and the statements found."""

    checked: dict[str, None] = field(default_factory=dict)
    said: dict[str, None] = field(default_factory=dict)
    times: Checked = field(default_factory=Checked)

    def heed(
        self, where: str, statements: "list[Statement]", config: ConsentConfig, *, http_status: int | None = None
    ) -> None:
        """Record the statements found at `where` (lists, robots, headers or image), also of signals that are switched
        off.

        Raises:
            FetchFailure: one of the statements refuses.
        """
        self.checked[where] = None
        if not statements:
            return
        heeded = [statement for statement in statements if config.reads(statement.signal)]
        for statement in statements:
            is_passed_over = statement.refuses and statement not in heeded
            self.said[f"{statement}{NOT_HEEDED if is_passed_over else ''}"] = None
        refusal = refusing(heeded)
        if refusal is not None:
            reason = _REASONS.get(refusal.signal, Reason.OPTED_OUT)
            raise FetchFailure(reason, str(refusal), http_status=http_status, refused_by=refusal.signal)

    def add_to(self, outcome: Outcome) -> Outcome:
        """Return an outcome with this record."""
        said = "; ".join(self.said) or None
        return replace(outcome, consent_checked=" ".join(self.checked) or None, consent_said=said)


class ConsentGate:
    """The checks that every URL must pass: block lists, robots.txt and its document, headers and their licences."""

    def __init__(self, config: FetchConfig, client: Client, block_lists: BlockLists) -> None:
        self._config = config
        self._client = client
        self.block_lists = block_lists
        self._directives = wanted_directives(product_tokens([config.agent, *config.also_obey]))
        self._licences: Licences = {}

    def check_lists(self, record: ConsentRecord, target: Target) -> None:
        """Return if a URL is on no block list. Raises: FetchFailure: it is on one."""
        if self.block_lists:
            listed = self.block_lists.of_url(target.url, target.host)
            record.heed("lists", [] if listed is None else [listed], self._config.consent)

    async def follow(self, origin: str, rules: RobotRules, pause_s: float) -> RobotRules:
        """Return the rules of a robots.txt with the terms of the document that it may refer to."""
        if not asks_for_more(rules.usage, self._config.consent):
            return rules
        await asyncio.sleep(max(pause_s, min(rules.crawl_delay_s, _MAX_PAUSE_S)))
        return replace(rules, terms=await fetch_terms(self._client, origin, rules.usage, self._config, self._licences))

    def check_rules(self, record: ConsentRecord, rules: RobotRules, url: str) -> None:
        """Return if robots.txt, and the document it refers to, allow to request and use a URL. Raises: FetchFailure:
        they do not.
        """
        if (fetched := rules.fetched) is not None:
            record.times = Checked(fetched.at, fetched.at, fetched.status, fetched.sha256)
        record.checked["robots"] = None
        rules.check(url)
        record.heed("robots", rules.statements(url), self._config.consent)

    def wants_body(self, record: ConsentRecord, is_recorded: bool, status: int, headers: Headers) -> bool:
        """Return whether a response carries an image, False for a redirect. `is_recorded`: it is from an archive.

        Raises:
            FetchFailure: it carries neither, or forbids the use.
        """
        now = datetime.now(UTC)
        record.times = replace(record.times, at=recorded_at(headers) if is_recorded else now)
        check_wall(status, headers, self._config.consent)
        if not is_recorded and self._config.consent.bot_walls and may_be_wall(status, headers):
            return True  # `check_error_page` tells
        if not is_redirect(status):
            check_status(status, headers, now)
        self.check_headers(record, status, headers, now)
        return not is_redirect(status)

    def check_headers(self, record: ConsentRecord, status: int, headers: Headers, now: datetime) -> None:
        """Return if the headers of a response allow to use its content.

        Raises:
            FetchFailure: they do not.
        """
        statements = list(statements_of_headers(headers))
        directive = refusal(headers.getall("X-Robots-Tag", ()), self._directives, now)
        if directive is not None:
            statements.append(Statement(Signal.X_ROBOTS_TAG, directive, refuses=True))
        record.heed("headers", statements, self._config.consent, http_status=status)

    async def check_licence(self, record: ConsentRecord, url: str, response: Response) -> None:
        """Return if the machine-readable licence of a response, if any, allows to use its content. Raises:
        FetchFailure: it does not.
        """
        links = licence_links(response.headers.getall("Link", ()), url) if self._config.consent.rsl else []
        if not links:
            return
        terms = await fetch_licence(self._client, links[0], url, self._config, self._licences)
        try:
            record.heed("headers", list(terms.statements(url)), self._config.consent, http_status=response.status)
        except FetchFailure:
            if response.body is not None:
                response.body.close()
            raise


def check_wall(status: int, headers: Headers, config: ConsentConfig) -> None:
    """Return if a response is neither a challenge nor a demand for payment. Raises: FetchFailure: it is."""
    challenge = challenge_in_headers(headers) if config.bot_walls else None
    if challenge is not None:
        raise _wall(challenge, status)
    if status == PAYMENT_REQUIRED:
        message = price_in_headers(headers)
        raise FetchFailure(Reason.PAYMENT_REQUIRED, message, http_status=status, refused_by=Signal.PAYMENT_REQUIRED)


def check_page(body: bytes, status: int, config: ConsentConfig) -> None:
    """Return if the body of a response that should not be HTML is not a challenge page. Raises: FetchFailure: it is."""
    found = challenge_in_page(body) if config.bot_walls else None
    if found is not None:
        raise _wall(f"the page holds {found!r}", status)


def may_be_wall(status: int, headers: Headers) -> bool:
    """Return whether a response is an error with a small page, which must be read to detect a challenge."""
    size = headers.get("Content-Length", "")
    is_page = headers.get("Content-Type", "").strip().lower().startswith(("text/html", "application/xhtml"))
    return status in _WALL_STATUSES and is_page and size.isdecimal() and int(size[:9]) <= _MAX_PAGE_BYTES


def check_error_page(response: Response, config: ConsentConfig) -> None:
    """Return if a response is not an error. Raises: FetchFailure: it is one, or its page is a challenge."""
    if response.status not in _WALL_STATUSES:
        return
    if response.body is not None:
        with response.body as body:
            check_page(body.read(), response.status, config)
    check_status(response.status, response.headers, datetime.now(UTC))


def recorded_at(headers: Headers) -> datetime | None:
    """Return the Date of a recorded response."""
    try:
        moment = parsedate_to_datetime(headers.get("Date", ""))
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _wall(what: str, status: int) -> FetchFailure:
    return FetchFailure(Reason.BOT_WALL, f"challenge: {what[:100]}", http_status=status, refused_by=Signal.BOT_WALL)
