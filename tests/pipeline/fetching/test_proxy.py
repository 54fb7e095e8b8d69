"""`fetch.proxy`: requests go through it, addresses are checked where they can be, and its password is nowhere."""

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
from pydantic import ValidationError
from support.dns_server import DnsServer, serve_dns
from support.fetching import config, fetch_urls
from support.hostile_server import HostileServer, fixed, picture
from support.proxy_server import ProxyServer

from pipeline.config import ConfigError, load_config
from pipeline.config.fetch import DnsConfig, FetchConfig, ProxyConfig
from pipeline.errors import NetworkError, UserError
from pipeline.fetching import network_probe

PASSWORD = "me:s3cret-of-the-proxy"


@pytest.fixture
def web():
    with HostileServer({"/a.jpg": fixed(200, picture()), "/robots.txt": fixed(404)}).running() as server:
        yield server


def through(**proxies: object) -> ProxyConfig:
    return ProxyConfig.model_validate(proxies)


def test_http_goes_through_the_proxy_with_its_password(web: HostileServer) -> None:
    with ProxyServer({"photos.example": web.port, "other.example": web.port}, PASSWORD).running() as proxy:
        urls = ["http://photos.example/a.jpg", "http://other.example/a.jpg", "http://other.example/none.jpg"]
        result = fetch_urls(urls, proxy=through(http=proxy.url(PASSWORD)))
    assert result.reasons == ["success", "success", "http_not_found"]
    assert "GET http://photos.example/robots.txt HTTP/1.1" in proxy.asked
    assert len(proxy.asked) == 5


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_https_is_a_tunnel_and_certificates_are_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=photos -addext subjectAltName=DNS:photos.example"
    )
    subprocess.run([*make.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    trusted = ssl.create_default_context(cafile=str(certificate))
    monkeypatch.setattr("aiohttp.connector._SSL_CONTEXT_VERIFIED", trusted)
    routes = {"/a.jpg": fixed(200, picture()), "/robots.txt": fixed(404)}
    with HostileServer(routes).running(tls) as web:
        names = {"photos.example": web.port, "wrong.example": web.port}
        with ProxyServer(names, PASSWORD).running() as proxy:
            urls = ["https://photos.example/a.jpg", "https://wrong.example/a.jpg"]
            result = fetch_urls(urls, proxy=through(https=proxy.url(PASSWORD)), timeout_s=5)
    assert result.reasons == ["success", "tls_failed"]
    assert {line.split(" ")[0] for line in proxy.asked} == {"CONNECT"}
    assert set(web.hits) == {"photos.example/a.jpg", "photos.example/robots.txt"}


def test_only_the_schemes_that_are_named_and_no_variable_of_the_environment(
    web: HostileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ProxyServer({}).running() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "https_proxy"):
            monkeypatch.setenv(name, proxy.url())
        assert fetch_urls([web.url("/a.jpg")]).reasons == ["success"]
        assert fetch_urls([web.url("/a.jpg")], proxy=through(https=proxy.url())).reasons == ["success"]
    assert proxy.asked == []


def test_a_variable_that_is_named_is_read(web: HostileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with ProxyServer({"photos.example": web.port}, PASSWORD).running() as proxy:
        monkeypatch.setenv("OUR_PROXY", proxy.url(PASSWORD))
        result = fetch_urls(["http://photos.example/a.jpg"], proxy=through(http="env:OUR_PROXY"))
    assert result.reasons == ["success"]
    for value, words in (("", "is not set"), ("socks5://x", "has no such value")):
        monkeypatch.setenv("OUR_PROXY", value)
        with pytest.raises(ConfigError, match=words):
            config(proxy=through(http="env:OUR_PROXY")).check_contact()


def test_addresses_are_checked_before_the_proxy_is_asked(web: HostileServer) -> None:
    names: dict[str, list[str] | int] = {"inside.example": ["10.0.0.7"], "photos.example": ["198.41.0.4"]}
    urls = [
        "http://inside.example/a.jpg",
        "http://missing.example/a.jpg",
        "http://photos.example/a.jpg",
        "http://127.0.0.1/a.jpg",
        "http://localhost/a.jpg",
        "http://169.254.169.254/latest",
    ]
    ports = {"photos.example": web.port, "inside.example": web.port, "missing.example": web.port}
    with serve_dns(DnsServer(names)) as dns, ProxyServer(ports).running() as proxy:
        settings = {
            "allow_private_hosts": False,
            "contact": "mailto:test@example.org",
            "dns": DnsConfig(servers=[dns.address]),
        }
        checked = fetch_urls(urls, proxy=through(http=proxy.url()), **settings)
        refused = ["private_address"] * 3
        assert checked.reasons == ["private_address", "dns_failed", "success", *refused]
        assert all("photos.example" in line for line in proxy.asked)
        passed = fetch_urls(urls, proxy=through(http=proxy.url(), checks_addresses=False), **settings)
        assert passed.reasons == ["success", "success", "success", *refused]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_refused_password_stops_the_part_in_one_line(scheme: str) -> None:
    with ProxyServer({}, PASSWORD).running() as proxy, pytest.raises(UserError, match=r"407") as caught:
        fetch_urls([f"{scheme}://photos.example/a.jpg"], proxy=through(**{scheme: proxy.url("me:wrong-one")}))
    assert "\n" not in str(caught.value)
    assert "wrong-one" not in str(caught.value)


def test_a_proxy_that_is_away_costs_no_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_probe, "PAUSES_S", (0.01, 0.01))
    with ProxyServer({}).running() as proxy:
        pass
    with pytest.raises(NetworkError):
        fetch_urls(["http://photos.example/a.jpg"], proxy=through(http=proxy.url(PASSWORD)))


def test_what_the_proxy_cannot_reach_has_a_reason() -> None:
    with ProxyServer({}, status=502).running() as proxy:
        table = fetch_urls(["https://photos.example/a.jpg"], proxy=through(https=proxy.url())).table
    assert table["reason"].to_pylist() == ["connect_failed"]
    assert table["error_message"].to_pylist() == ["robots.txt: the proxy responds with status 502"]


def test_the_password_is_in_no_text_and_the_proxy_in_no_digest() -> None:
    plain = FetchConfig()
    proxied = FetchConfig(proxy=through(http=f"http://{PASSWORD}@proxy.example:3128"))
    assert proxied.content() == plain.content()
    for text in (repr(proxied), str(proxied), proxied.model_dump_json(), str(proxied.model_dump())):
        assert "s3cret" not in text


@pytest.mark.parametrize(
    "line",
    [
        f'http = "{PASSWORD}@proxy.example:3128"',
        f'http = "socks5://{PASSWORD}@proxy.example:3128"',
        f'https = "https://{PASSWORD}@proxy.example"',
        f'http = "http://{PASSWORD}@proxy.example:3128/path"',
        f'http = "http://{PASSWORD}@"',
        "http = 3128",
    ],
)
def test_wrong_proxies_are_one_line_without_their_password(tmp_path: Path, line: str) -> None:
    (tmp_path / "wit.toml").write_text(
        'workspace = "work"\n[allowlist]\npath = "q.parquet"\n[[sources]]\nkind = "url-table"\npaths = ["u.parquet"]\n'
        f"[fetch.proxy]\n{line}\n"
    )
    with pytest.raises(ConfigError, match=r"fetch\.proxy\.https?") as caught:
        load_config(tmp_path / "wit.toml")
    assert "\n" not in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_gateway_and_a_proxy_are_one_too_many() -> None:
    with pytest.raises(ValidationError, match="remove one of them"):
        FetchConfig(gateway="http://127.0.0.1:1", proxy=through(http="http://127.0.0.1:2"))
