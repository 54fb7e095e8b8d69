"""Parse directives for robots in headers (`X-Robots-Tag`) and pages (`<meta name=robots>`).

    noai, max-image-preview:large                   for every agent
    otherbot: noindex, noai                         for that agent, as are those that follow, up to the next agent's
    name unavailable_after: 25 Jun 2020 15:00:00 GMT     from that time on

Undefined spellings occur too: `noai; noimageai`, `noai noimageai`, `all: noai`, `no-ai`, `noai: true`. Each is
interpreted in the more restrictive way.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_MAX_MARKS = 2_000
_MARK = re.compile("[,;:]")
_SEPARATOR = re.compile("[,;]")
_AGENT = re.compile(r"([a-z*_-][a-z0-9*_.-]*+)(?:/.*)?")  # a version may follow
_EVERYONE = frozenset({"*", "all", "any", "robots", "x-robots-tag"})
# Names before a colon that are not agents: the text after it is their value, or applies to the previous agent.
_WITH_VALUE = frozenset({"maxsnippet", "maximagepreview", "maxvideopreview"})
_WITHOUT_VALUE = frozenset({"index", "follow", "nofollow", "noarchive", "nosnippet", "nocache", "notranslate"})
_DENIALS = frozenset({"0", "false", "no", "off"})


def find_directive(
    lines: Iterable[str], wanted: Collection[str], *, agent: str, now: datetime | None = None
) -> str | None:
    """Return the first of the `wanted` directives for everyone or for `agent` in any line, or None.

    One string per header line or meta element. `agent` is a product token. `unavailable_after` counts as wanted if its
    date is before `now`. If there are too many directives, all of them are treated as ours.
    """
    words = frozenset(wanted)
    lines = list(lines)
    if sum(len(_MARK.findall(line)) for line in lines) > _MAX_MARKS:
        return next((word for line in lines for word in words if word in _plain(line)), None)
    for line in lines:
        for directive in _directives(line, words, agent.lower(), now):
            return directive
    return None


def has_date(line: str) -> bool:
    """Return whether the time decides what a line says: it may hold `unavailable_after`, in any spelling."""
    return "unavailableafter" in line.lower().replace("-", "").replace("_", "")


def _directives(line: str, wanted: frozenset[str], agent: str, now: datetime | None) -> Iterator[str]:
    parts = [part.strip() for part in _SEPARATOR.split(line)]
    is_ours = True
    for position, part in enumerate(parts):
        before_colons = part.split(":")
        for number, text in enumerate(before_colons):
            raw = text.split()
            words = [_plain(word) for word in raw]
            rest = before_colons[number + 1 : number + 5]  # a date has four colons at most
            if "unavailableafter" in words:
                date = ":".join([" ".join(raw[words.index("unavailableafter") + 1 :]), *rest]).strip(": ")
                if is_ours and now is not None and _is_past([date, *parts[position + 1 : position + 2]], now):
                    yield "unavailable_after"
                break
            name = words[-1] if words and rest else ""
            if name in wanted and rest[0].strip().lower() in _DENIALS:
                words.pop()  # noai: false
            if is_ours:
                yield from (word for word in words if word in wanted)
            if name in _WITH_VALUE:
                if is_ours:
                    yield from (word for word in map(_plain, rest[0].split()[1:]) if word in wanted)
                break
            if name not in wanted and name not in _WITHOUT_VALUE and rest:
                is_ours = _is_for(raw[-1].lower() if raw else "*", agent, is_ours)


def _is_for(name: str, agent: str, is_ours: bool) -> bool:
    """Return whether the directives after a name are for us; if it is not a name, whether those before were."""
    found = _AGENT.fullmatch(name)
    return found[1] in _EVERYONE or found[1] == agent if found else is_ours


def _plain(word: str) -> str:
    return word.lower().strip("\"'").replace("-", "").replace("_", "")


def _is_past(parts: list[str], now: datetime) -> bool:
    """Return whether `parts` start with a date before `now`; it may contain a comma ("Sat, 30 Aug 2025 ...")."""
    moment = _moment(parts[0]) or _moment(", ".join(parts[:2]))
    return moment is not None and moment <= now


def _moment(text: str) -> datetime | None:
    """Parse a date in RFC 822, RFC 850 or ISO 8601 form; None if it is not valid. Without a zone it is UTC."""
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            moment = parse(text)
        except (ValueError, IndexError, TypeError, OverflowError):
            continue
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return None
