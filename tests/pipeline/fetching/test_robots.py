"""robots.txt as RFC 9309 has it: the parser's input made safe, and the ways a server can answer for it."""

import tarfile
import time
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fetching import config, fetch, fetch_urls, plan_of
from support.hostile_server import DISALLOW_ALL, GOOD, ROBOTS_RESPONSES, HostileServer, fixed
from support.shared_data import SHARED

from pipeline.fetching.fetcher import Fetcher
from pipeline.fetching.outcome import FetchFailure
from pipeline.fetching.robots import LIFETIME_S, MAX_BYTES, RobotRules, RobotsCache, parse_robots
from pipeline.records import Reason

AGENT = "wit-pipeline"

FILES = {
    "": (True, True),
    "User-agent: *\nDisallow: /": (False, False),
    "User-agent: *\nDisallow: /private": (True, False),
    "User-agent: *\nDisallow:": (True, True),
    "User-agent: *\nDisallow: /\nAllow: /open": (True, False),
    "User-agent: otherbot\nDisallow: /": (True, True),
    "User-agent: wit\nDisallow: /": (True, True),
    "User-agent: wit-pipeline-plus\nDisallow: /": (True, True),
    "User-agent: WIT-Pipeline\nDisallow: /private": (True, False),
    "User-agent: wit-pipeline/1.0 (any)\nDisallow: /private": (True, False),
    "User-agent: wit-pipeline\nAllow: /\n\nUser-agent: *\nDisallow: /": (True, True),
    "User-agent: otherbot\nUser-agent: wit-pipeline\nDisallow: /private": (True, False),
    "user-agent: *\ndisallow: /*private*": (True, False),
    "\ufeffUser-agent: *\nDisallow: /": (False, False),
    "<html><body>User-agent: *\nDisallow: /</body></html>": (True, True),
    "User-agent: *bot\nDisallow: /": (True, True),
    "User-agent: *.*\nDisallow: /": (True, True),
    "User-agent: * bot\nDisallow: /private": (True, False),
    "User-agent: wit-pipeline*\nDisallow: /private": (True, False),
    "User-agent: wit-pipeline/1.0\rDisallow: /private\r": (True, False),
    "User-agent: *\rDisallow: /private\r\rUser-agent: b\rDisallow: /": (True, False),
    "User-agent: *\r\n\r\nDisallow: /private\r\n": (True, False),
    "User-agent *\nDisallow /private": (True, False),
    "User agent: *\nDissallow: /private": (True, False),
    "\xa0User-agent: *\n\xa0Disallow: /private": (True, False),
    "User-agent: * # everyone\nDisallow: /private # ours": (True, False),
    "User-agent: *\nnonsense\nUser-agent: b\nDisallow: /private": (True, False),
    "User-agent: *\nSitemap: http://e.com/s.xml\nUser-agent: b\nDisallow: /private": (True, False),
    "User-agent: *\u2028Disallow: /": (True, True),
    "User-agent: *\nDisallow: /private\nUser-agent: wit-pipeline": (True, True),
    "User-agent: wit-pipeline\nDisallow: /open\nUser-agent: b\nUser-agent: wit-pipeline\nDisallow: /private": (
        False,
        False,
    ),
    "Disallow: /": (True, True),
    "User-agent:\nDisallow: /": (True, True),
    "User-agent: a\nDisallow: /\nUser-agent: b\nDisallow: /private\nUser-agent: *\nAllow: /": (True, True),
}


@pytest.mark.parametrize("text", FILES, ids=repr)
def test_files_and_what_they_allow(text: str) -> None:
    rules = parse_robots(text.encode(), AGENT)
    allowed = (rules.allows("http://e.com/open/a.jpg"), rules.allows("http://e.com/private/a.jpg"))
    assert allowed == FILES[text]


@given(st.one_of(st.binary(max_size=500), st.text(max_size=500).map(lambda text: text.encode("utf-8", "replace"))))
def test_any_bytes_parse(body: bytes) -> None:
    rules = parse_robots(b"User-agent: *\nDisallow: /x\n" + body, AGENT)
    assert isinstance(rules.allows("http://e.com/a"), bool)
    assert rules.crawl_delay_s >= 0


@pytest.mark.parametrize(
    ("value", "delay_s"), [("2", 2), ("0.5", 0.5), ("-1", 0), ("nan", 0), ("inf", 0), ("soon", 0), ("", 0)]
)
def test_crawl_delays(value: str, delay_s: float) -> None:
    assert parse_robots(f"User-agent: *\nCrawl-delay: {value}\nDisallow: /x".encode(), AGENT).crawl_delay_s == delay_s


