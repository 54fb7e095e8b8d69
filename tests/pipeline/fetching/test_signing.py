"""Signed requests: the vectors of RFC 9421 and of the Web Bot Auth draft, and a server that verifies."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import http_sf
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from support.fetching import config, fetch, plan_of
from support.hostile_server import HostileServer, fixed, picture, server

from pipeline.cli.main import main
from pipeline.config.fetch import FetchConfig
from pipeline.errors import ConfigError
from pipeline.fetching.fetcher import Fetcher
from pipeline.fetching.signing import Signer, SigningKey, sign, thumbprint

__all__ = ["server"]


def unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


# RFC 9421 section B.1.4: the key as a JSON Web Key.
RFC_KEY = Ed25519PrivateKey.from_private_bytes(unpadded("n4Ni-HpISpVObnQMW0wOhCKROaIKqKtW_2ZYb2p9KcU"))
RFC_THUMBPRINT = "poqkLGiymh_W0uP6PZFw-dvez3QJT5SolqXBCW38r0U"
OWN_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
AGENT = "https://crawler.example/keys.json"
NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


def test_the_vector_of_rfc_9421_section_b_2_6() -> None:
    covered = [
        ('"date"', "Tue, 20 Apr 2021 02:07:55 GMT"),
        ('"@method"', "POST"),
        ('"@path"', "/foo"),
        ('"@authority"', "example.com"),
        ('"content-type"', "application/json"),
        ('"content-length"', "18"),
    ]
    assert sign(RFC_KEY, "sig-b26", covered, {"created": 1618884473, "keyid": "test-key-ed25519"}) == {
        "Signature-Input": 'sig-b26=("date" "@method" "@path" "@authority" "content-type" "content-length")'
        ';created=1618884473;keyid="test-key-ed25519"',
        "Signature": "sig-b26=:wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw"
        "==:",
    }


def test_the_thumbprint_is_that_of_the_draft() -> None:
    assert thumbprint(RFC_KEY) == RFC_THUMBPRINT


# draft-ietf-webbotauth-httpsig-protocol, appendix of test vectors, "EdDSA Using Curve edwards25519".
NONCE = "n9p433xm+NJ3ph3upfBIGmsuwHw387YV7Q/F+6BSpGCVjYCqQw6rznNA8PVVLySrAWsv0hQtFioQb6E1YsauiA=="
LEGACY_NONCE = "e8N7S2MFd/qrd6T2R3tdfAuuANngKI7LFtKYI/vowzk4lAZYadIX6wW25MwG7DCT9RUKAJ0qVkU0mEeLElW1qg=="


@pytest.mark.parametrize(
    ("component", "expires", "nonce", "signature"),
    [
        (
            '"signature-agent";key="sig2"',
            4889289600,
            NONCE,
            "CGokAoY/FrPpyuzTe1Fb2kLTAH9Idw6qSFd1+D77r1firsMRCxeuLu5e6O+ek3zQgDMAzjiXtLVfqE00xnABCQ==",
        ),
        (
            '"signature-agent"',
            1735693200,
            LEGACY_NONCE,
            "jdq0SqOwHdyHr9+r5jw3iYZH6aNGKijYp/EstF4RQTQdi5N5YYKrD+mCT1HA1nZDsi6nJKuHxUi/5Syp3rLWBA==",
        ),
    ],
)
def test_the_vectors_of_the_draft(component: str, expires: int, nonce: str, signature: str) -> None:
    covered = [('"@authority"', "example.com"), (component, '"https://signature-agent.test"')]
    parameters = {"created": 1735689600, "keyid": RFC_THUMBPRINT, "alg": "ed25519", "expires": expires}
    parameters |= {"nonce": nonce, "tag": "web-bot-auth"}
    assert sign(RFC_KEY, "sig2", covered, parameters)["Signature"] == f"sig2=:{signature}:"


def test_the_directory_of_the_draft() -> None:
    signer = Signer(RFC_KEY, "https://signature-agent.test")
    created = datetime.fromtimestamp(1735689600, UTC)
    lifetime = datetime.fromtimestamp(4889289600, UTC) - created
    assert signer.directory_headers(created, lifetime) == {
        "Content-Type": "application/http-message-signatures-directory+json",
        "Content-Digest": "sha-256=:CADMT2aBdV/rqQr/NIru64ERQkCobVvllA4V0fLFDu0=:",
        "Signature-Input": 'binding=("@authority";req "content-digest");created=1735689600;expires=4889289600'
        f';keyid="{RFC_THUMBPRINT}";tag="http-message-signatures-directory"',
        "Signature": "binding=:l6P8R67tm3kujAxbHWio7ll01qrEZ0dKD/WWlGhNYEmTnFZM8Wt0VQ9zqGfvo7T/UMkBxsigzChM1Gpz7gOVBg"
        "==:",
    }


def public_keys(directory: str) -> dict[str, Ed25519PublicKey]:
    """Return the keys of a published directory by their thumbprints, calculated here."""
    found = {}
    for jwk in json.loads(directory)["keys"]:
        canonical = json.dumps({name: jwk[name] for name in ("crv", "kty", "x")}, separators=(",", ":"))
        digest = hashlib.sha256(canonical.encode()).digest()
        found[base64.urlsafe_b64encode(digest).decode().rstrip("=")] = Ed25519PublicKey.from_public_bytes(
            unpadded(jwk["x"])
        )
    return found


def verify(headers: Mapping[str, str], path: str, keys: Mapping[str, Ed25519PublicKey]) -> dict[str, object]:
    """Verify a request as a server does, from what came over the wire; return the parameters of its signature.

    Raises:
        InvalidSignature: it is not what was signed.
    """
    ((label, (items, parameters)),) = http_sf.parse(headers["Signature-Input"].encode(), tltype="dictionary").items()
    ((signed_label, (signature, _)),) = http_sf.parse(headers["Signature"].encode(), tltype="dictionary").items()
    agents = http_sf.parse(headers["Signature-Agent"].encode(), tltype="dictionary")
    assert signed_label == label
    values = {"@authority": headers["Host"].lower(), "@method": "GET", "@path": path.partition("?")[0]}
    lines = []
    for name, about in items:
        value = http_sf.ser(agents[about["key"]][0]) if name == "signature-agent" else values[name]
        key = "".join(f';{one}="{other}"' for one, other in about.items())
        lines.append(f'"{name}"{key}: {value}')
    lines.append(f'"@signature-params": {headers["Signature-Input"].partition("=")[2]}')
    keys[parameters["keyid"]].verify(signature, "\n".join(lines).encode())
    return {**parameters, "covered": [name for name, _ in items], "agent": agents[label][0]}


def test_a_server_can_verify_every_request(server: HostileServer) -> None:
    server.hosts["one.example", "/robots.txt"] = fixed(
        200, b"# see /.well-known/tdmrep.json\nUser-agent: *\nAllow: /\n"
    )
    server.hosts["one.example", "/a.jpg"] = fixed(302, Location="http://two.example:8080/b%20c.jpg?size=1&x")
    server.hosts["two.example:8080", "/b%20c.jpg"] = fixed(200, picture(64, 48))
    signer = Signer(OWN_KEY, AGENT)
    with Fetcher(config(gateway=server.gateway), signer=signer) as fetcher:
        assert fetch(fetcher, plan_of(["http://one.example/a.jpg"])).reasons == ["success"]
    keys = public_keys(signer.directory())
    asked = [name.partition("/") for name in server.hits]
    assert [host for host, _, _ in asked] == ["one.example"] * 3 + ["two.example:8080"] * 2
    nonces = set()
    for headers, (host, slash, path) in zip(server.seen, asked, strict=True):
        assert headers["Host"] == host
        found = verify(headers, slash + path, keys)
        assert (found["tag"], found["alg"], found["agent"]) == ("web-bot-auth", "ed25519", AGENT)
        assert found["covered"] == ["@authority", "@method", "@path", "signature-agent"]
        created, expires = found["created"], found["expires"]
        assert isinstance(created, int)
        assert isinstance(expires, int)
        assert abs(datetime.now(UTC).timestamp() - created) < 3_600
        assert 0 < expires - created <= 300
        nonces.add(found["nonce"])
        for other in ({"Host": "three.example"}, {"Signature-Agent": 'sig1="https://other.example"'}):
            with pytest.raises(InvalidSignature):
                verify({**headers, **other}, slash + path, keys)
        with pytest.raises(InvalidSignature):
            verify(headers, "/other.jpg", keys)
    assert len(nonces) == len(asked)


def test_without_a_key_nothing_is_signed(server: HostileServer) -> None:
    server.routes["/a.jpg"] = fixed(200, picture(64, 48))
    with Fetcher(config(gateway=server.gateway)) as fetcher:
        fetch(fetcher, plan_of(["http://one.example/a.jpg"]))
    assert not [name for headers in server.seen for name in headers if name.lower().startswith("signature")]


def pem(key: Ed25519PrivateKey, password: bytes | None = None) -> bytes:
    how = NoEncryption() if password is None else BestAvailableEncryption(password)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how)


OTHER_KEYS = {
    "empty": b"",
    "text": b"secret words",
    "public": OWN_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    "password": pem(OWN_KEY, b"secret"),
    "rsa": generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    "damaged": pem(OWN_KEY).replace(b"MC4C", b"MC4D"),
    "of the RFC": pem(RFC_KEY),
}


@pytest.mark.parametrize("name", OTHER_KEYS)
def test_other_keys_are_refused_in_one_line_that_does_not_show_them(name: str, tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(OTHER_KEYS[name])
    with pytest.raises(
        ConfigError, match=r"^fetch.signature_key: .*key\.pem is (not an Ed25519|the published)"
    ) as told:
        SigningKey(str(path), AGENT).open()
    assert "\n" not in str(told.value)
    assert not [word for word in re.findall(rb"[^\s-]{6,}", OTHER_KEYS[name]) if word.decode() in str(told.value)]


def test_a_key_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        SigningKey(str(tmp_path / "none.pem"), AGENT).open()


def test_the_key_needs_its_agent() -> None:
    for half in ({"signature_key": "key.pem"}, {"signature_agent": AGENT}):
        with pytest.raises(ValueError, match="belong together"):
            FetchConfig(**half)


def test_signing_changes_no_image_and_is_not_in_the_recipe() -> None:
    signed = config(signature_key="key.pem", signature_agent=AGENT)
    assert signed.content() == config().content()
    assert "signature" not in json.dumps(signed.content())


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "key.pem").write_bytes(pem(OWN_KEY))
    path = tmp_path / "wit.toml"
    path.write_text(
        f"""workspace = "work"
