"""Find out whether the headers of a response forbid using its image.

    X-Robots-Tag: noai, max-image-preview:large          refused
    X-Robots-Tag: GPTBot: noai                           refused, by default: a crawler of `fetch.also_obey`
    X-Robots-Tag: otherbot: noindex, noai                not ours: directives after an agent's name are for that agent
    X-Robots-Tag: unavailable_after: 25 Jun 2020 15:00:00 GMT     refused from that time on

Refused: `noai` `noimageai` `noml` (no machine learning), `noindex` `noimageindex` (a dataset is an index of images),
`none` (short for noindex, nofollow) and `unavailable_after` in the past. Not refused: `nofollow` `noarchive` `nocache`
`nosnippet` `notranslate` `indexifembedded` `max-*`: they are about links, cached copies and previews on result pages.
"""

from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache

from pipeline.web.robots_directives import Wanted, find_directive, has_date

_USUAL_CHARS = 500

REFUSALS = frozenset({"noai", "noimageai", "noml", "noindex", "noimageindex", "none"})


def wanted_directives(agents: frozenset[str]) -> Wanted:
    """Return the directives that refuse, addressed to everyone or to one of `agents`, product tokens in lower case."""
    return Wanted(REFUSALS, REFUSALS, agents)


def refusal(x_robots_tags: Iterable[str], wanted: Wanted, now: datetime) -> str | None:
    """Return the directive of X-Robots-Tag that forbids using a response with these headers, or None.

    One string per header line; directives for other agents are skipped.
    """
    lines = tuple(x_robots_tags)
    if not lines:
        return None
    if sum(map(len, lines)) > _USUAL_CHARS or any(map(has_date, lines)):
        return find_directive(lines, wanted, now)
    return _refusal_again(lines, wanted)


@lru_cache(1_024)  # a host sends the same header with all its images
def _refusal_again(lines: tuple[str, ...], wanted: Wanted) -> str | None:
    return find_directive(lines, wanted)
