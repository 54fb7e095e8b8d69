"""Open a source file with the reader of its kind."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias, cast, get_args

import fsspec

from pipeline.config import PairsConfig
from pipeline.config.sources import SourceConfig
from pipeline.errors import ConfigError, UserError
from pipeline.sources.batch import SourceBatch
from pipeline.sources.common_crawl import open_file
from pipeline.sources.opt_out import USUAL_POLICY, PagePolicy
from pipeline.sources.url_table import read_table
from pipeline.sources.warc import read_warc
from pipeline.sources.wat import read_wat
from pipeline.sources.webdataset import read_webdataset

Kind: TypeAlias = Literal["url-table", "warc", "wat"]
"""Kinds of files that can be read without a config."""

_USUAL_LIMITS = PairsConfig()


def read_source(
    source: SourceConfig | Kind,
    path: str | Path,
    limits: PairsConfig = _USUAL_LIMITS,
    policy: PagePolicy = USUAL_POLICY,
) -> Iterator[SourceBatch]:
    """Yield the candidates of one file and the account of its other rows.

    `source` is a table of `[[sources]]`, or only its kind if the columns have the default names.

    What counts as a row depends on the kind: a row or line of a table, a text of an image (or an image without texts)
    of a page or WAT record, and each damaged record (docs/sources.md). Rows seen = candidates + the sum over `dropped`.
    `policy` says which pages opt their images out.

    Raises:
        UserError: the file does not exist, or is not of this kind. ConfigError: the kind is unknown.
        SourceUnavailable: a file of Common Crawl cannot be read now.
    """
    path = str(path)
    if not isinstance(source, SourceConfig):
        if source not in get_args(Kind):
            raise ConfigError(f"kind = {source!r}: must be {', '.join(get_args(Kind))}")
        source = SourceConfig(kind=source, paths=(path,))
    if source.kind == "common-crawl":
        with open_file(path, policy.agent) as stream:
            yield from (read_wat if source.files == "wat" else read_warc)(stream, limits, policy)
        return
    try:
        # fsspec's object around a local file costs a tenth of reading a tar.
        with fsspec.open(path, "rb") if "://" in path else open(path, "rb") as opened:
            stream = cast(BinaryIO, opened)
            if source.kind == "url-table":
                yield from read_table(stream, path, source, limits)
            elif source.kind == "webdataset":
                yield from read_webdataset(stream, path, source, limits)
            elif source.kind == "warc":
                yield from read_warc(stream, limits, policy)
            else:
                yield from read_wat(stream, limits, policy)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
