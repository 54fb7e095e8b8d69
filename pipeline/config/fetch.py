"""`[fetch]` and its tables: how images are requested, looked up, refused and stored."""

import os
import re
from difflib import get_close_matches
from ipaddress import ip_address
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from pipeline.config.table import Count, Table
from pipeline.errors import ConfigError

_SWITCHES = {
    "content-usage": "content_usage",
    "content-signal": "content_signal",
    "x-robots-tag": "x_robots_tag",
    "tdm-reservation": "tdm",
    "rsl": "rsl",
    "plus-data-mining": "image_metadata",
    "c2pa": "c2pa",
    "bot-wall": "bot_walls",
}
"""Signal of `pipeline.consent.policy` -> the key of `[fetch.consent]` that switches it off."""


class ConsentConfig(Table):
    """`[fetch.consent]`: the opt-out signals that are obeyed. robots.txt always is."""

    content_usage: bool = True
    content_signal: bool = True
    x_robots_tag: bool = True
    tdm: bool = True
    tdm_file: Literal["hinted", "always", "never"] = "hinted"
    rsl: bool = True
    image_metadata: bool = True
    c2pa: bool = True
    bot_walls: bool = True
    pages: bool = True
    block_domains: tuple[str, ...] = Field(default=(), strict=False)
    block_urls: tuple[str, ...] = Field(default=(), strict=False)
    block_url_hashes: tuple[str, ...] = Field(default=(), strict=False)
    block_image_hashes: tuple[str, ...] = Field(default=(), strict=False)

    def reads(self, signal: str) -> bool:
        """Return whether a signal of `pipeline.consent.policy` is obeyed."""
        key = _SWITCHES.get(signal)
        return key is None or bool(getattr(self, key))

    @property
    def block_lists(self) -> dict[str, tuple[str, ...]]:
        """Return the files of the block lists by their kind."""
        return {kind: getattr(self, f"block_{kind}") for kind in ("domains", "urls", "url_hashes", "image_hashes")}


class HostConfig(Table):
    """`[[fetch.hosts]]`: limits of the hosts that `match` names. For each key the first entry that sets it counts."""

    match: Annotated[str, Field(pattern=r"^(\*|(\*\.)?[a-z0-9_-][a-z0-9._-]*|\[[0-9a-f:.]+\])$")]
    interval_s: Annotated[float, Field(ge=0, le=3_600)] | None = None
    concurrency: Annotated[int, Field(ge=1, le=1_000)] | None = None
    max_pairs: Count | None = None

    def matches(self, host: str) -> bool:
        """Return whether the entry is about a host: its name, `*.` and the end of its name, or `*`."""
        if self.match.startswith("*"):
            return host.endswith(self.match[1:])
        return host == self.match


class DnsConfig(Table):
    """`[fetch.dns]`: how host names are looked up."""

    servers: tuple[str, ...] = Field(default=(), strict=False)  # those of the system, if there are none
    timeout_s: Annotated[float, Field(gt=0, le=60)] = 2.0
    tries: Annotated[int, Field(ge=1, le=10)] = 3
    concurrency: Annotated[int, Field(ge=1, le=10_000)] = 128
    min_ttl_s: Annotated[float, Field(ge=0, le=86_400)] = 60.0
    max_ttl_s: Annotated[float, Field(ge=0, le=86_400)] = 3_600.0
    negative_ttl_s: Annotated[float, Field(ge=0, le=86_400)] = 300.0
    cache_names: Annotated[int, Field(ge=1, le=100_000_000)] = 100_000

    @field_validator("servers")
    @classmethod
    def _servers_are_addresses(cls, servers: tuple[str, ...]) -> tuple[str, ...]:
        for server in servers:
            parts = _SERVER.fullmatch(server)
            try:
                ip_address(parts["host"].strip("[]") if parts is not None else "")
            except ValueError:
                raise ValueError(f"{server!r} is not an IP address, with or without a port") from None
            if parts is not None and parts["port"] is not None and not 0 < int(parts["port"]) < 65_536:
                raise ValueError(f"{server!r} has no valid port")
        return servers

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Self:
        if self.min_ttl_s > self.max_ttl_s:
            raise ValueError(f"min_ttl_s = {self.min_ttl_s:g} is more than max_ttl_s = {self.max_ttl_s:g}")
        return self


