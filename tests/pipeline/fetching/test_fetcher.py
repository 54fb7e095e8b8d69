"""Whole parts against a real server: every kind of response, and the laws that hold for all of them."""

import asyncio
import io
import shutil
import socket
import ssl
import subprocess
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from support.fetching import config, fetch, fetch_urls, plan_of
from support.hostile_server import GOOD, RESPONSES, HostileServer, default_routes, fixed, picture, running_server

from pipeline.fetching.fetcher import Fetcher
from pipeline.records import Reason


def test_every_kind_of_response_has_its_reason(server: HostileServer) -> None:
    result = fetch_urls([server.url(path) for path in RESPONSES])
    assert dict(zip(RESPONSES, result.reasons, strict=True)) == RESPONSES


def test_requests_carry_a_truthful_agent_and_the_contact(server: HostileServer) -> None:
    fetch_urls([server.url("/ok.jpg")], contact="mailto:you@example.org")
    assert {headers["User-Agent"] for headers in server.seen} == {
        f"wit-pipeline/{version('wit-pipeline')} (+mailto:you@example.org)"
    }


def test_each_url_is_requested_once_and_shared_by_its_pairs(server: HostileServer) -> None:
    server.routes["/gone.jpg"] = fixed(404)
    urls = [server.url(path) for path in ("/ok.jpg", "/gone.jpg", "/ok.jpg", "/ok.jpg", "/gone.jpg")]
    result = fetch_urls(urls, retries=3)
    assert result.reasons == ["success", "http_not_found", "success", "success", "http_not_found"]
    assert len(set(result.members.values())) == 1
    assert len(result.members) == 3
    assert {path.partition("/")[2]: hits for path, hits in server.hits.items()} == {
        "robots.txt": 1,
        "ok.jpg": 1,
        "gone.jpg": 1,
    }


@pytest.mark.parametrize("path", ["/500-then-ok", "/503-then-ok", "/reset-then-ok"])
def test_passing_troubles_are_retried(server: HostileServer, path: str) -> None:
    result = fetch_urls([server.url(path)], retries=2, timeout_s=5)
    assert result.reasons == ["success"]


@pytest.mark.parametrize("path", ["/404", "/403", "/410", "/noai", "/html.jpg", "/loop", "/truncated"])
def test_final_responses_are_not_requested_again(server: HostileServer, path: str) -> None:
    fetch_urls([server.url(path)], retries=3, max_redirects=0)
    assert server.hits[f"127.0.0.1:{server.port}{path}"] == 1


def test_retries_are_as_many_as_configured(server: HostileServer) -> None:
    result = fetch_urls([server.url("/500")], retries=2, timeout_s=10)
    assert result.reasons == ["http_server_error"]
    assert server.hits[f"127.0.0.1:{server.port}/500"] == 3


def test_a_wait_longer_than_the_deadline_is_not_waited_for_and_shuts_the_host(server: HostileServer) -> None:
    with Fetcher(config(retries=5)) as fetcher:
        assert fetch(fetcher, plan_of([server.url("/429-long")])).reasons == ["http_too_many_requests"]
        assert fetch(fetcher, plan_of([server.url("/ok.jpg")])).reasons == ["host_unavailable"]
    assert server.hits[f"127.0.0.1:{server.port}/429-long"] == 1


def test_a_host_that_keeps_failing_is_given_up(server: HostileServer) -> None:
    urls = [server.url(f"/500?{number}") for number in range(30)]
    result = fetch_urls(urls, host_failures=5, host_concurrency=1)
    assert result.reasons.count("http_server_error") == 5
    assert result.reasons.count("host_unavailable") == 25


def test_a_closed_port_and_a_dead_name() -> None:
    with socket.socket() as bound:  # bound, but not listening
        bound.bind(("127.0.0.1", 0))
        urls = [f"http://127.0.0.1:{bound.getsockname()[1]}/a.jpg", "http://no-such-host.invalid/a.jpg"]
        result = fetch_urls(urls, timeout_s=5)
    assert result.reasons == ["connect_failed", "dns_failed"]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*make.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    with HostileServer(default_routes()).running(tls) as server:
        result = fetch_urls([f"https://127.0.0.1:{server.port}/ok.jpg"], timeout_s=5)
    assert result.reasons == ["tls_failed"]
    assert not server.hits


