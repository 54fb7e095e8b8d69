"""A planted web: over 200 ways to say no among 2,000 free pictures. Nothing protected is kept, nothing free is lost."""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from PIL import Image
from support.consent_cases import FREE, REFUSED
from support.fetching import Result, config, fetch, fetch_urls, plan_of
from support.hostile_server import HostileServer, fixed, picture
from support.image_rights import data_mining, encode, in_jpeg, in_png, in_webp, training_mining, xmp

from pipeline.config.fetch import ConsentConfig
from pipeline.consent.block_lists import BlockLists
from pipeline.consent.policy import Signal
from pipeline.fetching.fetcher import Fetcher

FREE_PICTURES = 2_000
FREE_HOSTS = 100
JPEG = picture(40, 32)
PNG, WEBP = (picture(40, 32, image_format=name) for name in ("PNG", "WEBP"))
ROBOTS_REASONS = {Signal.ROBOTS_TXT: "robots_disallowed", Signal.ALSO_OBEY: "robots_disallowed"}
OTHER_REASONS = {Signal.PAYMENT_REQUIRED: "payment_required", Signal.BOT_WALL: "bot_wall"}


@dataclass(frozen=True)
class Case:
    """A protected picture. `may_request`: only the response could tell."""

    url: str
    signal: Signal
    may_request: bool

    @property
    def reason(self) -> str:
        return (ROBOTS_REASONS | OTHER_REASONS).get(self.signal, "opted_out")


def headers_that_refuse() -> Iterator[tuple[Signal, dict[str, str]]]:
    for value in ("train-ai=n", "search=y, train-ai=n", "train-ai=n;x", "search=n", " train-ai=n ", "train-genai=n"):
        yield Signal.CONTENT_USAGE, {"Content_Usage": value}
    for name in ("content-usage", "CONTENT-USAGE", "Content-usage"):
        yield Signal.CONTENT_USAGE, {name: "train-ai=n"}
    for value in ("ai-train=no", "search=yes, ai-train=no", "AI-Train=No", "ai_train=no", "ai-train:no", "train-ai=n"):
        yield Signal.CONTENT_SIGNAL, {"Content_Signal": value}
    for value in ("1", " 1", "1, 0"):
        yield Signal.TDM_RESERVATION, {"TDM_Reservation": value}
        yield Signal.TDM_RESERVATION, {"tdm-reservation": value, "tdm-policy": "https://p.example/policy.json"}
    for value in (
        *("noai", "NoAI", "noimageai", "noml", "noindex", "noimageindex", "none", "no-ai", "noai; nofollow"),
        *("noai nofollow", "all: noai", "nofollow, noai", "wit-pipeline: noai", "WIT-Pipeline: noindex", "*: noai"),
        *("GPTBot: noai", "nofollow, CCBot/2.0: noindex", "otherbot: nofollow, Kangaroo Bot: none"),
        *("max-image-preview:large, noai", "unavailable_after: 2010-01-01", "otherbot: nofollow, wit-pipeline: noai"),
    ):
        yield Signal.X_ROBOTS_TAG, {"X_Robots_Tag": value}
        yield Signal.X_ROBOTS_TAG, {"x-robots-tag": value.upper() if "20" not in value else value}


def files_that_refuse() -> Iterator[tuple[Signal, bytes]]:
    values = ("", "-AIMLTRAINING", "-GENAIMLTRAINING", "-EXCEPTSEARCHENGINEINDEXING", "-SEECONSTRAINT")
    for value in values:
        packet = data_mining(f"DMI-PROHIBITED{value}")
        yield Signal.PLUS_DATA_MINING, in_jpeg(JPEG, packet=packet)
        yield Signal.PLUS_DATA_MINING, in_png(PNG, packet=packet)
        yield Signal.PLUS_DATA_MINING, in_png(PNG, packet=packet, compress=True, last=True)
        yield Signal.PLUS_DATA_MINING, in_webp(WEBP, b"XMP ", packet)
        attribute = xmp(attributes=f'plus:DataMining="dmi-prohibited{value.lower()}"')
        yield Signal.PLUS_DATA_MINING, in_jpeg(JPEG, packet=attribute)
        image = Image.open(io.BytesIO(PNG))
        yield Signal.PLUS_DATA_MINING, encode(image, "TIFF", tiffinfo={700: packet})
        yield Signal.PLUS_DATA_MINING, encode(image, "AVIF", xmp=packet)
    for label in ("cawg.training-mining", "c2pa.training-mining"):
        for entry in ("ai_training", "ai_generative_training", "data_mining"):
            for value in ("notAllowed", "constrained"):
                boxes = training_mining(label, entry, value)
                yield Signal.C2PA, in_jpeg(JPEG, boxes=boxes)
                yield Signal.C2PA, in_png(PNG, boxes=boxes)
                yield Signal.C2PA, in_webp(WEBP, b"C2PA", boxes)
    yield Signal.TDM_RESERVATION, in_jpeg(JPEG, packet=xmp("<tdm:reservation>1</tdm:reservation>"))


