"""Read the page views of one wiki from Wikimedia's public page-view files.

    hourly   pageviews-20240101-000000.gz       en.m Ice_cream 17 0             (code, title, views, bytes)
    daily    pageviews-20240101-user.bz2        en.wikipedia Ice_cream 24005 desktop 411 A17B20...
             ("pageview_complete": project, title, page id or null, access method, views, views by hour)

Both hold all projects. Titles are spelled with underscores; titles that are not UTF-8 are skipped.
"""

import re
from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa

from queries.errors import InputError
from queries.files import reading

VIEWS = pa.schema([("title", pa.string()), ("views", pa.int64())])

_READ_BYTES = 8 << 20
_MAX_LINE_BYTES = 16 << 20
_TITLES_IN_MEMORY = 1_000_000
_MAX_DIGITS = 12  # of the views of a title; sums of millions of such lines fit into an int64

# Suffixes of the language code in hourly files, by project family; Wikipedia has none.
_HOURLY_SUFFIXES = {
    "wikipedia": "",
    "wikibooks": ".b",
    "wiktionary": ".d",
    "wikinews": ".n",
    "wikiquote": ".q",
    "wikisource": ".s",
    "wikiversity": ".v",
    "wikivoyage": ".voy",
}


def read_views(path: str, project: str) -> Iterator[pa.Table]:
    """Yield the views of a project's titles as VIEWS, in pieces; a title may be in several.

    `project` is named as in daily files: "en.wikipedia".

    Raises:
        InputError: the file is missing, damaged, not a page-view file, or has no line of the project.
    """
    views: Counter[bytes] = Counter()
    has_yielded = False
    block = b""
    with reading(path) as stream:
        line = None
        for block in _blocks(path, stream):
            line = line or _line_pattern(path, block, project)
            for title, count in line.findall(block):
                views[title] += _count(path, title, count)
            if len(views) >= _TITLES_IN_MEMORY:
                has_yielded = True
                yield _table(views)
                views.clear()
    if not views and not has_yielded:
        projects = Counter(re.findall(rb"^\S+", block, re.MULTILINE)).most_common(3)
        seen = ", ".join(name.decode(errors="replace") for name, _ in projects) or "no project"
        raise InputError(f"{path}: no views of {project}; the file has views of {seen}: set the project with --project")
    yield _table(views)


def _count(path: str, title: bytes, digits: bytes) -> int:
    if len(digits) > _MAX_DIGITS:
        raise InputError(f"{path}: the views of {title[:80].decode(errors='replace')!r} have {len(digits)} digits")
    return int(digits)


def _blocks(path: str, stream: BinaryIO) -> Iterator[bytes]:
    """Read whole lines, a few megabytes at a time."""
    rest = b""
    while piece := stream.read(_READ_BYTES):
        lines, newline, rest_of_piece = piece.rpartition(b"\n")
        if newline:
            yield rest + lines + newline
            rest = rest_of_piece
        else:
            rest += piece
            if len(rest) > _MAX_LINE_BYTES:
                raise InputError(f"{path}: a line of over {_MAX_LINE_BYTES:,} bytes; not a page-view file")
    if rest:
        yield rest


def _line_pattern(path: str, block: bytes, project: str) -> "re.Pattern[bytes]":
    """Return a pattern for (title, views) in the lines of a project, in the format of the file's first line."""
    first = block.split(b"\n", 1)[0]
    if re.fullmatch(rb"\S+ \S+ \d+ \d+\r?", first):
        language, _, family = project.partition(".")
        suffix = _HOURLY_SUFFIXES.get(family)
        if suffix is None:
            raise InputError(f"{path}: unknown project {project!r} for hourly page-view files")
        codes = f"{re.escape(language)}(?:\\.m|\\.zero)?{re.escape(suffix)}"
        return re.compile(rf"^{codes} (\S+) (\d+) \d+\r?$".encode(), re.MULTILINE)
    if re.fullmatch(rb"\S+ \S+ (?:\S+ )?[a-z-]+ \d+ \S+\r?", first):
        return re.compile(rf"^{re.escape(project)} (\S+) (?:\S+ )?[a-z-]+ (\d+) \S+\r?$".encode(), re.MULTILINE)
    raise InputError(f"{path}: not a page-view file; it begins with {first[:40]!r}")


def _table(views: Counter[bytes]) -> pa.Table:
    titles, counts = [], []
    for title, count in views.items():
        try:
            titles.append(title.decode())
        except UnicodeDecodeError:
            continue
        counts.append(count)
    return pa.table([pa.array(titles, pa.string()), pa.array(counts, pa.int64())], schema=VIEWS)
