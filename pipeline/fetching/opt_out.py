"""Whether the headers of a response forbid using its image.

    X-Robots-Tag: noai, max-image-preview:large          refused
    X-Robots-Tag: otherbot: noindex, noai                not ours: what follows an agent's name is for that agent
    X-Robots-Tag: unavailable_after: 25 Jun 2020 15:00:00 GMT     refused from that time on
    TDM-Reservation: 1                                   refused (W3C TDM Reservation Protocol)

Refused: `noai` `noimageai` `noml` (no machine learning), `noindex` `noimageindex` (a dataset is an index of images),
`none` (short for noindex, nofollow) and `unavailable_after` in the past. Not refused: `nofollow` `noarchive` `nocache`
`nosnippet` `notranslate` `indexifembedded` `max-*`: they speak of links, cached copies and previews on result pages.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

REFUSALS = frozenset({"noai", "noimageai", "noml", "noindex", "noimageindex", "none"})

_WITH_VALUE = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
_EVERYONE = frozenset({"*", ""})


def refusal(x_robots_tags: Iterable[str], tdm_reservations: Iterable[str], *, agent: str, now: datetime) -> str | None:
    """Return the directive that forbids using a response with these headers, or None.

    One string per header line. `agent` is our product token; directives for other agents are skipped.
    """
    for line in x_robots_tags:
        if (directive := _refusal_in_line(line, agent.lower(), now)) is not None:
            return f"X-Robots-Tag: {directive}"
    if any(value.strip() == "1" for value in tdm_reservations):
        return "TDM-Reservation: 1"
    return None


def _refusal_in_line(line: str, agent: str, now: datetime) -> str | None:
    parts = [part.strip() for part in line.split(",")]
    is_ours = True
    for position, part in enumerate(parts):
        name, value = _named(part)
        if value is not None and name not in _WITH_VALUE and " " not in name:
            is_ours = name == agent or name in _EVERYONE
            name, value = _named(value)
        if not is_ours:
            continue
        if name in REFUSALS and value is None:
            return name
        if name == "unavailable_after" and _is_past([value or "", *parts[position + 1 :]], now):
            return name
    return None


def _named(part: str) -> tuple[str, str | None]:
    name, colon, value = part.partition(":")
    return name.strip().lower(), value.strip() if colon else None


def _is_past(parts: list[str], now: datetime) -> bool:
    """Return whether `parts` begin with a date before `now`; it may itself hold a comma ("Sat, 30 Aug 2025 ...")."""
    moment = _moment(parts[0]) or _moment(", ".join(parts[:2]))
    return moment is not None and moment <= now


def _moment(text: str) -> datetime | None:
    """Read a date in RFC 822, RFC 850 or ISO 8601 form; None where it is none of them. Without a zone it is UTC."""
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            moment = parse(text)
        except (ValueError, IndexError, TypeError, OverflowError):
            continue
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return None
