"""`[[sources]]` and `[[search]]`: where candidates come from."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.config.table import Count, Table

CrawlNames = Annotated[
    Annotated[str, Field(pattern=r"^latest:[1-9][0-9]{0,2}$")]
    | Annotated[tuple[Annotated[str, Field(pattern=r"^CC-MAIN-[0-9A-Za-z-]+$")], ...], Field(strict=False)],
    Field(union_mode="left_to_right"),
]

_KEYS_OF_KINDS = {
    ("common-crawl",): {"crawls", "files", "sample", "limit", "base_url", "connections"},
    ("url-table", "warc", "wat", "webdataset"): {"paths"},
    ("url-table", "webdataset"): {"url", "caption", "keep"},
    ("url-table",): {"page_url", "header", "preset", "sha256", "md5", "verify"},
}


PresetName = Literal[
    "laion2b",
    "laion400m",
    "datacomp",
    "coyo",
    "cc3m",
    "cc12m",
    "yfcc15m",
    "redcaps",
    "sbu",
    "wit-google",
    "coco",
    "visual-genome",
]


class SourceConfig(Table):
    """`[[sources]]`: files of one kind; each file is one unit of work."""

    kind: Literal["url-table", "warc", "wat", "common-crawl", "webdataset"]
    paths: tuple[str, ...] = Field(default=(), strict=False)
    crawls: CrawlNames = ()  # common-crawl: CC-MAIN-2024-22, ..., or "latest:3"
    files: Literal["wat", "warc"] = "wat"
    sample: Annotated[float, Field(gt=0, le=1)] | None = None
    limit: Count | None = None
    base_url: str = "https://data.commoncrawl.org"
    connections: Annotated[int, Field(ge=1, le=64)] = 4
    url: str = "url"  # url-table: the column names
    caption: str | Annotated[tuple[str, ...], Field(min_length=1, strict=False)] = "caption"
    preset: PresetName | None = None  # url-table: a published list, by name
    sha256: str | None = None  # url-table: the column with a hash of the image file,
    md5: str | None = None
    verify: bool = False  # and whether the column that a preset has is compared
    page_url: str | None = None
    keep: tuple[str, ...] = Field(default=(), strict=False)  # url-table, webdataset: further columns to carry along
    header: bool = True  # url-table: False for csv and tsv whose first line is data; columns are then numbers from 1

    @property
    def has_pages(self) -> bool:
        """Return whether the files hold pages, with their own statements about use."""
        return self.kind in ("warc", "wat", "common-crawl")

    @model_validator(mode="after")
    def _keys_are_those_of_the_kind(self) -> Self:
        for kinds, keys in _KEYS_OF_KINDS.items():
            for key in keys & self.model_fields_set:
                if self.kind not in kinds:
                    raise ValueError(f"{key} is a key of {' and '.join(kinds)}, not of kind = {self.kind!r}")
        if self.kind == "common-crawl" and not self.crawls:
            raise ValueError('kind = "common-crawl" needs crawls = ["CC-MAIN-2024-22"], or crawls = "latest:1"')
        if self.kind != "common-crawl" and not self.paths:
            raise ValueError(f"kind = {self.kind!r} needs paths, at least one")
        return self

    @field_validator("base_url")
    @classmethod
    def _base_url_has_no_slash_at_its_end(cls, url: str) -> str:
        if "://" not in url:
            raise ValueError("must be a URL, such as https://data.commoncrawl.org or s3://commoncrawl")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _columns_without_a_header_are_numbers(self) -> Self:
        captions = (self.caption,) if isinstance(self.caption, str) else self.caption
        if self.kind == "webdataset" and len(captions) > 1:
            raise ValueError("caption: a sample of a tar has one text; name one key")
        for key, name in (("url", self.url), *(("caption", one) for one in captions), ("page_url", self.page_url)):
            if (
                not self.header
                and self.preset is None
                and name is not None
                and re.fullmatch("[1-9][0-9]{0,3}", name) is None
            ):
                raise ValueError(f'header = false: {key} = "{name}" must be a column number, counted from "1"')
        return self


class SearchConfig(Table):
    """`[[search]]`: a search API that is asked for queries with too few pairs."""

    api: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]  # wikimedia-commons, openverse, or an entry point
    per_query: Annotated[int, Field(ge=1, le=10_000)] = 50
    below: Count | None = None  # pairs; a query with fewer is asked for; None: balance.cap
    queries: Count | None = None
    daily_budget: Count | None = None  # requests
    interval_s: Annotated[float, Field(ge=0, le=3_600)] = 1.0
    base_url: str | None = None