@pytest.mark.parametrize("path", ["/chunked-garbage", "/endless-trailers", "/tiny-chunks"])
def test_a_bad_chunked_body_is_not_an_image(server: HostileServer, path: str) -> None:
    (reason,) = fetch_urls([server.url(path)]).reasons  # depends on where the packets are cut, and on the machine
    assert reason in {Reason.TRUNCATED, Reason.PROTOCOL_ERROR, Reason.TIMEOUT, Reason.TOO_LARGE}


TLS_ALERT = b"\x15\x03\x03\x00\x02\x02\x28"  # fatal, handshake_failure


@pytest.mark.parametrize(
    ("sent", "then_close", "outcome"),
    [
        (b"", False, ("timeout", "deadline passed in the TLS handshake")),
        (b"\x16\x03\x03\x00\x40\x02", False, ("timeout", "deadline passed in the TLS handshake")),
        (b"", True, ("tls_failed", "ConnectionResetError")),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", True, ("tls_failed", "wrong version number")),
        (TLS_ALERT, True, ("tls_failed", "sslv3 alert handshake failure")),
    ],
)
def test_failed_handshakes_have_the_library_s_reason(sent: bytes, then_close: bool, outcome: tuple[str, str]) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        await reader.read(1)
        await asyncio.sleep(0.05 if then_close else 20)
        writer.close()

    with running_server(serve) as port:
        (row,) = fetch_urls([f"https://127.0.0.1:{port}/a.jpg"]).table.to_pylist()
    assert (row["reason"], row["error_message"]) == (outcome[0], f"robots.txt: {outcome[1]}")


BAD_URLS = {
    "file:///etc/passwd": Reason.BAD_SCHEME,
    "data:image/png;base64,AAAA": Reason.BAD_SCHEME,
    "ftp://example.com/a.jpg": Reason.BAD_SCHEME,
    "": Reason.BAD_SCHEME,
    "http://": Reason.BAD_URL,
    "http://user:secret@example.com/a.jpg": Reason.BAD_URL,
    "http://127.0.0.1/a.jpg": Reason.PRIVATE_ADDRESS,
    "http://127.1:8080/a.jpg": Reason.PRIVATE_ADDRESS,
    "http://2130706433/a.jpg": Reason.PRIVATE_ADDRESS,
    "http://0x7f.1/a.jpg": Reason.PRIVATE_ADDRESS,
    "http://0177.0.0.1/a.jpg": Reason.PRIVATE_ADDRESS,
    "http://169.254.169.254/latest/meta-data/": Reason.PRIVATE_ADDRESS,
    "http://[::1]/a.jpg": Reason.PRIVATE_ADDRESS,
    "http://[::ffff:10.0.0.1]/a.jpg": Reason.PRIVATE_ADDRESS,
    "http://[fd00::1]/a.jpg": Reason.PRIVATE_ADDRESS,
    "http://localhost/a.jpg": Reason.PRIVATE_ADDRESS,
    "http://www.localhost./a.jpg": Reason.PRIVATE_ADDRESS,
}


@pytest.mark.parametrize("with_gateway", [False, True])
def test_urls_that_must_not_be_requested_are_not(server: HostileServer, with_gateway: bool) -> None:
    gateway = server.gateway if with_gateway else None
    result = fetch_urls(list(BAD_URLS), allow_private_hosts=False, contact="mailto:a@b.c", gateway=gateway)
    assert dict(zip(BAD_URLS, result.reasons, strict=True)) == BAD_URLS
    assert not server.hits


@pytest.mark.parametrize("path", ["/to-private", "/to-localhost"])
def test_redirects_to_private_addresses_are_not_followed(server: HostileServer, path: str) -> None:
    url = f"http://public.example{path}"
    result = fetch_urls([url], allow_private_hosts=False, contact="mailto:a@b.c", gateway=server.gateway)
    assert result.reasons == ["private_address"]


def test_a_gateway_gets_the_host_the_scheme_and_the_plain_path(server: HostileServer) -> None:
    server.hosts["pictures.example:8443", "/a%20b.jpg"] = fixed(200, GOOD)
    result = fetch_urls(["https://pictures.example:8443/a b.jpg?q=%7E"], gateway=server.gateway)
    assert result.reasons == ["success"]
    assert set(server.hits) == {"pictures.example:8443/robots.txt", "pictures.example:8443/a%20b.jpg?q=%7E"}
    assert {headers["X-Forwarded-Proto"] for headers in server.seen} == {"https"}


