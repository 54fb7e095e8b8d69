"""Statements in robots.txt about use, as opposed to crawling.

These are `Content-Usage`, `Content-Signal`, `TDM-Reservation` and `License` lines, and the rules for the crawlers of
`fetch.also_obey`. The group for our own name applies, else the group `*`; if the file does not name us, the groups for
those crawlers apply too. Lines before the first `User-agent` apply to everyone.

The rule with the longest matching path decides; of rules with equal paths, one that forbids wins
(draft-ietf-aipref-attach-05 section 3.1). Names of lines are accepted in any case, with spaces, hyphens or neither.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.consent.content_signal import read_content_signal
from pipeline.consent.content_usage import read_content_usage
from pipeline.consent.path_patterns import PathPattern, path_of
from pipeline.consent.policy import Signal, Statement, combine, usage_statement

_LINE_ENDS = re.compile("[\r\n]+")
_SEPARATORS = re.compile("[ \t_-]+")
_WITHOUT_COLON = re.compile(
    r"[ \t]*(user[-_ ]?agent|content[-_ ]?usage|content[-_ ]?signals?|disallow)[ \t]+(.*)", re.IGNORECASE
)
_TOKEN = re.compile(r"[a-z0-9_.-]*")
_DISALLOW = frozenset({"disallow", "dissallow", "dissalow", "disalow", "diasllow", "disallaw"})  # as protego reads it
_USAGE = {
    "contentusage": Signal.CONTENT_USAGE,
    "contentusages": Signal.CONTENT_USAGE,
    "contentsignal": Signal.CONTENT_SIGNAL,
    "contentsignals": Signal.CONTENT_SIGNAL,
}
_READERS = {Signal.CONTENT_USAGE: read_content_usage, Signal.CONTENT_SIGNAL: read_content_signal}
_LICENCE = frozenset({"license", "licence"})

_SAYS_MORE = re.compile("content|licen[sc]e|tdm", re.IGNORECASE)
"""Found in every file with a statement about use."""


@dataclass(frozen=True, slots=True)
class _UsageRule:
    signal: Signal
    pattern: PathPattern
    preferences: Mapping[str, bool]


@dataclass(slots=True)
class _Group:
    """The rules of one group. `crawling` is (pattern, is allowed)."""

    agents: set[str] = field(default_factory=set)
    crawling: list[tuple[PathPattern, bool]] = field(default_factory=list)
    usage: list[_UsageRule] = field(default_factory=list)
    licences: list[str] = field(default_factory=list)
    reserves_mining: bool = False

    def add(self, name: str, value: str) -> None:
        """Add one line; unknown lines are ignored."""
        if name in _DISALLOW or name == "allow":
            if value:
                self.crawling.append((PathPattern.parse(value), name == "allow"))
        elif (signal := _USAGE.get(name)) is not None:
            path, preference = _split_path(value)
            if preferences := _READERS[signal](preference):
                self.usage.append(_UsageRule(signal, PathPattern.parse(path), preferences))
        elif name in _LICENCE and value:
            self.licences.append(value)
        elif name == "tdmreservation":
            self.reserves_mining |= value == "1"


@dataclass(frozen=True, slots=True)
class _Addressed:
    """The rules for one crawler, from all groups that name it; `crawler` is None for our own."""

    crawler: str | None
    crawling: tuple[tuple[PathPattern, bool], ...]
    usage: tuple[_UsageRule, ...]

    def statements(self, path: str) -> Iterator[Statement]:
        if self.crawler is not None and not _may_crawl(self.crawling, path):
            yield Statement(Signal.ALSO_OBEY, f"robots.txt disallows it to {self.crawler}", refuses=True)
        if not self.usage:
            return
        for_whom = "" if self.crawler is None else f" for {self.crawler}"
        for signal in _READERS:
            rules = [rule for rule in self.usage if rule.signal is signal and rule.pattern.matches(path)]
            if rules:
                yield usage_statement(signal, _most_specific(rules), f"robots.txt{for_whom}")


@dataclass(frozen=True, slots=True)
class UsageRules:
    """The statements of a file about use. `licences` are URLs of RSL documents; `names_tdm_file`: it mentions
    tdmrep.json. `size_bytes` is about the size of the file, 0 if it has no statements.
    """

    addressed: tuple[_Addressed, ...] = ()
    licences: tuple[str, ...] = ()
    reserves_mining: bool = False
    names_tdm_file: bool = False
    size_bytes: int = 0

    def statements(self, url: str) -> Iterator[Statement]:
        """Yield the statements of the file about the use of a URL."""
        if self.reserves_mining:
            yield Statement(Signal.TDM_RESERVATION, "1 (robots.txt)", refuses=True)
        if self.addressed:
            path = path_of(url)
            for rules in self.addressed:
                yield from rules.statements(path)


NOTHING = UsageRules()


def read_usage_rules(text: str, agent: str, also_obey: frozenset[str]) -> UsageRules:
    """Return the statements of a robots.txt about use; `agent` and `also_obey` are product tokens in lower case."""
    folded = text.lower()
    if _SAYS_MORE.search(folded) is None and not any(token in folded for token in also_obey):
        return NOTHING
    for_everyone, groups = _read_groups(text, also_obey | {agent})
    own = [group for group in groups if agent in group.agents]
    ours = own or [group for group in groups if "*" in group.agents]
    addressed = [_join(None, [for_everyone, *ours])]
    named = set() if own else set().union(*(group.agents for group in groups)) & also_obey
    addressed += [_join(token, [group for group in groups if token in group.agents]) for token in sorted(named)]
    asked = [for_everyone, *ours, *(group for group in groups if group.agents & named)]
    return UsageRules(
        addressed=tuple(_without_repeats(rules for rules in addressed if rules.crawling or rules.usage)),
        licences=tuple(dict.fromkeys(licence for group in asked for licence in group.licences)),
        reserves_mining=any(group.reserves_mining for group in asked),
        names_tdm_file="tdmrep" in folded or "tdm-reservation" in folded,
        size_bytes=len(text),
    )


def _read_groups(text: str, tokens: frozenset[str]) -> tuple[_Group, list[_Group]]:
    """Return the lines before any group as one group, and the groups for one of `tokens` or for everyone."""
    for_everyone = _Group()
    group, groups, is_naming = for_everyone, [], False
    for name, value in _lines(text):
        if name == "useragent":
            if not is_naming:
                group = _Group()
                groups.append(group)
            is_naming = True
            group.agents |= _tokens_of(value) & (tokens | {"*"})
            continue
        if name not in _LICENCE and name != "sitemap":
            is_naming = False
        if group.agents or group is for_everyone:
            group.add(name, value)
    return for_everyone, [group for group in groups if group.agents]


def _lines(text: str) -> Iterator[tuple[str, str]]:
    for line in _LINE_ENDS.split(text):
        content = line.partition("#")[0]
        name, colon, value = content.partition(":")
        if not colon or len(name) > 40:
            match = _WITHOUT_COLON.match(content)
            if match is None:
                continue
            name, value = match[1], match[2]
        yield _SEPARATORS.sub("", name.strip().lower()), value.strip()


def _tokens_of(value: str) -> set[str]:
    """Return the tokens that a User-agent line may mean, without versions: its first word, and all words."""
    whole = value.partition("/")[0].strip().lower()
    token = _TOKEN.match(whole)
    return {"*"} if whole.startswith("*") else {whole, token[0] if token is not None else ""}


def _split_path(value: str) -> tuple[str, str]:
    if not value.startswith("/"):
        return "", value
    path, _, rest = value.replace("\t", " ").partition(" ")
    return path, rest.strip()


def _join(crawler: str | None, groups: list[_Group]) -> _Addressed:
    return _Addressed(
        crawler,
        tuple(rule for group in groups for rule in group.crawling) if crawler is not None else (),
        tuple(rule for group in groups for rule in group.usage),
    )


def _without_repeats(addressed: Iterable[_Addressed]) -> list[_Addressed]:
    """Leave out crawlers with the same rules as another: they would refuse the same URLs."""
    seen: dict[tuple[object, ...], _Addressed] = {}
    for rules in addressed:
        usage = tuple((rule.signal, rule.pattern, *sorted(rule.preferences.items())) for rule in rules.usage)
        seen.setdefault((rules.crawler is None, rules.crawling, usage), rules)
    return list(seen.values())


def _may_crawl(rules: Iterable[tuple[PathPattern, bool]], path: str) -> bool:
    """RFC 9309 section 2.2.2: the longest match decides, and of equal ones the one that allows."""
    matching = [(pattern.specificity, is_allowed) for pattern, is_allowed in rules if pattern.matches(path)]
    return not matching or max(matching)[1]


def _most_specific(matching: Sequence[_UsageRule]) -> Mapping[str, bool]:
    if len(matching) == 1:
        return matching[0].preferences
    longest = max(rule.pattern.specificity for rule in matching)
    return combine(rule.preferences for rule in matching if rule.pattern.specificity == longest)
