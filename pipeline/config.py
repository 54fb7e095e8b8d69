"""The configuration: TOML, one table per stage, every key checked when loaded.

Each model below is one table; docs/configuration.md lists the same keys (a test compares them). Relative paths start at
the config file's folder.
"""

import os
import re
import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from dedup.eval_sets.config import EvalSetConfig
from pipeline.config_filters import FiltersConfig, ScoresConfig
from pipeline.config_sources import SearchConfig, SourceConfig
from pipeline.config_table import Count, Table, public_path
from pipeline.errors import ConfigError, one_line


class AllowlistConfig(Table):
    """`[allowlist]`: the queries."""

    path: str | Annotated[tuple[str, ...], Field(min_length=1, strict=False)]

    @property
    def paths(self) -> tuple[str, ...]:
        """The files, one or more."""
        return (self.path,) if isinstance(self.path, str) else self.path


class PairsConfig(Table):
    """`[pairs]`: limits of texts and URLs."""

    min_caption_chars: Count = 1
    max_caption_chars: Count = 10_000
    max_url_chars: Annotated[int, Field(ge=64, le=65_536)] = 2_048


class BalanceConfig(Table):
    """`[balance]`: at most `cap` pairs per query in the final set (CLIP section 2.2)."""

    cap: Count = 20_000
    slack: Annotated[float, Field(ge=1, le=100)] = 2.0


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


_CRAWLER_PRESET = "ai-crawlers"  # in fetch.also_obey: the tokens of pipeline/consent/ai_crawlers.toml


class FetchConfig(Table):
    """`[fetch]`: how images are requested and stored."""

    parts: Annotated[int, Field(ge=1, le=1_000_000)] = 16
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

    @field_validator("resize", mode="before")
    @classmethod
    def _resize_is_not_of_img2dataset(cls, resize: object) -> object:
        if isinstance(resize, str) and resize in _RESIZE_OF_IMG2DATASET:
            raise ValueError(f'the name of this mode is "{_RESIZE_OF_IMG2DATASET[resize]}" here')
        return resize

    @model_validator(mode="after")
    def _original_is_not_resized(self) -> Self:
        if self.format == "original" and self.resize != "none":
            raise ValueError(
                'format = "original" keeps files as they are: set resize = "none" too, or choose another format'
            )
        return self

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
        """Refuse to fetch from the web without a contact; stages before the fetch need none.

        Raises:
            ConfigError: there is none.
        """
        if self.network and not self.allow_private_hosts and self.contact is None:
            raise ConfigError(
                "fetch.contact is required to fetch from the web: "
                'set fetch.contact = "mailto:you@example.org", or fetch.network = false to use archives only'
            )

    def content(self) -> dict[str, Any]:
        """Return the keys that change the stored images; the others only change how they are requested."""
        content = self.model_dump(exclude=set(PACING_KEYS), mode="json")
        for key in LATER_KEYS:
            if content[key] == type(self).model_fields[key].default:
                del content[key]
        signals = content["consent"]
        return content | {"consent": {key: on for key, on in signals.items() if key not in BLOCK_LIST_KEYS}}


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


class DedupConfig(Table):
    """`[dedup]`: when two images are the same."""

    evals: Literal["report", "remove"] = "report"
    near_duplicates: bool = True
    max_distance_bits: Annotated[int, Field(ge=0, le=31)] = 15
    eval_max_distance_bits: Annotated[int, Field(ge=0, le=31)] = 31
    min_quality: Annotated[int, Field(ge=0, le=100)] = 50
    planted: Annotated[int, Field(ge=0)] = 0  # images of each evaluation set edited in 66 ways, to measure recall
    detector: str = "pdq"  # or "copy", or the path of an .onnx model, for edited copies of evaluation images

    @field_validator("detector")
    @classmethod
    def _detector_is_known(cls, detector: str) -> str:
        if detector not in ("pdq", "copy") and not detector.endswith(".onnx"):
            raise ValueError('must be "pdq", "copy", or the path of an .onnx file')
        return detector


_NOT_OF_THE_SET = {"workspace", "allowlist", "fetch", "run", "train", "evaluate"}


class RunConfig(Table):
    """`[run]`: how a build behaves on its machines; no key changes the set."""

    min_free_bytes: Annotated[int, Field(ge=0, lt=2**50)] = 1_000_000_000


