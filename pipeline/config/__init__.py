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

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from dedup.eval_sets.config import EvalSetConfig
from pipeline.config.fetch import FetchConfig
from pipeline.config.filters import FiltersConfig, ScoresConfig
from pipeline.config.sources import SearchConfig, SourceConfig
from pipeline.config.table import Count, Table, public_path
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
    score: str | None = None  # a number among the columns that sources keep
    order: Literal["best", "weighted"] = "best"
    temperature: Annotated[float, Field(gt=0)] = 0.05

    @property
    def ranking(self) -> tuple[Literal["random", "best", "weighted"], float, str | None]:
        """Return how queries order their pairs: at random, or by the score that a source states."""
        return ("random" if self.score is None else self.order), self.temperature, self.score

    def recipe(self) -> dict[str, Any]:
        """Return the keys that determine the set; those of scores only where there are any."""
        by_score = {"score", "order", "temperature"} if self.score is None else set()
        return self.model_dump(mode="json", exclude=by_score)


class DedupConfig(Table):
    """`[dedup]`: when two images are the same."""

    evals: Literal["report", "remove"] = "report"
    near_duplicates: bool = True
    max_distance_bits: Annotated[int, Field(ge=0, le=31)] = 15
    eval_max_distance_bits: Annotated[int, Field(ge=0, le=31)] = 31
    min_quality: Annotated[int, Field(ge=0, le=100)] = 50
    planted: Annotated[int, Field(ge=0)] = 0  # images of each evaluation set edited in 66 ways, to measure recall
    control: Annotated[int, Field(ge=0, le=10_000)] = 100  # rendered images that nothing may match; 0: none
    detector: str = "pdq"  # or "copy", or the path of an .onnx model, for edited copies of evaluation images

    @field_validator("detector")
    @classmethod
    def _detector_is_known(cls, detector: str) -> str:
        if detector not in ("pdq", "copy") and not detector.endswith(".onnx"):
            raise ValueError('must be "pdq", "copy", or the path of an .onnx file')
        return detector


MEMORY_BYTES = 2 << 30

_NOT_OF_THE_SET = {"workspace", "allowlist", "fetch", "run", "train", "evaluate"}


class RunConfig(Table):
    """`[run]`: how a build behaves on its machines; no key changes the set."""

    min_free_bytes: Annotated[int, Field(ge=0, lt=2**50)] = 1_000_000_000
    memory_bytes: Annotated[int, Field(ge=2**29, lt=2**50)] = MEMORY_BYTES  # of one worker process


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
    def _score_is_kept(self) -> Self:
        score = self.balance.score
        if score is not None and not any(score in source.keep for source in self.sources):
            raise ValueError(f"balance.score = {score!r}: no source has it in `keep`")
        return self

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
        everything["balance"] = self.balance.recipe()
        everything["dedup"]["detector"] = self.dedup.detector.rsplit("/", 1)[-1]
        fetch = self.fetch.content() | {"parts": self.fetch.parts} | self.fetch.host_budgets()
        fetch["consent"]["pages"] = self.fetch.consent.pages
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
