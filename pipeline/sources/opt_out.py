"""Find out whether a page opts its images out.

    <meta name="robots" content="noai, noimageai">      refused; also for our own agent's name, or as http-equiv
    X-Robots-Tag: noai in the response with the page <meta name="tdm-reservation" content="1">, TDM-Reservation: 1
    refused (W3C TDM Reservation Protocol)

Refused: `noai` `noimageai` `noml`, and `noimageindex`, which is about the images of a page. `noindex` and `none` are
about the page itself, as a search result, and refuse nothing here (they do in a response that is an image).
"""

from collections.abc import Iterable
from typing import NamedTuple

from pipeline.web.robots_directives import find_directive

_REFUSALS = frozenset({"noai", "noimageai", "noml", "noimageindex"})


class Meta(NamedTuple):
    """A `meta` element: its name (or property, or http-equiv) and its content, as written."""

    name: str
    content: str


def is_opted_out(
    metas: Iterable[Meta], x_robots_tags: Iterable[str], tdm_reservations: Iterable[str], agent: str
) -> bool:
    """Return whether a page with these elements and headers (one string per line) forbids using its images. `agent` is
    our product token; directives for other agents are skipped.
    """
    lines, reservations = list(x_robots_tags), list(tdm_reservations)
    for meta in metas:
        name = meta.name.strip().lower()
        if name in ("robots", "x-robots-tag", agent.lower()):
            lines.append(meta.content)
        elif name == "tdm-reservation":
            reservations.append(meta.content)
    is_reserved = any(value.strip() == "1" for value in reservations)
    return is_reserved or find_directive(lines, _REFUSALS, agent=agent) is not None