RSL = (
    '<rsl xmlns="https://rslstandard.org/rsl"><content url="/"><license>{}</license></content>'
    '<content url="/free/*"><license><permits type="usage">all</permits></license></content></rsl>'
)
TERMS = (
    '<prohibits type="usage">ai-train</prohibits>',
    '<prohibits type="usage">all</prohibits>',
    '<permits type="usage">search</permits>',
    '<permits type="usage">ai-train</permits><payment type="subscription"/>',
    '<payment type="crawl"><amount currency="USD">1</amount></payment>',
    '<permits type="usage">all</permits><permits type="user">education</permits>',
)
CHALLENGE = b"<!DOCTYPE html><html><head><title>Just a moment...</title></head><body>_cf_chl_opt</body></html>"
WALLS = (
    *(fixed(status, CHALLENGE, CF_Mitigated="challenge") for status in (200, 403, 429, 503)),
    fixed(200, CHALLENGE, Content_Type="text/html"),
    *(fixed(status, CHALLENGE, Content_Type="text/html; charset=utf-8") for status in (403, 405, 429, 503)),
    fixed(202, b"", x_amzn_waf_action="challenge"),
    fixed(405, b"", x_amzn_waf_action="captcha"),
    fixed(429, b"", x_vercel_mitigated="challenge"),
)


