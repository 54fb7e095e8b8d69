"""What an allowlist is made of: a Wikipedia's dump, its page views, WordNet. Resumed where it broke off, then checked.

    https://dumps.wikimedia.org/enwiki/20240101/enwiki-20240101-pages-articles-multistream.xml.bz2, and its sha1sums.txt
    https://dumps.wikimedia.org/other/pageview_complete/monthly/2024/2024-01/pageviews-202401-user.bz2
    https://wordnetcode.princeton.edu/3.0/WNdb-3.0.tar.gz

A file has its own name only once it is whole, and its checksum right where one is published; until then it is `.part`.
"""

import hashlib
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from pipeline.errors import UserError, one_line
from pipeline.sources.range_stream import Pacer, RangeStream, SourceUnavailable, read_whole
from queries.redact import redact

MIRROR = "https://dumps.wikimedia.org"
WORDNET_URL = "https://wordnetcode.princeton.edu/3.0/WNdb-3.0.tar.gz"
_DUMP = "pages-articles-multistream.xml.bz2"
_READ_BYTES = 1 << 20
_MAX_SUMS_BYTES = 16 << 20

Report = Callable[[str, int, int | None], None]
"""Called with the name of a file, the bytes that are there, and how many it has, where that is known."""


@dataclass(frozen=True)
class Downloaded:
    """The files on disk; `wordnet` is the folder with index.noun."""

    dump: Path | None
    views: tuple[Path, ...]
    wordnet: Path | None


@dataclass(frozen=True)
class Downloader:
    """Downloads into `folder`, one file at a time over one connection."""

    session: requests.Session
    folder: Path
    mirror: str
    pacer: Pacer
    report: Report

    def dump(self, wiki: str, date: str) -> Path:
        """Download the articles of a Wikipedia; `date` is YYYYMMDD or "latest".

        Raises:
            UserError: there is no such dump, or it cannot be downloaded.
        """
        sums_url = f"{self.mirror}/{wiki}wiki/{date}/{wiki}wiki-{date}-sha1sums.txt"
        try:
            sums = read_whole(self.session, sums_url, self.pacer, _MAX_SUMS_BYTES).decode("ascii", "replace")
        except SourceUnavailable as error:
            raise UserError(f"{redact(sums_url)}: {error}; dumps are at {redact(self.mirror)}/{wiki}wiki/") from None
        found = re.search(rf"^([0-9a-f]{{40}})\s+({wiki}wiki-([0-9]{{8}})-{re.escape(_DUMP)})$", sums, re.MULTILINE)
        if found is None:
            raise UserError(
                f"{redact(sums_url)} does not list {_DUMP}: the dump is not finished yet; name another --date"
            )
        sha1, name, day = found.groups()
        return self.file(f"{self.mirror}/{wiki}wiki/{day}/{name}", name, sha1)

    def views(self, month: str) -> Path:
        """Download the page views of people in a month, YYYY-MM, of all wikis.

        Raises:
            UserError: it cannot be downloaded.
        """
        name = f"pageviews-{month.replace('-', '')}-user.bz2"
        return self.file(f"{self.mirror}/other/pageview_complete/monthly/{month[:4]}/{month}/{name}", name)

    def wordnet(self, url: str) -> Path:
        """Download WordNet and unpack it; return the folder with index.noun.

        Raises:
            UserError: it cannot be downloaded, or is something else.
        """
        target = self.folder / "wordnet"
        if (target / "dict/index.noun").is_file():
            return target / "dict"
        archive = self.file(url, "wordnet.tar.gz")
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(target, filter="data")
        except (tarfile.TarError, EOFError, OSError) as error:
            archive.unlink(missing_ok=True)
            raise UserError(f"{redact(url)} is not WordNet's tar: {one_line(error)}; run again") from None
        found = next(iter(sorted(target.rglob("index.noun"))), None)
        if found is None:
            raise UserError(f"{redact(url)} has no index.noun")
        return found.parent

    def file(self, url: str, name: str, sha1: str | None = None) -> Path:
        """Download a file, going on where an earlier run broke off; return its path.

        Raises:
            UserError: the server does not give it, or it has another SHA-1.
        """
        target, part = self.folder / name, self.folder / f"{name}.part"
        if target.is_file():
            self.report(name, target.stat().st_size, target.stat().st_size)
            return target
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("ab") as out, RangeStream(self.session, url, self.pacer) as stream:
                stream.seek(out.tell())
                while data := stream.read(_READ_BYTES):
                    out.write(data)
                    self.report(name, stream.tell(), stream.total)
        except SourceUnavailable as error:
            raise UserError(f"{redact(url)}: {error}; run the same command again to resume") from None
        if sha1 is not None and _sha1(part) != sha1:
            part.unlink()
            raise UserError(
                f"{name} has another SHA-1 than {sha1}, which the server states: run again to download it anew"
            )
        part.rename(target)
        return target


def _sha1(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.sha1(usedforsecurity=False)).hexdigest()


def download(
    downloader: Downloader, wiki: str | None, date: str, months: Sequence[str], wordnet_url: str | None
) -> Downloaded:
    """Download what is asked for, WordNet first, because it is small.

    Raises:
        UserError: a file cannot be downloaded; what is there stays there.
    """
    wordnet = downloader.wordnet(wordnet_url) if wordnet_url else None
    dump = downloader.dump(wiki, date) if wiki else None
    return Downloaded(dump, tuple(downloader.views(month) for month in months), wordnet)


@contextmanager
def open_session(contact: str | None) -> Iterator[requests.Session]:
    """Open a session that says who we are, as Wikimedia's User-Agent policy wants it."""
    with requests.Session() as session:
        session.headers["User-Agent"] = f"wit-pipeline ({contact})" if contact else "wit-pipeline"
        yield session
