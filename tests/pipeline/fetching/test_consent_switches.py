"""Every signal has the switch that docs/consent.md names: it ends this signal's refusals everywhere, and no others."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from support.fetching import config, fetch, plan_of
from support.hostile_server import HostileServer, Route, fixed, picture
from support.image_rights import data_mining, in_jpeg, training_mining, xmp

from pipeline.config.fetch import ConsentConfig, FetchConfig
from pipeline.consent.block_lists import BlockLists
from pipeline.consent.policy import Signal
from pipeline.fetching.fetcher import Fetcher

JPEG = picture(40, 32)
RSL = b'<rsl><content url="/"><license><prohibits type="usage">all</prohibits></license></content></rsl>'
RSL_LINK = '</license.xml>; rel="license"; type="application/rsl+xml"'
RESERVED = b'[{"location": "/", "tdm-reservation": 1}]'
EVERYONE = "User-agent: *\nAllow: /\n"

Pages = Mapping[str, Route]

PLACES: list[tuple[Signal, str, Pages]] = [
    (Signal.ROBOTS_TXT, "robots", {"/robots.txt": fixed(200, b"User-agent: *\nDisallow: /")}),
    (Signal.ALSO_OBEY, "robots", {"/robots.txt": fixed(200, b"User-agent: GPTBot\nDisallow: /")}),
    (
        Signal.CONTENT_USAGE,
        "robots",
        {"/robots.txt": fixed(200, f"{EVERYONE}Content-Usage: train-ai=n".encode())},
    ),
    (Signal.CONTENT_USAGE, "header", {"/a.jpg": fixed(200, JPEG, Content_Usage="train-ai=n")}),
    (
        Signal.CONTENT_SIGNAL,
        "robots",
        {"/robots.txt": fixed(200, f"{EVERYONE}Content-Signal: ai-train=no".encode())},
    ),
    (Signal.CONTENT_SIGNAL, "header", {"/a.jpg": fixed(200, JPEG, Content_Signal="ai-train=no")}),
    (Signal.TDM_RESERVATION, "robots", {"/robots.txt": fixed(200, f"{EVERYONE}TDM-Reservation: 1".encode())}),
    (
        Signal.TDM_RESERVATION,
        "file",
        {
            "/robots.txt": fixed(200, f"# see /.well-known/tdmrep.json\n{EVERYONE}".encode()),
            "/.well-known/tdmrep.json": fixed(200, RESERVED),
        },
    ),
    (Signal.TDM_RESERVATION, "header", {"/a.jpg": fixed(200, JPEG, TDM_Reservation="1")}),
    (
        Signal.TDM_RESERVATION,
        "image",
        {"/a.jpg": fixed(200, in_jpeg(JPEG, packet=xmp("<tdm:reservation>1</tdm:reservation>")))},
    ),
    (
        Signal.RSL,
        "robots",
        {
            "/robots.txt": fixed(200, f"License: http://rsl-robots.example/license.xml\n{EVERYONE}".encode()),
            "/license.xml": fixed(200, RSL),
        },
    ),
    (Signal.RSL, "header", {"/a.jpg": fixed(200, JPEG, Link=RSL_LINK), "/license.xml": fixed(200, RSL)}),
    (Signal.X_ROBOTS_TAG, "header", {"/a.jpg": fixed(200, JPEG, X_Robots_Tag="noai")}),
    (Signal.X_ROBOTS_TAG, "our-name", {"/a.jpg": fixed(200, JPEG, X_Robots_Tag="wit-pipeline: noai")}),
    (Signal.X_ROBOTS_TAG, "other-name", {"/a.jpg": fixed(200, JPEG, X_Robots_Tag="GPTBot: noai")}),
    (
        Signal.PLUS_DATA_MINING,
        "image",
        {"/a.jpg": fixed(200, in_jpeg(JPEG, packet=data_mining("DMI-PROHIBITED")))},
    ),
    (
        Signal.C2PA,
        "image",
        {
            "/a.jpg": fixed(
                200, in_jpeg(JPEG, boxes=training_mining("cawg.training-mining", "ai_training", "notAllowed"))
            )
        },
    ),
    (Signal.PAYMENT_REQUIRED, "response", {"/a.jpg": fixed(402)}),
    (Signal.BOT_WALL, "response", {"/a.jpg": fixed(200, JPEG, CF_Mitigated="challenge")}),
    (Signal.BLOCK_LIST, "lists", {}),
]

SWITCHES: dict[Signal, dict[str, Any] | None] = {
    Signal.ROBOTS_TXT: None,
    Signal.ALSO_OBEY: {"also_obey": ()},
    Signal.CONTENT_USAGE: {"content_usage": False},
    Signal.CONTENT_SIGNAL: {"content_signal": False},
    Signal.TDM_RESERVATION: {"tdm": False},
    Signal.RSL: {"rsl": False},
    Signal.X_ROBOTS_TAG: {"x_robots_tag": False},
    Signal.PLUS_DATA_MINING: {"image_metadata": False},
    Signal.C2PA: {"c2pa": False},
    Signal.PAYMENT_REQUIRED: None,
    Signal.BOT_WALL: {"bot_walls": False},
    Signal.TAKEDOWN: None,
    Signal.BLOCK_LIST: {"block_domains": ()},
}
"""What switches a signal off: keys of `[fetch.consent]`, and `also_obey`; None where nothing does."""


def settings_of(changes: dict[str, Any]) -> dict[str, Any]:
    """Return a config's keys from those of a switch."""
    consent = {key: value for key, value in changes.items() if key in ConsentConfig.model_fields}
    others = {key: value for key, value in changes.items() if key not in consent}
    return {"consent": ConsentConfig(**consent), **others}


