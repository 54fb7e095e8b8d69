"""Statements in the headers of one response about the use of its content, except X-Robots-Tag."""

from collections.abc import Iterator
from functools import lru_cache

from multidict import MultiMapping

from pipeline.consent.content_signal import read_content_signal_header
from pipeline.consent.content_usage import read_content_usage_header
from pipeline.consent.policy import Signal, Statement, usage_statement
from pipeline.consent.tdm import tdm_statement

_USUAL_CHARS = 500

Lines = tuple[str, ...]


def statements_of_headers(headers: MultiMapping[str]) -> tuple[Statement, ...]:
    """Return the statements of the headers."""
    usage = headers.getall("Content-Usage", ())
    signals = headers.getall("Content-Signal", ())
    reservations = headers.getall("TDM-Reservation", ())
    if not (usage or signals or reservations):
        return ()
    policies = headers.getall("TDM-Policy", ()) if reservations else ()
    lines = tuple(usage), tuple(signals), tuple(reservations), tuple(policies)
    size_chars = sum(len(line) for named in lines for line in named)
    return _read_again(*lines) if size_chars <= _USUAL_CHARS else _read(*lines)


def _read(usage: Lines, signals: Lines, reservations: Lines, policies: Lines) -> tuple[Statement, ...]:
    return tuple(_statements(usage, signals, reservations, policies))


_read_again = lru_cache(1_024)(_read)  # a host sends the same headers with all its images


def _statements(usage: Lines, signals: Lines, reservations: Lines, policies: Lines) -> Iterator[Statement]:
    if usage and (preferences := read_content_usage_header(usage)):
        yield usage_statement(Signal.CONTENT_USAGE, preferences, "header")
    if signals and (preferences := read_content_signal_header(signals)):
        yield usage_statement(Signal.CONTENT_SIGNAL, preferences, "header")
    if (statement := tdm_statement(reservations, policies, "header")) is not None:
        yield statement
