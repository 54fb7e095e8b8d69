"""Common Crawl by name: which files a crawl has, a sample of them, and their bytes.

    crawl-data/CC-MAIN-2024-22/wat.paths.gz       the paths of a crawl's WAT files, one a line
    https://index.commoncrawl.org/collinfo.json   the crawls, newest first

Lists are looked up once for each workspace, so that `latest:3` stays the same crawls while a build is resumed.
"""

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from math import ceil
from typing import BinaryIO, Protocol, cast

import fsspec
import requests

from pipeline.config.sources import SourceConfig
from pipeline.engine.units import digest
from pipeline.errors import ConfigError, one_line
from pipeline.sources.range_stream import Pacer, RangeStream, SourceUnavailable, read_whole
from queries.redact import redact

PUBLIC_URLS = ("https://data.commoncrawl.org", "s3://commoncrawl")
_COLLINFO_URL = "https://index.commoncrawl.org/collinfo.json"
_MAX_LIST_BYTES = 64 << 20  # a crawl has 100,000 files, whose paths fill 12 MB
_LIBRARIES_OF_STORES = ("botocore", "aiobotocore", "aiohttp")  # whose errors are not all OSErrors: no credentials
_CRAWL = re.compile(r"CC-MAIN-[0-9A-Za-z-]+")


class ListCache(Protocol):
    """Keeps what was looked up."""

    def get(self, name: str, look_up: Callable[[], bytes]) -> bytes:
        """Return what was kept under a name, else look it up and keep it."""


def list_files(source: SourceConfig, seed: int, cache_: ListCache) -> list[str]:
    """Return the paths of the files to read (`crawl-data/...`), sorted.

    Raises:
        ConfigError: a crawl is not there, or its list cannot be read.
    """
    paths = [path for crawl in _crawls(source, cache_) for path in _paths(source, crawl, cache_)]
    return choose(list(dict.fromkeys(paths)), seed, source.sample, source.limit)


def choose(paths: Sequence[str], seed: int, fraction: float | None, limit: int | None) -> list[str]:
    """Return a random sample of `paths` without replacement, sorted; the same on every machine.

    It has ceil(fraction x paths) of them, at most `limit`, with the smallest keyed hashes: a larger sample contains
    the smaller.
    """
    key = seed.to_bytes(8, "little")
    ranked = sorted(paths, key=lambda path: (hashlib.blake2b(path.encode(), digest_size=16, key=key).digest(), path))
    count = len(ranked) if fraction is None else ceil(fraction * len(ranked))
    return sorted(ranked[: count if limit is None else min(count, limit)])


def _crawls(source: SourceConfig, cache_: ListCache) -> list[str]:
    """Return the names of the crawls of a source."""
    if not isinstance(source.crawls, str):
        return list(source.crawls)
    count = int(source.crawls.removeprefix("latest:"))
    key = f"latest-{count}-{digest(source.base_url)[:16]}.txt"

    def look_up() -> bytes:
        url = _COLLINFO_URL if source.base_url in PUBLIC_URLS else f"{source.base_url}/collinfo.json"
        try:
            names = [entry["id"] for entry in json.loads(_fetch(url))]
            if not names or not all(_CRAWL.fullmatch(name) for name in names):
                raise ValueError("it lists no crawls")
        except (ValueError, TypeError, KeyError, RecursionError, SourceUnavailable) as error:
            raise ConfigError(f"sources.crawls: {redact(url)}: {one_line(error)}") from None
        return "\n".join(names[:count]).encode()

    return cache_.get(key, look_up).decode().split()


def _paths(source: SourceConfig, crawl: str, cache_: ListCache) -> list[str]:
    """Return the paths of the files of one crawl."""
    name = f"crawl-data/{crawl}/{source.files}.paths.gz"

    def look_up() -> bytes:
        try:
            packed = _fetch(f"{source.base_url}/{name}")
            unpacked = zlib.decompressobj(31).decompress(packed, _MAX_LIST_BYTES)
            paths = unpacked.decode("ascii").split()
            if not paths or not all(path.startswith(f"crawl-data/{crawl}/") for path in paths):
                raise ValueError("it lists no files of the crawl")
        except (ValueError, zlib.error, SourceUnavailable) as error:
            raise ConfigError(f"sources.crawls: {redact(source.base_url)}/{name}: {one_line(error)}") from None
        return gzip.compress("\n".join(paths).encode(), mtime=0)

    kept = cache_.get(f"{crawl}-{source.files}-{digest(source.base_url)[:16]}.paths.gz", look_up)
    return gzip.decompress(kept).decode("ascii").split()


def _fetch(url: str) -> bytes:
    """Return a small file.

    Raises:
        SourceUnavailable: it cannot be read.
    """
    if url.startswith(("http://", "https://")):
        with requests.Session() as session:  # closed at once: it counts against the budget of connections
            return read_whole(session, url, _pacer(_host(url)), _MAX_LIST_BYTES)
    try:
        with _open_in_store(url) as opened:
            return opened.read(_MAX_LIST_BYTES)
    except Exception as error:  # any error of a store: missing package, credentials or network
        raise SourceUnavailable(one_line(error)) from None


@contextmanager
def open_file(url: str, agent: str) -> Iterator[BinaryIO]:
    """Open one file of a crawl as a stream; a failure to read it, too, is SourceUnavailable."""
    if url.startswith(("http://", "https://")):
        with RangeStream(_session(agent), url, _pacer(_host(url))) as stream:
            yield cast(BinaryIO, stream)
        return
    try:
        with _open_in_store(url) as opened:
            yield opened
    except Exception as error:
        if isinstance(error, OSError) or type(error).__module__.startswith(_LIBRARIES_OF_STORES):
            raise SourceUnavailable(one_line(error)) from error
        raise


def _open_in_store(url: str) -> AbstractContextManager[BinaryIO]:
    """Open a file in an object store; requests to Common Crawl's own bucket are signed for the region it is in."""
    options = {"client_kwargs": {"region_name": "us-east-1"}} if url.startswith("s3://commoncrawl/") else {}
    return cast(AbstractContextManager[BinaryIO], fsspec.open(url, "rb", **options))


def _host(url: str) -> str:
    return url.split("/")[2]


@cache
def _pacer(host: str) -> Pacer:
    """Return what this process knows of a server's patience."""
    return Pacer()


@cache
def _session(agent: str) -> requests.Session:
    """Return the connections of this process: one, because files are read one after another."""
    session = requests.Session()
    session.headers["User-Agent"] = agent
    return session
