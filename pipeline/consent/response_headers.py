"""Statements in the headers of one response about the use of its content, except X-Robots-Tag."""

from collections.abc import Iterator

from multidict import MultiMapping

from pipeline.consent.content_signal import read_content_signal_header
from pipeline.consent.content_usage import read_content_usage_header
from pipeline.consent.policy import Signal, Statement, in_words, refuses_use
from pipeline.consent.tdm import tdm_statement


def statements_of_headers(headers: MultiMapping[str]) -> Iterator[Statement]:
    """Yield the statements of the headers."""
    lines = headers.getall("Content-Usage", ())
    if lines and (preferences := read_content_usage_header(lines)):
        yield Statement(Signal.CONTENT_USAGE, f"{in_words(preferences)} (header)", refuses_use(preferences))
    lines = headers.getall("Content-Signal", ())
    if lines and (preferences := read_content_signal_header(lines)):
        yield Statement(Signal.CONTENT_SIGNAL, f"{in_words(preferences)} (header)", refuses_use(preferences))
    lines = headers.getall("TDM-Reservation", ())
    if lines:
        statement = tdm_statement(lines, headers.getall("TDM-Policy", ()), "header")
        if statement is not None:
            yield statement