def refused_by(server: HostileServer, places: list[tuple[str, Pages]], changes: dict[str, Any]) -> list[str | None]:
    """Return the signal that refuses the picture of each host."""
    server.routes |= {"/robots.txt": fixed(404), "/a.jpg": fixed(200, JPEG)}
    for host, pages in places:
        server.hosts.update({(host, path): route for path, route in pages.items()})
    # The stage reads the files of block lists and hands the fetcher their content.
    listed = [] if "block_domains" in changes else ["block-list-lists.example"]
    with Fetcher(
        config(gateway=server.gateway, timeout_s=20.0, **settings_of(changes)),
        block_lists=BlockLists.read({"domains": listed}),
    ) as fetcher:
        rows = fetch(fetcher, plan_of([f"http://{host}/a.jpg" for host, _ in places])).table.to_pylist()
    for row in rows:
        assert (row["refused_by"] is None) == (row["status"] == "success")
    return [row["refused_by"] for row in rows]


def hosts_of(signal: Signal) -> list[tuple[str, Pages]]:
    return [(f"{name}-{place}.example", pages) for name, place, pages in PLACES if name is signal]


FETCHED = [signal for signal in Signal if signal is not Signal.TAKEDOWN]  # tests/pipeline/stages: finished sets


def test_no_signal_is_left_out() -> None:
    assert SWITCHES.keys() == set(Signal)
    assert {signal for signal, _, _ in PLACES} == set(FETCHED)


@pytest.mark.parametrize("signal", FETCHED)
def test_a_signal_refuses_unless_it_is_switched_off(server: HostileServer, signal: Signal) -> None:
    hosts = hosts_of(signal)
    assert refused_by(server, hosts, {}) == [signal] * len(hosts)
    all_others: dict[str, Any] = {}
    for other, switch in SWITCHES.items():
        all_others |= switch if switch is not None and other is not signal else {}
    named = [host for host in hosts if "other-name" not in host[0]]  # a name of also_obey, which is off here
    assert refused_by(server, named, all_others) == [signal] * len(named)
    if (switch := SWITCHES[signal]) is not None:
        assert refused_by(server, hosts, switch) == [None] * len(hosts)


def test_other_crawlers_are_obeyed_in_headers_as_in_robots_txt(server: HostileServer) -> None:
    hosts = [host for host in hosts_of(Signal.X_ROBOTS_TAG) if "other-name" in host[0]]
    assert refused_by(server, hosts, {"also_obey": ()}) == [None]
    assert refused_by(server, hosts, {"also_obey": ("CCBot",)}) == [None]
    assert refused_by(server, hosts, {"also_obey": ("gptbot",)}) == [Signal.X_ROBOTS_TAG]


def documented() -> Iterator[tuple[str, str]]:
    text = (Path(__file__).parents[3] / "docs" / "consent.md").read_text()
    table = text[text.index("| name in tables |") :].partition("\n\n")[0]
    for line in table.splitlines()[2:]:
        name, *_, switch = (cell.strip() for cell in line.strip("|").split("|"))
        yield name.strip("`"), switch


def test_the_documented_switches_are_these() -> None:
    told = dict(documented())
    assert told.keys() == {*Signal, "pages"}
    for signal, switch in SWITCHES.items():
        keys = [key.removeprefix("fetch.") for key in re.findall("`([a-z0-9_.]+)`", told[signal])]
        if switch is None:
            assert (keys, told[signal]) == ([], "none")
        else:
            (named,) = switch
            assert any(named.startswith(key.removesuffix("...")) for key in keys)
            assert named in ConsentConfig.model_fields or named in FetchConfig.model_fields
