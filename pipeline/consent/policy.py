"""The rule for conflicts between signals: the most restrictive statement wins.

Each signal that is present gives a `Statement`. One refusal is sufficient, regardless of its place and of the number of
statements that allow; absent or unreadable signals refuse nothing.

    robots.txt          response header     image            decision
    -                   -                   -                kept
    train-ai=y          -                   -                kept
    train-ai=y          train-ai=n          -                refused (content-usage)
    ai-train=yes        -                   DMI-PROHIBITED   refused (plus-data-mining)
    -                   TDM-Reservation: 0  DMI-ALLOWED      kept
    -                   TDM-Reservation: 1  DMI-ALLOWED      refused (tdm-reservation)

In a statement about several uses, training decides, because the datasets are made to train models. A statement that
forbids training refuses; one that allows it does not; and one that does not mention it but forbids another use (search,
AI input) refuses, because published datasets have these uses too.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

TRAINING = "train-ai"
"""The use that decides, in the IETF's vocabulary; other uses are `search` and `ai-input`."""

_MAX_TEXT_CHARS = 200


class Signal(StrEnum):
    """The kinds of statements about the use of an image. A closed list: tables and reports use these names."""

    TAKEDOWN = "takedown"
    BLOCK_LIST = "block-list"
    ROBOTS_TXT = "robots-txt"
    ALSO_OBEY = "also-obey"
    CONTENT_USAGE = "content-usage"
    CONTENT_SIGNAL = "content-signal"
    TDM_RESERVATION = "tdm-reservation"
    RSL = "rsl"
    X_ROBOTS_TAG = "x-robots-tag"
    PAYMENT_REQUIRED = "payment-required"
    BOT_WALL = "bot-wall"
    PLUS_DATA_MINING = "plus-data-mining"
    C2PA = "c2pa"


@dataclass(frozen=True, slots=True)
class Statement:
    """The statement of one signal; `text` quotes it, shortened, and says where it is."""

    signal: Signal
    text: str
    refuses: bool

    def __str__(self) -> str:
        return f"{self.signal}: {shorten(self.text)}"


def refusing(statements: Iterable[Statement]) -> Statement | None:
    """Return the first statement that refuses: the most restrictive wins."""
    return next((statement for statement in statements if statement.refuses), None)


def refuses_use(preferences: Mapping[str, bool]) -> bool:
    """Return whether one statement (use -> is it allowed) refuses training."""
    return not preferences.get(TRAINING, all(preferences.values()))


def usage_statement(signal: Signal, preferences: Mapping[str, bool], where: str) -> Statement:
    """Return the statement of a signal about several uses (use -> is it allowed)."""
    return _usage_statement(signal, tuple(preferences.items()), where)


@lru_cache(4_096)
def _usage_statement(signal: Signal, preferences: tuple[tuple[str, bool], ...], where: str) -> Statement:
    stated = dict(preferences)
    return Statement(signal, f"{in_words(stated)} ({where})", refuses_use(stated))


def in_words(preferences: Mapping[str, bool]) -> str:
    """Return preferences as `train-ai=n, search=y`."""
    return ", ".join(f"{use}={'y' if is_allowed else 'n'}" for use, is_allowed in preferences.items())


def combine(statements: Iterable[Mapping[str, bool]]) -> dict[str, bool]:
    """Join statements of equal rank, use by use: one that forbids wins (draft-ietf-aipref-vocab-08 section 5.1)."""
    joined: dict[str, bool] = {}
    for preferences in statements:
        for use, is_allowed in preferences.items():
            joined[use] = joined.get(use, True) and is_allowed
    return joined


def shorten(text: str) -> str:
    """Return untrusted text as one line of printable characters, of limited length."""
    plain = text[: 2 * _MAX_TEXT_CHARS]
    if not plain.isprintable():
        plain = "".join(c if c.isprintable() else " " for c in plain)
    return " ".join(plain.split())[:_MAX_TEXT_CHARS]
