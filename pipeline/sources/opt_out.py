"""Find out whether a page opts its images, and the texts about them, out.

    <meta name="robots" content="noai, noimageai">      refused; also as http-equiv
    <meta name="gptbot" content="noai">                 refused: our own name, or a crawler of `fetch.also_obey`
    X-Robots-Tag: noai, X-Robots-Tag: gptbot: noai      refused, in the response with the page
    <meta name="tdm-reservation" content="1">, TDM-Reservation: 1       refused (W3C TDM Reservation Protocol)
    Content-Usage: train-ai=n, Content-Signal: ai-train=no              refused: the texts are the page's

Refused: `noai` `noimageai` `noml`, and `noimageindex`, which is about the images of a page. To everyone, `noindex` and
`none` are about the page itself, as a search result, and refuse nothing here (they do in a response that is an image).
Addressed by name to us or to a crawler that gathers training data, which makes no search results, they refuse.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline.config.fetch import FetchConfig
from pipeline.consent.ai_crawlers import product_tokens
from pipeline.consent.content_signal import read_content_signal_header
from pipeline.consent.content_usage import read_content_usage_header
from pipeline.consent.policy import Signal, refuses_use
from pipeline.consent.tdm import tdm_statement
from pipeline.web.robots_directives import Wanted, find_directive

PAGE_SIGNALS = frozenset({Signal.X_ROBOTS_TAG, Signal.TDM_RESERVATION, Signal.CONTENT_USAGE, Signal.CONTENT_SIGNAL})
"""The signals of pages; meta elements for robots are X_ROBOTS_TAG."""

_FOR_EVERYONE = frozenset({"robots", "x-robots-tag"})
_REFUSALS = frozenset({"noai", "noimageai", "noml", "noimageindex"})
_REFUSALS_BY_NAME = _REFUSALS | {"noindex", "none"}


class Meta(NamedTuple):
    """A `meta` element: its name (or property, or http-equiv) and its content, as written."""

    name: str
    content: str


@dataclass(frozen=True)
class PagePolicy:
    """Which statements of pages opt their images out. `agent` is our product token, `also_obey` are other crawlers'
    tokens in lower case that bind us too, and `signals` those of PAGE_SIGNALS that are obeyed.
    """

    agent: str
    also_obey: frozenset[str]
    signals: frozenset[Signal] = PAGE_SIGNALS
    directives: Wanted = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        agents = self.also_obey | {self.agent.lower()}
        object.__setattr__(self, "directives", Wanted(_REFUSALS, _REFUSALS_BY_NAME, agents))

    @classmethod
    def of(cls, fetch: FetchConfig) -> "PagePolicy":
        consent = fetch.consent
        obeyed = frozenset(signal for signal in PAGE_SIGNALS if consent.pages and consent.reads(signal))
        return cls(fetch.agent, product_tokens(fetch.also_obey), obeyed)

    def facts(self) -> dict[str, list[str]]:
        """Return what decides about pages, apart from `agent`, as JSON."""
        return {"also_obey": sorted(self.also_obey), "signals": sorted(self.signals)}


USUAL_POLICY = PagePolicy.of(FetchConfig())


def is_opted_out(metas: Iterable[Meta], header_lines: Callable[[str], Sequence[str]], policy: PagePolicy) -> bool:
    """Return whether a page with these elements forbids using its images and their texts. `header_lines` returns the
    lines of a header of the page, by its name in lower case.
    """
    lines, reservations = [*header_lines("x-robots-tag")], [*header_lines("tdm-reservation")]
    for meta in metas:
        name = meta.name.strip().lower()
        if not _FOR_EVERYONE.isdisjoint(map(str.strip, name.split(","))):
            lines.append(meta.content)
        elif name in policy.directives.agents:
            lines.append(f"{name}: {meta.content}")
        elif name == "tdm-reservation":
            reservations.append(meta.content)
    reads = policy.signals.__contains__
    reserved = tdm_statement(reservations, (), "page") if reservations and reads(Signal.TDM_RESERVATION) else None
    usage = header_lines("content-usage") if reads(Signal.CONTENT_USAGE) else ()
    signals = header_lines("content-signal") if reads(Signal.CONTENT_SIGNAL) else ()
    return (
        (reserved is not None and reserved.refuses)
        or (bool(usage) and refuses_use(read_content_usage_header(usage)))
        or (bool(signals) and refuses_use(read_content_signal_header(signals)))
        or (reads(Signal.X_ROBOTS_TAG) and find_directive(lines, policy.directives) is not None)
    )
