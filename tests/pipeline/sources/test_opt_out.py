"""Statements of pages: which crawlers' names count, and the switches of `[fetch.consent]`."""

import io
from typing import Any

import pytest
from support.warc_files import gzipped, image_link, page, rows_of, wat

from pipeline.config import PairsConfig
from pipeline.config.fetch import ConsentConfig, FetchConfig
from pipeline.consent.policy import Signal
from pipeline.records import Reason
from pipeline.sources.opt_out import PAGE_SIGNALS, USUAL_POLICY, PagePolicy
from pipeline.sources.warc import read_warc
from pipeline.sources.wat import read_wat

METAS = {
    Signal.X_ROBOTS_TAG: [("robots", "noai"), ("gptbot", "noai"), ("wit-pipeline", "noindex")],
    Signal.TDM_RESERVATION: [("tdm-reservation", "1")],
    Signal.CONTENT_USAGE: [],
    Signal.CONTENT_SIGNAL: [],
}
HEADERS = {
    Signal.X_ROBOTS_TAG: [("X-Robots-Tag", "noai"), ("X-Robots-Tag", "GPTBot: noai")],
    Signal.TDM_RESERVATION: [("TDM-Reservation", "1")],
    Signal.CONTENT_USAGE: [("Content-Usage", "train-ai=n")],
    Signal.CONTENT_SIGNAL: [("Content-Signal", "ai-train=no")],
}
SWITCHES = {
    Signal.X_ROBOTS_TAG: "x_robots_tag",
    Signal.TDM_RESERVATION: "tdm",
    Signal.CONTENT_USAGE: "content_usage",
    Signal.CONTENT_SIGNAL: "content_signal",
}


def pages_that_refuse(signal: Signal) -> list[tuple[bytes, bytes]]:
    """Return pages with one image each, as records of a WARC and of a WAT file."""
    link = image_link("a.jpg", alt="x")
    image = "<img src=a.jpg alt=x>"
    return [
        *(
            (page(f"<meta name='{name}' content='{content}'>{image}"), wat([link], metas=[named(name, content)]))
            for name, content in METAS[signal]
        ),
        *(
            (page(image, headers=[f"{name}: {value}"]), wat([link], headers={name: value}))
            for name, value in HEADERS[signal]
        ),
    ]


def named(name: str, content: str) -> dict[str, str]:
    return {"name": name, "content": content}


def refused(pages: list[tuple[bytes, bytes]], policy: PagePolicy) -> int:
    """Return how many of the pages opt their image out, after both readers agree."""
    of_warc, of_wat = (gzipped(records) for records in zip(*pages, strict=True))
    rows, dropped = rows_of(read_warc(io.BytesIO(of_warc), PairsConfig(), policy))
    assert rows_of(read_wat(io.BytesIO(of_wat), PairsConfig(), policy)) == (rows, dropped)
    assert len(rows) + dropped[Reason.OPTED_OUT] == len(pages)
    return dropped[Reason.OPTED_OUT]


def policy(**keys: Any) -> PagePolicy:
    also_obey = {"also_obey": keys.pop("also_obey")} if "also_obey" in keys else {}
    return PagePolicy.of(FetchConfig(**also_obey, consent=ConsentConfig(**keys)))


def test_no_signal_is_left_out() -> None:
    assert METAS.keys() == HEADERS.keys() == SWITCHES.keys() == PAGE_SIGNALS


@pytest.mark.parametrize("signal", sorted(PAGE_SIGNALS))
def test_a_signal_of_pages_refuses_unless_it_or_pages_is_switched_off(signal: Signal) -> None:
    pages = pages_that_refuse(signal)
    others = {switch: False for other, switch in SWITCHES.items() if other is not signal}
    assert refused(pages, USUAL_POLICY) == refused(pages, policy(**others)) == len(pages)
    assert refused(pages, policy(**{SWITCHES[signal]: False})) == 0
    assert refused(pages, policy(pages=False)) == 0


def test_names_of_other_crawlers_count_as_also_obey_says() -> None:
    pages = pages_that_refuse(Signal.X_ROBOTS_TAG)
    of_others = 2  # of the five pages, these name GPTBot
    assert refused(pages, policy(also_obey=())) == len(pages) - of_others
    assert refused(pages, policy(also_obey=("CCBot",))) == len(pages) - of_others
    assert refused(pages, policy(also_obey=("GPTBot",))) == len(pages)