def test_a_file_that_is_too_long_is_cut_at_a_line() -> None:
    filler = b"# " + b"x" * 96 + b"\n"
    body = b"User-agent: *\nDisallow: /kept\n" + filler * (MAX_BYTES // len(filler) + 1) + b"Disallow: /beyond\n"
    rules = parse_robots(body, AGENT)
    assert not rules.allows("http://e.com/kept")
    assert rules.allows("http://e.com/beyond")


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
@pytest.mark.parametrize("before", ["User-agent: ", "User-agent ", "\xa0user agent:"])
def test_many_agents_with_many_rules_take_no_time(before: str, end: str) -> None:
    agents = "".join(f"{before}bot{number}{end}" for number in range(10_000))
    rules = "".join(f"Disallow: /x{number}/*/y{end}" for number in range(10_000))
    started_s = time.process_time()
    parsed = parse_robots(f"{agents}{before}*{end}{rules}".encode(), AGENT)
    assert not parsed.allows("http://e.com/x9999/z/y")
    assert parsed.allows("http://e.com/z")
    assert time.process_time() - started_s < 20  # each rule for each agent would take minutes


def test_what_is_kept_of_a_file_says_the_same() -> None:
    for text, allowed in FILES.items():
        rules = parse_robots(parse_robots(text.encode(), AGENT).text.encode(), AGENT)
        assert (rules.allows("http://e.com/open/a.jpg"), rules.allows("http://e.com/private/a.jpg")) == allowed


def test_a_large_file_is_obeyed_without_holding_the_loop(server: HostileServer) -> None:
    rules = b"User-agent: *\n" + b"".join(b"Disallow: /%d*a*a*a*a\n" % number for number in range(20_000))
    server.hosts["a.example", "/robots.txt"] = fixed(200, rules + b"Disallow: /closed\n")
    urls = ["http://a.example/ok.jpg", "http://a.example/closed/ok.jpg"]
    assert fetch_urls(urls, gateway=server.gateway, timeout_s=20).reasons == ["success", "robots_disallowed"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared test data")
def test_529_files_as_served_all_parse() -> None:
    count = refusing = 0
    with tarfile.open(SHARED / "web" / "robots_txt_529.tar.gz") as tar:
        for member in tar:
            if member.isfile():
                rules = parse_robots(tar.extractfile(member).read(), AGENT)  # type: ignore[union-attr]
                refusing += not rules.allows(f"http://{Path(member.name).stem}/images/a.jpg")
                count += 1
    assert count == 529
    assert 0 < refusing < count / 4


def test_the_cache_forgets_what_is_old_and_what_is_too_much() -> None:
    cache = RobotsCache(max_bytes=10_000)
    cache.put("http://a.example", RobotRules(AGENT), now_s=0)
    assert cache.get("http://a.example", LIFETIME_S - 1) is not None
    assert cache.get("http://a.example", LIFETIME_S + 1) is None
    failure = FetchFailure(Reason.TIMEOUT, "time was up")
    cache.put("http://b.example", RobotRules.refusing(AGENT, failure), now_s=0)
    assert cache.get("http://b.example", 1_000) is None
    for number in range(100):
        cache.put(f"http://{number}.example", RobotRules(AGENT), now_s=0)
    kept = [number for number in range(100) if cache.get(f"http://{number}.example", 1) is not None]
    assert kept == list(range(100 - len(kept), 100))
    assert 0 < len(kept) < 20


def test_every_response_for_robots_txt_has_a_meaning(server: HostileServer) -> None:
    for name, (route, _) in ROBOTS_RESPONSES.items():
        server.hosts[f"{name}.example", "/robots.txt"] = route
    urls = [f"http://{name}.example/ok.jpg?{number}" for name in ROBOTS_RESPONSES for number in range(3)]
    result = fetch_urls(urls, gateway=server.gateway)
    expected = [reason for _, reason in ROBOTS_RESPONSES.values() for _ in range(3)]
    assert result.reasons == expected
    refused = [name for name, (_, reason) in ROBOTS_RESPONSES.items() if reason != "success"]
    assert not [url for url in server.hits if url.partition(".")[0] in refused and "ok.jpg" in url]
    assert server.hits["allows.example/robots.txt"] == 1
    assert server.hits["hang.example/robots.txt"] == 1


def test_robots_txt_is_requested_first_and_retried(server: HostileServer) -> None:
    server.hosts["a.example", "/robots.txt"] = fixed(503)
    result = fetch_urls(["http://a.example/ok.jpg"], gateway=server.gateway, retries=1)
    assert result.reasons == ["robots_unreachable"]
    assert dict(server.hits) == {"a.example/robots.txt": 2}


def test_a_host_that_is_busy_for_long_is_left_alone(server: HostileServer) -> None:
    server.hosts["a.example", "/robots.txt"] = fixed(503, Retry_After="3000")
    urls = [f"http://a.example/ok.jpg?{number}" for number in range(3)]
    assert fetch_urls(urls, gateway=server.gateway, retries=3).reasons == ["host_unavailable"] * 3
    assert dict(server.hits) == {"a.example/robots.txt": 1}


def test_each_authority_has_its_own_file_and_redirects_obey_it(server: HostileServer) -> None:
    server.hosts["a.example", "/go"] = fixed(302, Location="http://b.example/ok.jpg")
    server.hosts["b.example", "/robots.txt"] = fixed(200, DISALLOW_ALL)
    server.hosts["b.example:81", "/robots.txt"] = fixed(200, b"")
    urls = ["http://a.example/go", "http://b.example:81/ok.jpg"]
    assert fetch_urls(urls, gateway=server.gateway).reasons == ["robots_disallowed", "success"]
    assert server.hits["b.example/ok.jpg"] == 0


def test_a_crawl_delay_is_kept(server: HostileServer) -> None:
    server.hosts["a.example", "/robots.txt"] = fixed(200, b"User-agent: *\nCrawl-delay: 0.6\nDisallow: /x\n")
    server.hosts["a.example", "/ok.jpg"] = fixed(200, GOOD)
    with Fetcher(config(gateway=server.gateway), workers=2) as fetcher:
        fetch(fetcher, plan_of([f"http://a.example/ok.jpg?{number}" for number in range(3)]))
    starts = server.started_s["a.example"]
    # 0.6 s apart; on a busy machine one may reach the server late and the next in time.
    assert min(later - earlier for earlier, later in pairwise(starts[1:])) >= 0.45