[allowlist]
path = "queries.parquet"
[[sources]]
kind = "wat"
paths = ["x"]
[fetch]
contact = "mailto:you@example.org"
signature_key = "key.pem"
signature_agent = "{AGENT}"
"""
    )
    return path


def test_the_command_prints_what_is_to_be_published(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["consent", "directory", "-c", str(project)]) == 0
    directory = capsys.readouterr().out
    assert directory == Signer(OWN_KEY, AGENT).directory()
    assert list(public_keys(directory)) == [thumbprint(OWN_KEY)]
    assert '"d"' not in directory

    assert main(["consent", "directory", "--headers", "30", "-c", str(project)]) == 0
    headers = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    digest = base64.b64encode(hashlib.sha256(directory.encode()).digest()).decode()
    assert headers["Content-Digest"] == f"sha-256=:{digest}:"
    ((_, parameters),) = http_sf.parse(headers["Signature-Input"].encode(), tltype="dictionary").values()
    assert timedelta(seconds=parameters["expires"] - parameters["created"]) == timedelta(days=30)


@pytest.mark.parametrize("days", ["0", "367"])
def test_a_directory_is_signed_for_a_year_at_most(project: Path, days: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["consent", "directory", "--headers", days, "-c", str(project)]) != 0
    assert "must be 1 to 366 days" in capsys.readouterr().err


def test_the_command_without_a_key_says_what_to_set(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = project.read_text().splitlines()
    project.write_text("\n".join(line for line in lines if not line.startswith("signature")))
    assert main(["consent", "directory", "-c", str(project)]) != 0
    assert "set fetch.signature_key" in capsys.readouterr().err
