"""The TDM Reservation Protocol (W3C community group, final report of 10 May 2024).

    TDM-Reservation: 1                                  a response header, or <meta name="tdm-reservation" content="1">
    TDM-Policy: https://example.com/policy.json         where a licence is offered
    /.well-known/tdmrep.json                            [{"location": "/art/*", "tdm-reservation": 1}, ...]

1 reserves the rights, 0 does not; any other value counts as absent. A site with a policy still reserves its rights: we
have no licence.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.consent.path_patterns import PathPattern, path_of
from pipeline.consent.policy import Signal, Statement

FILE_PATH = "/.well-known/tdmrep.json"


@dataclass(frozen=True, slots=True)
class TdmRule:
    """One object of tdmrep.json."""

    location: PathPattern
    is_reserved: bool | None
    policy: str | None


def tdm_statement(reservations: Iterable[str], policies: Iterable[str], where: str) -> Statement | None:
    """Return the statement of the header lines, or of the contents of meta elements, of one response."""
    values = [_is_reserved(part.strip()) for line in reservations for part in line.split(",")]
    policy = next(iter(policies), None)
    if True in values:
        return _statement(True, policy, where)
    return _statement(False, policy, where) if False in values else None


def read_tdm_file(body: bytes) -> tuple[TdmRule, ...]:
    """Return the rules in a tdmrep.json file, in order; objects that are not rules are left out."""
    try:
        listed = json.loads(body.decode("utf-8-sig", "replace"))
    except (ValueError, RecursionError):
        return ()
    rules = []
    for entry in listed if isinstance(listed, list) else [listed]:
        location = entry.get("location") if isinstance(entry, dict) else None
        if isinstance(location, str):
            policy = entry.get("tdm-policy")
            rules.append(
                TdmRule(
                    PathPattern.parse(location),
                    _is_reserved(str(entry.get("tdm-reservation")).strip()),
                    policy if isinstance(policy, str) else None,
                )
            )
    return tuple(rules)


def statement_of_file(rules: Sequence[TdmRule], url: str) -> Statement | None:
    """Return the statement of tdmrep.json about a URL: the first rule that matches applies."""
    if not rules:  # of nearly all hosts
        return None
    path = path_of(url)
    for rule in rules:
        if rule.location.matches(path):
            return None if rule.is_reserved is None else _statement(rule.is_reserved, rule.policy, "tdmrep.json")
    return None


def _is_reserved(value: str) -> bool | None:
    return {"1": True, "0": False}.get(value)


def _statement(is_reserved: bool, policy: str | None, where: str) -> Statement:
    see = f", policy {policy}" if policy else ""
    return Statement(Signal.TDM_RESERVATION, f"{int(is_reserved)} ({where}{see})", is_reserved)
