"""Signed requests: a host can know who asks, and admit us (Web Bot Auth; RFC 9421 with Ed25519).

    Signature-Agent: sig1="https://example.org/.well-known/http-message-signatures-directory"
    Signature-Input: sig1=("@authority" "@method" "@path" "signature-agent";key="sig1");created=...;tag="web-bot-auth"
    Signature: sig1=:...:

The private key is read by each process that sends requests, and goes nowhere else. Its public half stands at the URL in
`Signature-Agent`, where the operator publishes it: `directory` is the file.
"""

import base64
import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import fsspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from pipeline.config.fetch import FetchConfig
from pipeline.errors import ConfigError, one_line
from pipeline.fetching.addresses import Target
from pipeline.paths import resolve_path

PROTOCOL_DRAFT = "draft-ietf-webbotauth-httpsig-protocol-01"
DIRECTORY_PATH = "/.well-known/http-message-signatures-directory"
DIRECTORY_TYPE = "application/http-message-signatures-directory+json"

_LIFETIME = timedelta(minutes=1)  # within it, who sees a request can send it again
_NONCE_BYTES = 64
_LABEL = "sig1"
_KEY_OF_THE_RFC = "poqkLGiymh_W0uP6PZFw-dvez3QJT5SolqXBCW38r0U"  # RFC 9421 section B.1.4: everybody has it

Covered = Sequence[tuple[str, str]]
"""Component identifiers of RFC 9421 section 2, as they stand in Signature-Input, with their values."""


@dataclass(frozen=True)
class SigningKey:
    """Where the private key is and the URL of its directory; workers receive this, and read the key themselves."""

    path: str
    agent: str

    def open(self) -> "Signer":
        """Read the key.

        Raises:
            ConfigError: it is not a usable private key.
        """
        try:
            with fsspec.open(self.path, "rb") as file:
                encoded = file.read()
        except Exception as error:  # any error of a store: missing package, credentials or network
            raise ConfigError(f"fetch.signature_key: {self.path} cannot be read: {one_line(error)}") from None
        try:
            key = load_pem_private_key(encoded, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):  # their messages may quote the file
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError(
                f"fetch.signature_key: {self.path} is not an Ed25519 private key in PEM form without a password: "
                "make one with `openssl genpkey -algorithm ed25519 -out key.pem`"
            )
        if thumbprint(key) == _KEY_OF_THE_RFC:
            raise ConfigError(f"fetch.signature_key: {self.path} is the published test key of RFC 9421: make another")
        return Signer(key, self.agent)


def find_signing_key(config: FetchConfig, base_dir: Path) -> SigningKey | None:
    """Return the key of the config, None if requests are not signed."""
    if config.signature_key is None or config.signature_agent is None:
        return None
    return SigningKey(resolve_path(config.signature_key, base_dir), config.signature_agent)


def open_signer(config: FetchConfig, base_dir: Path) -> "Signer | None":
    """Return the signer of the config, None if requests are not signed.

    Raises:
        ConfigError: the key cannot be read.
    """
    found = find_signing_key(config, base_dir)
    return None if found is None else found.open()


class Signer:
    """Signs requests with one key."""

    def __init__(self, key: Ed25519PrivateKey, agent: str) -> None:
        self._key = key
        self._key_id = thumbprint(key)
        self._agent = agent

    def headers(self, target: Target, now: datetime, method: str = "GET") -> dict[str, str]:
        """Return the headers that sign a request for `target`."""
        agent = f'"{self._agent}"'
        covered = [
            ('"@authority"', target.authority),
            ('"@method"', method),
            ('"@path"', target.path.partition("?")[0]),
            (f'"signature-agent";key="{_LABEL}"', agent),
        ]
        nonce = base64.b64encode(secrets.token_bytes(_NONCE_BYTES)).decode()
        parameters = self._parameters(now, _LIFETIME) | {"alg": "ed25519", "nonce": nonce, "tag": "web-bot-auth"}
        return {"Signature-Agent": f"{_LABEL}={agent}"} | sign(self._key, _LABEL, covered, parameters)

    def directory(self) -> str:
        """Return the public keys as a JSON Web Key Set (RFC 7517), one line without an end."""
        public = _public_jwk(self._key)
        ordered = {name: public[name] for name in ("kty", "crv")} | {
            "kid": self._key_id,
            "x": public["x"],
            "use": "sig",
        }
        return json.dumps({"keys": [ordered]}, separators=(",", ":"))

    def directory_headers(self, now: datetime, lifetime: timedelta) -> dict[str, str]:
        """Return the headers with which a server sends `directory()`: they prove that its host has the key."""
        digest = base64.b64encode(hashlib.sha256(self.directory().encode()).digest()).decode()
        content_digest = f"sha-256=:{digest}:"
        covered = [('"@authority";req', urlsplit(self._agent).netloc), ('"content-digest"', content_digest)]
        parameters = self._parameters(now, lifetime) | {"tag": "http-message-signatures-directory"}
        signed = sign(self._key, "binding", covered, parameters)
        return {"Content-Type": DIRECTORY_TYPE, "Content-Digest": content_digest} | signed

    def _parameters(self, now: datetime, lifetime: timedelta) -> dict[str, int | str]:
        created = int(now.timestamp())
        return {"created": created, "expires": created + int(lifetime.total_seconds()), "keyid": self._key_id}


def sign(key: Ed25519PrivateKey, label: str, covered: Covered, parameters: Mapping[str, int | str]) -> dict[str, str]:
    """Return Signature-Input and Signature (RFC 9421 section 3.1). Values must not contain quotes or backslashes."""
    names = " ".join(name for name, _ in covered)
    ending = "".join(
        f";{name}={value}" if isinstance(value, int) else f';{name}="{value}"' for name, value in parameters.items()
    )
    inputs = f"({names}){ending}"
    base = "".join(f"{name}: {value}\n" for name, value in covered) + f'"@signature-params": {inputs}'
    signature = base64.b64encode(key.sign(base.encode("ascii"))).decode()
    return {"Signature-Input": f"{label}={inputs}", "Signature": f"{label}=:{signature}:"}


def thumbprint(key: Ed25519PrivateKey) -> str:
    """Return the SHA-256 of the public key as a JSON Web Key (RFC 7638, RFC 8037 section A.3), in base64url."""
    canonical = json.dumps(_public_jwk(key), sort_keys=True, separators=(",", ":"))
    return _base64url(hashlib.sha256(canonical.encode()).digest())


def _public_jwk(key: Ed25519PrivateKey) -> dict[str, str]:
    raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return {"crv": "Ed25519", "kty": "OKP", "x": _base64url(raw)}


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