class ProxyConfig(Table):
    """`[fetch.proxy]`: the HTTP proxies that requests go through, by the scheme of their URL.

    Each is http://HOST:PORT, with http://USER:PASSWORD@ if it requires them, or env:NAME, an environment variable that
    has such a value.
    """

    http: SecretStr | None = None
    https: SecretStr | None = None
    checks_addresses: bool = True

    @field_validator("http", "https", mode="before")
    @classmethod
    def _is_proxy(cls, value: object) -> object:
        if isinstance(value, str) and not value.startswith(_FROM_ENVIRONMENT) and not _is_proxy_url(value):
            raise ValueError(_PROXY_FORM)
        return value

    def url(self, scheme: str) -> str | None:
        """Return the proxy for URLs of a scheme, with its password.

        Raises:
            ConfigError: the environment variable has none.
        """
        value = {"http": self.http, "https": self.https}[scheme]
        if value is None or not value.get_secret_value().startswith(_FROM_ENVIRONMENT):
            return None if value is None else value.get_secret_value()
        name = value.get_secret_value().removeprefix(_FROM_ENVIRONMENT)
        found = os.environ.get(name, "")
        if not _is_proxy_url(found):
            state = "has no such value" if found else "is not set"
            raise ConfigError(f'fetch.proxy.{scheme} = "env:{name}": this variable {state}; a proxy {_PROXY_FORM}')
        return found


_FROM_ENVIRONMENT = "env:"
_PROXY_FORM = "must be http://HOST:PORT, http://USER:PASSWORD@HOST:PORT or env:NAME"


def _is_proxy_url(text: str) -> bool:
    scheme, _, rest = text.removesuffix("/").partition("://")
    user, _, server = rest.rpartition("@")
    return scheme == "http" and not set(user) & set("/?#@ ") and _is_server(f"http://{server}")


_SERVER = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[0-9.]+|[0-9a-fA-F:.]+)(?::(?P<port>[0-9]{1,5}))?")
_CRAWLER_PRESET = "ai-crawlers"  # in fetch.also_obey: the tokens of pipeline/consent/ai_crawlers.toml


class FetchConfig(Table):
    """`[fetch]`: how images are requested and stored."""

    parts: Annotated[int, Field(ge=1, le=1_000_000)] | None = None  # None: by the plan's size
    contact: str | None = None
    agent: Annotated[str, Field(pattern=r"^[A-Za-z_-]+$")] = "wit-pipeline"  # the robots.txt product token
    also_obey: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9_. -]+$")], ...] = Field(
        default=("ai-crawlers",), strict=False
    )
    consent: ConsentConfig = ConsentConfig()
    signature_key: str | None = None
    signature_agent: str | None = None
    archives: tuple[str, ...] = Field(default=(), strict=False)
    network: bool = True
    allow_private_hosts: bool = False
    gateway: str | None = None
    resize: Literal["shorter_side", "longer_side", "center_crop", "pad", "none"] = "shorter_side"
    format: Literal["jpg", "webp", "png", "original"] = "jpg"
    image_size: Annotated[int, Field(ge=16, le=4_096)] = 256
    jpeg_quality: Annotated[int, Field(ge=30, le=100)] = 95
    min_image_size: Count = 32
    max_aspect_ratio: Annotated[float, Field(ge=1)] = 5.0
    max_pixels: Count = 89_478_485  # Pillow's own decompression-bomb limit
    max_bytes: Annotated[int, Field(ge=1, lt=2**40)] = 30_000_000
    max_redirects: Annotated[int, Field(ge=0, le=20)] = 5
    timeout_s: Annotated[float, Field(gt=0, le=600)] = 20.0
    retries: Annotated[int, Field(ge=0, le=10)] = 2
    concurrency: Annotated[int, Field(ge=1, le=10_000)] = 128
    host_concurrency: Annotated[int, Field(ge=1, le=1_000)] = 4
    host_interval_s: Annotated[float, Field(ge=0, le=3_600)] = 0.1
    host_failures: Count = 20
    hosts: tuple[HostConfig, ...] = Field(default=(), strict=False)
    dns: DnsConfig = DnsConfig()
    proxy: ProxyConfig = ProxyConfig()
    max_pairs_per_host: Count | None = None
    max_silent_requests: Annotated[int, Field(ge=0, lt=2**31)] = 40

    @field_validator("also_obey")
    @classmethod
    def _preset_is_spelt_right(cls, also_obey: tuple[str, ...]) -> tuple[str, ...]:
        for name in also_obey:
            if name != _CRAWLER_PRESET and get_close_matches(name.lower(), [_CRAWLER_PRESET], cutoff=0.85):
                raise ValueError(f"{name!r} is not a preset list: did you mean {_CRAWLER_PRESET!r}?")
        return also_obey

    @field_validator("contact")
    @classmethod
    def _contact_is_reachable(cls, contact: str | None) -> str | None:
        if contact is not None and not contact.startswith(("mailto:", "http://", "https://")):
            raise ValueError("must start with mailto:, http:// or https://")
        if contact is not None and not re.fullmatch(_HEADER_TEXT, contact):
            raise ValueError(
                "must be printable ASCII without spaces or parentheses: it is part of the User-Agent header"
            )
        return contact

    @field_validator("gateway")
    @classmethod
    def _gateway_is_a_server(cls, gateway: str | None) -> str | None:
        if gateway is not None and not _is_server(gateway):
            raise ValueError("must be http://HOST or http://HOST:PORT, without user, path or spaces")
        return gateway

    @field_validator("resize", mode="before")
    @classmethod
    def _resize_is_not_of_img2dataset(cls, resize: object) -> object:
        if isinstance(resize, str) and resize in _RESIZE_OF_IMG2DATASET:
            raise ValueError(f'the name of this mode is "{_RESIZE_OF_IMG2DATASET[resize]}" here')
        return resize

    @model_validator(mode="after")
    def _gateway_or_proxy(self) -> Self:
        if self.gateway is not None and (self.proxy.http is not None or self.proxy.https is not None):
            raise ValueError("gateway and proxy: every request goes to the gateway, so remove one of them")
        return self

    @model_validator(mode="after")
    def _original_is_not_resized(self) -> Self:
        if self.format == "original" and self.resize != "none":
            raise ValueError(
                'format = "original" keeps files as they are: set resize = "none" too, or choose another format'
            )
        return self

    @model_validator(mode="after")
    def _signatures_name_their_key(self) -> Self:
        if (self.signature_key is None) != (self.signature_agent is None):
            raise ValueError(
                "fetch.signature_key and fetch.signature_agent belong together: the private key, and the https URL at "
                "which its public half is published"
            )
        return self

    @field_validator("signature_agent")
    @classmethod
    def _agent_is_a_url(cls, agent: str | None) -> str | None:
        if agent is not None and not re.fullmatch(r"https://[A-Za-z0-9.-]+(:[0-9]+)?(/[!#-\[\]-~]*)?", agent):
            raise ValueError('must be an https URL, such as "https://example.org", without spaces and quotes')
        return agent

    def max_pairs(self, host: str) -> int | None:
        """Return how many pairs of a host may be planned; None where there is no limit."""
        named = (entry.max_pairs for entry in self.hosts if entry.max_pairs is not None and entry.matches(host))
        return next(named, self.max_pairs_per_host)

    def host_budgets(self) -> dict[str, Any]:
        """Return the keys that limit the pairs of hosts, where they are set."""
        found: dict[str, Any] = {}
        if self.max_pairs_per_host is not None:
            found["max_pairs_per_host"] = self.max_pairs_per_host
        named = [{"match": h.match, "max_pairs": h.max_pairs} for h in self.hosts if h.max_pairs is not None]
        return found | ({"hosts": named} if named else {})

    def check_contact(self) -> None:
        """Refuse to fetch from the web without a contact, or with a proxy that is not set; earlier stages need neither.

        Raises:
            ConfigError: there is none.
        """
        if self.network and not self.allow_private_hosts and self.contact is None:
            raise ConfigError(
                "fetch.contact is required to fetch from the web: "
                'set fetch.contact = "mailto:you@example.org", or fetch.network = false to use archives only'
            )
        if self.network:
            for scheme in ("http", "https"):
                self.proxy.url(scheme)

    def content(self) -> dict[str, Any]:
        """Return the keys that change the stored images; the others only change how they are requested."""
        content = self.model_dump(exclude=set(PACING_KEYS), mode="json")
        for key in LATER_KEYS:
            if content[key] == type(self).model_fields[key].default:
                del content[key]
        signals = content["consent"]
        return content | {"consent": {key: on for key, on in signals.items() if key not in _NOT_OF_RESPONSES}}


