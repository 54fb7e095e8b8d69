"""The tables `[filters]`, `[[filters.python]]` and `[scores]`: which pairs stay. docs/filters.md explains each key.

Every filter is off by default: a config without these tables gives the set that it gave before there were any.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pipeline.config.table import Count, Fraction, Table, public_path

_Code = Annotated[str, Field(pattern=r"^[a-z]{2,3}$")]


class PythonFilterConfig(Table):
    """`[[filters.python]]`: a function of the user's own."""

    call: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    on: Literal["pairs", "images"] = "pairs"


class FiltersConfig(Table):
    """`[filters]`: conditions that a pair must meet."""

    allow_hosts: tuple[str, ...] = Field(default=(), strict=False)
    block_hosts: tuple[str, ...] = Field(default=(), strict=False)
    allow_host_files: tuple[str, ...] = Field(default=(), strict=False)
    block_host_files: tuple[str, ...] = Field(default=(), strict=False)
    min_words: Count | None = None
    max_words: Count | None = None
    min_letter_fraction: Fraction | None = None
    max_repeated_chars: Count | None = None
    file_names: bool = False
    urls: bool = False
    markup: bool = False
    languages: tuple[_Code, ...] = Field(default=(), strict=False)
    min_language_probability: Annotated[float, Field(ge=0.5, le=1)] = 0.5
    max_images_per_caption: Count | None = None
    max_pairs_per_family: Count | None = None
    family_similarity: Annotated[float, Field(ge=0.5, le=1)] = 0.7
    single_colour: bool = False
    max_urls_per_image: Count | None = None
    python: tuple[PythonFilterConfig, ...] = Field(default=(), strict=False)

    @model_validator(mode="after")
    def _word_limits_leave_something(self) -> Self:
        if self.min_words and self.max_words and self.min_words > self.max_words:
            raise ValueError(f"min_words = {self.min_words} is more than max_words = {self.max_words}: nothing is left")
        return self

    def of_pairs(self) -> dict[str, Any]:
        """Return the keys, other than those at their defaults, that decide which rows pairs/ gets."""
        return self.model_dump(mode="json", include=set(PAIR_KEYS), exclude_defaults=True)

    def recipe(self) -> dict[str, Any]:
        """Return the keys other than those at their defaults, without local folders."""
        keys = self.model_dump(mode="json", exclude_defaults=True)
        for name in ("allow_host_files", "block_host_files"):
            if name in keys:
                keys[name] = list(map(public_path, keys[name]))
        return keys

    def python_on(self, what: Literal["pairs", "images"]) -> tuple[str, ...]:
        """Return the `call` of each Python filter on pairs or on images, in order."""
        return tuple(rule.call for rule in self.python if rule.on == what)


PAIR_KEYS = frozenset(
    {
        "allow_hosts",
        "block_hosts",
        "min_words",
        "max_words",
        "min_letter_fraction",
        "max_repeated_chars",
        "file_names",
        "urls",
        "markup",
        "languages",
        "min_language_probability",
    }
)
"""Keys that are conditions on one pair, applied when pairs/ is written; files of hosts come with their content."""


class ScoresConfig(Table):
    """`[scores]`: how well each image and its caption fit, by a CLIP model."""

    checkpoint: str
    architecture: str | None = None  # open_clip's name of it, for a file of weights alone
    min: Annotated[float, Field(ge=-1, le=1)] | None = None
    keep_fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    balance: Literal["random", "best", "weighted"] = "random"
    temperature: Annotated[float, Field(gt=0)] = 0.05
    batch: Count = 64
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @property
    def ranking(self) -> tuple[Literal["random", "best", "weighted"], float]:
        """Return how the final balance orders the pairs of a query."""
        return self.balance, self.temperature

    def recipe(self) -> dict[str, Any]:
        """Return the keys that determine the set, without local folders."""
        keys = self.model_dump(mode="json", exclude={"batch", "device"}, exclude_none=True)
        return keys | {"checkpoint": public_path(self.checkpoint)}
