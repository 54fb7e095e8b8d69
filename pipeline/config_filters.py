"""The tables `[filters]` and `[[filters.python]]`: which pairs stay. docs/filters.md explains each key.

Every filter is off by default: a config without these tables gives the set that it gave before there were any.
"""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from pipeline.config_table import Count, Fraction, Table, public_path

_Code = Annotated[str, Field(pattern=r"^[a-z]{2,3}$")]


class PythonFilterConfig(Table):
    """`[[filters.python]]`: a function of the user's own."""

    call: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]


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
