"""Parse directives for robots in headers (`X-Robots-Tag`) and pages (`<meta name=robots>`).

    noai, max-image-preview:large                   for every agent
    otherbot: noindex, noai                         for that agent, as are those that follow, up to the next agent's
                                                    name
    unavailable_after: 25 Jun 2020 15:00:00 GMT     from that time on

Undefined spellings occur too: `noai; noimageai`, `noai noimageai`, `noai|noimageai`, `all: noai`, `no-ai`,
`noai: true`, `noai=1`, `[noai]`, `noai.`. Each is interpreted in the more restrictive way.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_MAX_MARKS = 2_000
_MARK = re.compile("[,;:|=]")
_SEPARATOR = re.compile("[,;|]")
_AROUND_WORDS = "\"'.[](){}<>"
_AGENT = re.compile(r"([a-z*_-][a-z0-9*_.-]*+)(?:/.*)?")  # a version may follow
_EVERYONE = frozenset({"*", "all", "any", "robots", "x-robots-tag"})
# Names before a colon that are not agents: the text after it is their value, or applies to the previous agent.
_WITH_VALUE = frozenset({"maxsnippet", "maximagepreview", "maxvideopreview"})
_WITHOUT_VALUE = frozenset({"index", "follow", "nofollow", "noarchive", "nosnippet", "nocache", "notranslate"})
_DENIALS = frozenset({"0", "false", "no", "off"})


@dataclass(frozen=True, slots=True, eq=False)  # compared by identity: a key of caches
class Wanted:
    """The directives to look for: those that count when addressed to everyone, and when addressed to an agent by name.
    `agents` are product tokens in lower case.
    """

    for_everyone: frozenset[str]
    by_name: frozenset[str]
    agents: frozenset[str]


def find_directive(lines: Iterable[str], wanted: Wanted, now: datetime | None = None) -> str | None:
    """Return the first wanted directive in any line, or None; if it is for an agent by name, as "noai for gptbot".

    One string per header line or meta element. `unavailable_after` counts as wanted if its date is before `now`. If
    there are too many directives, all of them are treated as ours.
    """
    lines = list(lines)
    if sum(len(_MARK.findall(line)) for line in lines) > _MAX_MARKS:
        words = wanted.for_everyone | wanted.by_name
        return next((word for line in lines for word in sorted(words) if word in _plain(line)), None)
    for line in lines:
        for directive in _directives(line, wanted, now):
            return directive
    return None


def has_date(line: str) -> bool:
    """Return whether the time decides what a line says: it may hold `unavailable_after`, in any spelling."""
    return "unavailableafter" in line.lower().replace("-", "").replace("_", "")


def _directives(line: str, wanted: Wanted, now: datetime | None) -> Iterator[str]:
    parts = [part.strip() for part in _SEPARATOR.split(line)]
    known = wanted.for_everyone | wanted.by_name
    words_wanted, for_whom, is_ours = wanted.for_everyone, "", True
    for position, part in enumerate(parts):
        before_colons = part.replace("=", ":").split(":")
        for number, text in enumerate(before_colons):
            raw = text.split()
            words = [_plain(word) for word in raw]
            rest = before_colons[number + 1 : number + 5]  # a date has four colons at most
            if "unavailableafter" in words:
                date = ":".join([" ".join(raw[words.index("unavailableafter") + 1 :]), *rest]).strip(": ")
                if is_ours and now is not None and _is_past([date, *parts[position + 1 : position + 2]], now):
                    yield f"unavailable_after{for_whom}"
                break
            name = words[-1] if words and rest else ""
            if name in known and rest[0].strip().lower() in _DENIALS:
                words.pop()  # noai: false
            if is_ours:
                yield from (f"{word}{for_whom}" for word in words if word in words_wanted)
            if name in _WITH_VALUE:
                if is_ours:
                    after = map(_plain, rest[0].split()[1:])
                    yield from (f"{word}{for_whom}" for word in after if word in words_wanted)
                break
            if rest and name not in known and name not in _WITHOUT_VALUE:
                agent = _addressee(" ".join(raw).lower() or "*", wanted.agents)
                if agent is not None:
                    is_ours = agent in _EVERYONE or agent in wanted.agents
                    is_named = is_ours and agent not in _EVERYONE
                    words_wanted = wanted.by_name if is_named else wanted.for_everyone
                    for_whom = f" for {agent}" if is_named else ""


def _addressee(text: str, agents: frozenset[str]) -> str | None:
    """Return the agent or the word for everyone at the end of a text before a colon, in lower case; None if that is not
    a name. Some product tokens have spaces.
    """
    last = text.rpartition(" ")[2]
    found = _AGENT.fullmatch(last)
    if found is None:
        return None
    name = found[1].rstrip("*") or "*"
    if name in agents or name in _EVERYONE:
        return name
    whole = text.partition("/")[0]
    return next((agent for agent in agents if " " in agent and f" {whole}".endswith(f" {agent}")), name)


def _plain(word: str) -> str:
    return word.lower().strip(_AROUND_WORDS).replace("-", "").replace("_", "")


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