def test_without_network_and_archives_nothing_is_requested(server: HostileServer) -> None:
    assert fetch_urls([server.url("/ok.jpg")], network=False).reasons == ["not_in_archives"]
    assert not server.hits


def test_hosts_get_no_more_at_once_than_their_share(server: HostileServer) -> None:
    urls = [f"http://host{number % 3}.example/ok.jpg?{number}" for number in range(60)]
    result = fetch_urls(urls, gateway=server.gateway, host_concurrency=6, workers=3)
    assert result.reasons == ["success"] * 60
    assert max(server.most_active.values()) <= 2


def test_requests_to_one_host_keep_their_distance(server: HostileServer) -> None:
    urls = [f"http://host{number % 2}.example/ok.jpg?{number}" for number in range(8)]
    fetch_urls(urls, gateway=server.gateway, host_interval_s=0.3, workers=2)
    for starts in server.started_s.values():
        assert len(starts) == 5  # robots.txt and four images; no other worker has URLs of these hosts
        # 0.3 s apart; on a busy machine one may reach the server late and the next in time.
        assert min(later - earlier for earlier, later in pairwise(starts)) >= 0.18


def test_a_slow_host_does_not_hold_up_the_others(server: HostileServer) -> None:
    slow = [f"http://slow.example/hang?{number}" for number in range(50)]
    fast = [f"http://fast{number}.example/ok.jpg" for number in range(50)]
    server.hosts["slow.example", "/robots.txt"] = fixed(200, b"User-agent: *\nCrawl-delay: 1000000\n")
    with Fetcher(config(gateway=server.gateway, concurrency=4, host_concurrency=2)) as fetcher:
        result = fetch(fetcher, plan_of(slow + fast))
    assert result.reasons[50:] == ["success"] * 50
    assert result.reasons[:50] == ["host_unavailable"] * 50


def test_memory_waits_on_disk_and_several_parts_share_a_fetcher(server: HostileServer) -> None:
    server.routes["/big.png"] = fixed(200, picture(900, 700, image_format="PNG") + bytes(2 << 20))
    with Fetcher(config(max_bytes=5_000_000)) as fetcher:
        for _ in range(2):
            result = fetch(fetcher, plan_of([server.url("/big.png"), server.url("/ok.jpg")]))
            assert result.reasons == ["success", "success"]
    assert server.hits[f"127.0.0.1:{server.port}/robots.txt"] == 1


def test_an_empty_part_is_a_part(server: HostileServer) -> None:
    assert fetch_urls([]).members == {}


def test_images_are_stored_shrunk_with_their_facts(server: HostileServer) -> None:
    server.routes["/wide.jpg"] = fixed(200, picture(1200, 600))
    result = fetch_urls([server.url("/wide.jpg")])
    (jpeg,) = result.members.values()
    assert Image.open(io.BytesIO(jpeg)).size == (512, 256)
    (row,) = result.table.to_pylist()
    assert (row["width"], row["height"], row["original_width"], row["original_height"]) == (512, 256, 1200, 600)
    assert row["http_status"] == 200


QUICK = sorted(path for path, reason in RESPONSES.items() if reason not in (Reason.TIMEOUT, Reason.TOO_LARGE))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(QUICK), st.integers(0, 2)), max_size=30))
def test_rows_out_are_rows_in_whatever_the_mixture(
    server: HostileServer, requested: list[tuple[str, str, int]]
) -> None:
    server.routes["/500-then-ok"] = fixed(500)
    urls = [f"http://{host}.example{path}?{number}" for host, path, number in requested]
    captions = [f"{number}" for number in range(len(urls))]
    with Fetcher(config(gateway=server.gateway)) as fetcher:
        result = fetch(fetcher, plan_of(urls, captions))
    assert result.reasons == [RESPONSES[path] for _, path, _ in requested]


def test_the_bytes_do_not_depend_on_which_host_responds_first(server: HostileServer) -> None:
    for number in range(12):
        server.routes[f"/{number}.jpg"] = fixed(200, picture(300, 280, seed=number))
    urls = [f"http://host{number % 4}.example/{number}.jpg" for number in range(12)]
    results = [
        fetch_urls(urls, gateway=server.gateway, concurrency=concurrency, host_concurrency=concurrency)
        for concurrency in (1, 3, 16)
    ]
    assert results[0].tar == results[1].tar == results[2].tar
    assert results[0].table.equals(results[1].table)
    assert results[0].table.equals(results[2].table)