class PlantedWeb:
    """The server's hosts, the protected pictures on them, and the URLs that are free."""

    def __init__(self, server: HostileServer) -> None:
        self.server = server
        self.cases: list[Case] = []
        self.free: list[str] = []
        self.hinting: set[str] = set()  # hosts whose robots.txt speaks of tdmrep.json
        self.listed: dict[str, list[str]] = {"domains": [], "urls": [], "url_hashes": [], "image_hashes": []}
        server.routes["/robots.txt"] = fixed(404)
        self._plant_robots()
        self._plant_responses()
        self._plant_terms()
        self._plant_lists()
        self._plant_free()

    def protect(self, host: str, signal: Signal, *, may_request: bool = False, path: str = "/a.jpg") -> None:
        self.cases.append(Case(f"http://{host}{path}", signal, may_request))

    def _robots(self, host: str, text: str) -> None:
        if "tdm" in text.lower():
            self.hinting.add(host)
        self.server.hosts[host, "/robots.txt"] = fixed(200, text.encode())

    def _plant_robots(self) -> None:
        self.server.routes["/a.jpg"] = fixed(200, JPEG)
        for number, (text, signal) in enumerate(REFUSED.items()):
            self._robots(f"robots{number}.example", text)
            self.protect(f"robots{number}.example", signal)
        for number, text in enumerate(("Disallow: /", "Disallow: /a", "Disallow: /*.jpg$")):
            self._robots(f"disallow{number}.example", f"User-agent: *\n{text}")
            self.protect(f"disallow{number}.example", Signal.ROBOTS_TXT)

    def _plant_responses(self) -> None:
        for number, (signal, headers) in enumerate(headers_that_refuse()):
            self.server.hosts[f"header{number}.example", "/a.jpg"] = fixed(200, JPEG, **headers)
            self.protect(f"header{number}.example", signal, may_request=True)
        for number, (signal, file) in enumerate(files_that_refuse()):
            self.server.hosts[f"file{number}.example", "/a.jpg"] = fixed(200, file)
            self.protect(f"file{number}.example", signal, may_request=True)
        for number, wall in enumerate(WALLS):
            self.server.hosts[f"wall{number}.example", "/a.jpg"] = wall
            self.protect(f"wall{number}.example", Signal.BOT_WALL, may_request=True)
        for number, wall in enumerate((*WALLS[:5], *WALLS[9:])):
            self.server.hosts[f"wall-all{number}.example", "/robots.txt"] = wall
            self.protect(f"wall-all{number}.example", Signal.BOT_WALL)
        self.server.hosts["paid.example", "/a.jpg"] = fixed(402, b"", crawler_price="USD 0.01")
        self.protect("paid.example", Signal.PAYMENT_REQUIRED, may_request=True)

    def _plant_terms(self) -> None:
        rules = b'[{"location": "/a", "tdm-reservation": 1}, {"location": "/", "tdm-reservation": 0}]'
        self.server.hosts["tdm.example", "/.well-known/tdmrep.json"] = fixed(200, rules)
        self._robots("tdm.example", "# rights are reserved, see /.well-known/tdmrep.json\nUser-agent: *\nAllow: /\n")
        self.protect("tdm.example", Signal.TDM_RESERVATION)
        self._free_at("tdm.example", "/b.jpg")
        for number, terms in enumerate(TERMS):
            host = f"rsl{number}.example"
            self._robots(host, f"License: http://{host}/license.xml\nUser-agent: *\nAllow: /\n")
            self.server.hosts[host, "/license.xml"] = fixed(200, RSL.format(terms).encode())
            self.protect(host, Signal.RSL)
            self._free_at(host, "/free/b.jpg")
            self.server.hosts[f"link{number}.example", "/license.xml"] = fixed(200, RSL.format(terms).encode())
            link = '</license.xml>; rel="license"; type="application/rsl+xml"'
            self.server.hosts[f"link{number}.example", "/a.jpg"] = fixed(200, JPEG, Link=link)
            self.protect(f"link{number}.example", Signal.RSL, may_request=True)

    def _plant_lists(self) -> None:
        self.listed["domains"].append("listed.example")
        self.protect("listed.example", Signal.BLOCK_LIST)
        self.protect("img.listed.example", Signal.BLOCK_LIST)
        self.listed["urls"].append("https://url.example/a.jpg")
        self.protect("url.example", Signal.BLOCK_LIST)
        self.listed["url_hashes"].append(hashlib.sha256(b"http://hashed.example/a.jpg").hexdigest())
        self.protect("hashed.example", Signal.BLOCK_LIST)
        known = picture(40, 32, seed=9)
        self.listed["image_hashes"].append(hashlib.sha256(known).hexdigest())
        self.server.hosts["known.example", "/a.jpg"] = fixed(200, known)
        self.protect("known.example", Signal.BLOCK_LIST, may_request=True)

    def _plant_free(self) -> None:
        """Pictures of sites that say nothing, or yes, or no to somebody else; some carry a yes of their own."""
        allowed = in_jpeg(JPEG, packet=data_mining("DMI-ALLOWED"))
        for path, route in (
            ("/a.jpg", fixed(200, JPEG)),
            ("/a.png", fixed(200, PNG, Content_Usage="train-ai=y", TDM_Reservation="0")),
            ("/allowed.jpg", fixed(200, allowed, X_Robots_Tag="otherbot: noai", Content_Signal="ai-train=yes")),
            ("/photo.jpg", fixed(200, JPEG, Content_Usage="train-ai=no", X_Robots_Tag="nofollow, noarchive")),
        ):
            self.server.routes[path] = route
            for host in range(FREE_HOSTS):
                for number in range(FREE_PICTURES // FREE_HOSTS // 4):
                    self.free.append(f"http://free{host}.example{path}?{number}")
        files = [text for text in FREE if "Disallow: /private/" not in text and "/a" not in text]
        for host in range(FREE_HOSTS):
            if host % 2:
                self._robots(f"free{host}.example", files[host % len(files)])

    def _free_at(self, host: str, path: str) -> None:
        self.server.hosts[host, path] = fixed(200, JPEG)
        self.free.append(f"http://{host}{path}")

    def fetch(self) -> Result:
        urls = [url for urls in (self.free, [case.url for case in self.cases]) for url in urls]
        settings = config(gateway=self.server.gateway, timeout_s=20.0)
        with Fetcher(settings, block_lists=BlockLists.read(self.listed)) as fetcher:
            return fetch(fetcher, plan_of(urls))


@pytest.fixture
def web(server: HostileServer) -> PlantedWeb:
    return PlantedWeb(server)


def test_no_protected_picture_is_kept_and_no_free_one_lost(web: PlantedWeb) -> None:
    assert len(web.cases) >= 200
    assert len(web.free) >= FREE_PICTURES
    result = web.fetch()
    rows = {row["url"]: row for row in result.table.to_pylist()}

    lost = {url: (rows[url]["reason"], rows[url]["error_message"]) for url in web.free if rows[url]["reason"]}
    assert lost == {}
    wrong = {
        (case.url, case.signal): (rows[case.url]["reason"], rows[case.url]["refused_by"])
        for case in web.cases
        if (rows[case.url]["reason"], rows[case.url]["refused_by"]) != (case.reason, case.signal)
    }
    assert wrong == {}

    asked = web.server.hits
    told_before = [case.url for case in web.cases if not case.may_request and asked[case.url.removeprefix("http://")]]
    assert told_before == []
    hosts = {name.partition("/")[0] for name in asked}
    for host in hosts:
        assert asked[f"{host}/robots.txt"] == 1
        assert asked[f"{host}/license.xml"] + asked[f"{host}/.well-known/tdmrep.json"] <= 1
    assert {host for host in hosts if asked[f"{host}/.well-known/tdmrep.json"]} <= web.hinting

    for url in web.free:
        assert rows[url]["consent_checked"] == "lists robots headers image"
    assert rows["http://free0.example/a.png?0"]["consent_said"] == (
        "content-usage: train-ai=y (header); tdm-reservation: 0 (header)"
    )
    assert rows["http://listed.example/a.jpg"]["consent_checked"] == "lists"


def test_a_plain_no_is_no_wall(server: HostileServer) -> None:
    page = b"<html><body>Forbidden</body></html>"
    for status in (403, 429, 503):
        server.routes[f"/{status}"] = fixed(status, page, Content_Type="text/html")
    result = fetch_urls([server.url(f"/{status}") for status in (403, 429, 503)])
    assert result.reasons == ["http_forbidden", "http_too_many_requests", "http_server_error"]


def test_a_host_that_turns_us_away_rests(server: HostileServer) -> None:
    server.hosts["wall.example", "/a.jpg"] = fixed(403, b"", CF_Mitigated="challenge")
    server.hosts["paid.example", "/a.jpg"] = fixed(402)
    urls = [f"http://{host}.example/a.jpg?{number}" for host in ("wall", "paid") for number in range(20)]
    with Fetcher(config(gateway=server.gateway, host_concurrency=1)) as fetcher:
        result = fetch(fetcher, plan_of(urls))
    assert sorted(result.reasons) == sorted(["bot_wall", "payment_required"] + ["host_unavailable"] * 38)
    assert sum(n for name, n in server.hits.items() if "a.jpg" in name) == 2


OFF = ("content_usage", "content_signal", "x_robots_tag", "tdm", "rsl", "image_metadata", "c2pa", "bot_walls")


def test_signals_that_are_switched_off_refuse_nothing_and_are_recorded(web: PlantedWeb) -> None:
    urls = [case.url for case in web.cases]
    consent = ConsentConfig(**dict.fromkeys(OFF, False), tdm_file="never")
    with Fetcher(config(gateway=web.server.gateway, timeout_s=20.0, consent=consent)) as fetcher:
        rows = fetch(fetcher, plan_of(urls)).table.to_pylist()
    always = {Signal.ROBOTS_TXT, Signal.ALSO_OBEY, Signal.PAYMENT_REQUIRED}
    assert {row["refused_by"] for row in rows} == always | {None}
    recorded = {Signal.CONTENT_USAGE, Signal.CONTENT_SIGNAL, Signal.X_ROBOTS_TAG, Signal.PLUS_DATA_MINING, Signal.C2PA}
    for case, row in zip(web.cases, rows, strict=True):
        if case.signal in recorded and row["refused_by"] != Signal.ALSO_OBEY:
            assert row["status"] == "success"
            assert f"{case.signal}: " in row["consent_said"]
            assert "[not heeded]" in row["consent_said"]
