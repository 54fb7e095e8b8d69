"""Find out whether a page opts its images, and the texts about them, out.

    <meta name="robots" content="noai, noimageai">      refused; also for our own agent's name, or as http-equiv
    X-Robots-Tag: noai in the response with the page
    <meta name="tdm-reservation" content="1">, TDM-Reservation: 1       refused (W3C TDM Reservation Protocol)
    Content-Usage: train-ai=n, Content-Signal: ai-train=no              refused: the texts are the page's

Refused: `noai` `noimageai` `noml`, and `noimageindex`, which is about the images of a page. `noindex` and `none` are
about the page itself, as a search result, and refuse nothing here (they do in a response that is an image).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from pipeline.consent.content_signal import read_content_signal_header
from pipeline.consent.content_usage import read_content_usage_header
from pipeline.consent.policy import refuses_use
from pipeline.consent.tdm import tdm_statement
from pipeline.web.robots_directives import find_directive

_REFUSALS = frozenset({"noai", "noimageai", "noml", "noimageindex"})


class Meta(NamedTuple):
    """A `meta` element: its name (or property, or http-equiv) and its content, as written."""

    name: str
    content: str


def is_opted_out(metas: Iterable[Meta], header_lines: Callable[[str], Sequence[str]], agent: str) -> bool:
    """Return whether a page with these elements forbids using its images and their texts. `header_lines` returns the
    lines of a header of the page, by its name in lower case. `agent` is our product token; directives for other agents
    are skipped.
    """
    lines, reservations = [*header_lines("x-robots-tag")], [*header_lines("tdm-reservation")]
    for meta in metas:
        name = meta.name.strip().lower()
        if name in ("robots", "x-robots-tag", agent.lower()):
            lines.append(meta.content)
        elif name == "tdm-reservation":
            reservations.append(meta.content)
    reserved = tdm_statement(reservations, (), "page") if reservations else None
    usage, signals = header_lines("content-usage"), header_lines("content-signal")
    return (
        (reserved is not None and reserved.refuses)
        or (bool(usage) and refuses_use(read_content_usage_header(usage)))
        or (bool(signals) and refuses_use(read_content_signal_header(signals)))
        or find_directive(lines, _REFUSALS, agent=agent) is not None
    )