class Config(Table):
    """The whole file."""

    workspace: str
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    allowlist: AllowlistConfig
    sources: tuple[SourceConfig, ...] = Field(min_length=1, strict=False)
    search: tuple[SearchConfig, ...] = Field(default=(), strict=False)
    pairs: PairsConfig = PairsConfig()
    filters: FiltersConfig = FiltersConfig()
    scores: ScoresConfig | None = None
    balance: BalanceConfig = BalanceConfig()
    fetch: FetchConfig = FetchConfig()
    dedup: DedupConfig = DedupConfig()
    run: RunConfig = RunConfig()
    evals: tuple[EvalSetConfig, ...] = Field(default=(), strict=False)
    train: dict[str, Any] | None = None  # the trainer checks these tables, because it is installed separately
    evaluate: dict[str, Any] | None = None

    @field_validator("workspace")
    @classmethod
    def _store_has_no_pattern(cls, workspace: str) -> str:
        if "://" in workspace and not workspace.startswith("file://") and set(workspace) & set("*?["):
            raise ValueError("a URL with * ? or [ is read as a pattern by object stores: choose another name")
        return workspace

    @field_validator("evals")
    @classmethod
    def _names_are_unique(cls, evals: tuple[EvalSetConfig, ...]) -> tuple[EvalSetConfig, ...]:
        names = [e.name for e in evals]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two evaluation sets have the name {name!r}: rename one")
        return evals

    @model_validator(mode="after")
    def _paths_have_no_variables(self) -> Self:
        paths = [("workspace", self.workspace), *(("allowlist.path", path) for path in self.allowlist.paths)]
        paths += [("sources.paths", path) for source in self.sources for path in source.paths]
        paths += [("fetch.archives", path) for path in self.fetch.archives]
        for kind, lists in self.fetch.consent.block_lists.items():
            paths += [(f"fetch.consent.block_{kind}", path) for path in lists]
        paths += [("fetch.signature_key", self.fetch.signature_key or "")]
        paths += [("dedup.detector", self.dedup.detector)]
        paths += [(f"evals.{e.name}.path", e.path) for e in self.evals]
        for key, path in paths:
            for name in re.findall(r"\$\{?([A-Za-z_][A-Za-z0-9_]*)", path):
                if name in os.environ:
                    raise ValueError(f'{key} = "{path}": ${name} is not replaced; write the path itself, or ~ for home')
        return self

    @property
    def requests_images(self) -> bool:
        """Whether an image may have to be requested from the web: not where all are in tars of the sources."""
        return any(source.kind != "webdataset" for source in self.sources)

    def recipe(self) -> dict[str, Any]:
        """Return the keys that determine the dataset, for its manifest: no local paths, secrets or request rates."""
        everything = self.model_dump(mode="json", exclude=_NOT_OF_THE_SET)
        del everything["filters"], everything["scores"]
        if filters := self.filters.recipe():
            everything["filters"] = filters
        if self.scores is not None:
            everything["scores"] = self.scores.recipe()
        everything["dedup"]["detector"] = self.dedup.detector.rsplit("/", 1)[-1]
        fetch = self.fetch.content() | {"parts": self.fetch.parts} | self.fetch.host_budgets()
        fetch["archives"] = list(map(public_path, fetch["archives"]))
        for source in everything["sources"]:
            source["paths"] = list(map(public_path, source["paths"]))
        for evaluation in everything["evals"]:
            evaluation["path"] = public_path(evaluation["path"])
        return everything | {"fetch": fetch}


def load_config(path: str | Path) -> Config:
    """Read and check a config file.

    Raises:
        ConfigError: one line that names the key, its value and the allowed values.
    """
    path = Path(path)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Windows editors put a mark first
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; `wit demo` writes an example, demo/wit.toml") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: not valid TOML: tables or lists within each other hundreds of times") from None
    except ValueError as error:  # of tomllib, and of Python for a number of thousands of digits
        raise ConfigError(f"{path}: not valid TOML: {one_line(error)}") from None
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_describe(error)}") from None


def _describe(error: ValidationError) -> str:
    problems = error.errors(include_url=False)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return _describe_one(problems[0]) + more


def _describe_one(problem: Any) -> str:
    kind, value = problem["type"], problem["input"]
    # Without the names that pydantic gives to the alternatives of a union, such as "str" and "tuple[str, ...]".
    location = tuple(p for p in problem["loc"] if isinstance(p, int) or (p != "str" and re.fullmatch(r"\w+", p)))
    if not location:  # about the whole file; the message names the keys
        return str(problem["msg"].removeprefix("Value error, "))
    key = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in location).lstrip(".")
    if kind == "extra_forbidden":
        return f"unknown key {key}; {_known_keys(location)}"
    if kind == "missing":
        return f"missing key {key}"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    shown = "" if isinstance(value, dict | list) else f" = {_short(value)}"
    return f"{key}{shown}: {message}"


def _short(value: object) -> str:
    try:
        return one_line(repr(value))
    except ValueError:  # Python shows no number of thousands of digits
        return "a number of thousands of digits"


def _known_keys(location: tuple[int | str, ...]) -> str:
    """Return the allowed keys of the table of an unknown key, with the most similar one as a hint."""
    fields = Config.model_fields
    for part in location[:-1]:
        if isinstance(part, str):
            fields = _table_of(fields[part].annotation).model_fields
    near = get_close_matches(str(location[-1]), fields, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{hint}known keys are {', '.join(fields)}"


def _table_of(annotation: Any) -> type[BaseModel]:
    """Return the table model in `T` or `tuple[T, ...]`."""
    return cast(type[BaseModel], next((a for a in get_args(annotation) if isinstance(a, type)), annotation))