PACING_KEYS = frozenset(
    {
        "parts",  # handled separately: it changes the location of images
        "contact",
        "signature_key",
        "signature_agent",
        "gateway",
        "timeout_s",
        "retries",
        "concurrency",
        "host_concurrency",
        "host_interval_s",
        "host_failures",
        "hosts",
        "dns",
        "proxy",
        "max_pairs_per_host",  # decides with the plan which images are requested
        "max_silent_requests",
    }
)
"""Keys of `[fetch]` that change how images are requested, but not the stored images.

After a change of any other key, including keys that a newer version adds, everything is fetched again.
"""


LATER_KEYS = frozenset({"resize", "format"})
"""Keys that change the stored images, but not at their default, which is what earlier versions did."""

_RESIZE_OF_IMG2DATASET = {
    "no": "none",
    "keep_ratio": "shorter_side",
    "keep_ratio_largest": "longer_side",
    "border": "pad",
}

BLOCK_LIST_KEYS = frozenset({"block_domains", "block_urls", "block_url_hashes", "block_image_hashes"})
"""Keys of `[fetch.consent]` that may change without fetching again: they are applied when shards are written."""

_NOT_OF_RESPONSES = BLOCK_LIST_KEYS | {"pages"}  # pages are read before anything is requested

_HEADER_TEXT = r"[!-'*-~]+"


def _is_server(url: str) -> bool:
    """Return whether `url` is http://HOST or http://HOST:PORT."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    host = re.fullmatch(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]", parts.netloc.removesuffix(f":{port}"))
    return bool(host) and url == f"http://{parts.netloc}" and port != 0
