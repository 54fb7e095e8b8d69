"""Turn mentions into the files that the pipeline reads: WARC files of HTML pages, and URL tables.

Hosts differ in ways that are common on the web: the position of the text, the form of URLs, the encoding of pages.
Pages also contain other elements of real pages: a logo without text, an image without a URL.
"""

import csv
import gzip
import html
import posixpath
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.demo.ledger import Count
from pipeline.demo.publishing import PAGE_HOSTS, Mention, Publisher
from pipeline.records import Reason

_IMAGES_PER_PAGE = 12
_DATE = "2024-05-01T12:00:00Z"
_BLANK = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="


def write_sources(web: Publisher, directory: Path) -> None:
    """Write pages-N.warc.gz and damaged.warc.gz for the page hosts, shop.tsv and archive.parquet for the others."""
    directory.mkdir(parents=True, exist_ok=True)
    pages = 0
    for number, host in enumerate(PAGE_HOSTS):
        records = [_warc_record(url, page) for url, page in _pages(host, web.mentions.get(host, []))]
        (directory / f"pages-{number}.warc.gz").write_bytes(b"".join(records))
        pages += len(records)
    # One logo without text and one image without a URL on every page.
    web.ledger.counts.append(Count("image without text", "pairs", Reason.NO_CAPTION, pages))
    web.ledger.counts.append(Count("text without a URL", "pairs", Reason.NO_URL, pages))
    _write_damaged(web, directory / "damaged.warc.gz")
    _write_tables(web, directory)


def _pages(host: str, images: list[tuple[Mention, ...]]) -> Iterator[tuple[str, bytes]]:
    """Yield the URL and the HTTP response of each page of a host."""
    for number, start in enumerate(range(0, len(images), _IMAGES_PER_PAGE)):
        url = f"http://{host}/gallery/page-{number:03d}.html"
        tags = [_WRITERS[host](url, mentions) for mentions in images[start : start + _IMAGES_PER_PAGE]]
        yield url, _response(_page(host, tags), _legacy_encoding(host, number))


def _page(host: str, tags: Iterable[str]) -> str:
    base = '<base href="/img/">' if host == "museum.example" else ""
    body = "\n".join(tags)
    return (
        f"<!doctype html>\n<html><head><title>{host}</title>{base}</head>\n"
        f'<body><header><img src="/logo.png" alt=""><h1>{host}</h1></header>\n'
        f'<main>\n{body}\n</main><img alt="picture of the day"></body></html>\n'
    )


def _response(page: str, encoding: str) -> bytes:
    """Return an HTTP response in UTF-8, or in an older encoding that has all its characters."""
    try:
        body = page.encode(encoding)
    except UnicodeEncodeError:
        encoding, body = "utf-8", page.encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset={encoding}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _legacy_encoding(host: str, page: int) -> str:
    return "windows-1252" if host == "press.example" and page % 2 else "utf-8"


def _attribute(mentions: tuple[Mention, ...], field: str, default: str) -> str:
    """Return ` alt="..."`, or an empty string if no mention has this field."""
    texts = [mention.caption for mention in mentions if (mention.field or default) == field]
    return f' {field}="{html.escape(texts[0])}"' if texts else ""


def _photo(page: str, mentions: tuple[Mention, ...]) -> str:
    """Absolute URLs, text in `alt`."""
    words = _attribute(mentions, "alt", "alt") + _attribute(mentions, "title", "alt")
    return f'<p><a href="/"><img src="{html.escape(mentions[0].url)}"{words}></a></p>'


def _exhibit(page: str, mentions: tuple[Mention, ...]) -> str:
    """A figure: text below the image, URLs relative to <base>."""
    words = _attribute(mentions, "alt", "figcaption") + _attribute(mentions, "title", "figcaption")
    below = [mention.caption for mention in mentions if mention.field in (None, "figcaption")]
    caption = f"<figcaption>{html.escape(below[0])}</figcaption>" if below else ""
    address = _relative(mentions[0].url, "http://museum.example/img/")
    return f'<figure><img src="{html.escape(address)}"{words}>{caption}</figure>'


def _post(page: str, mentions: tuple[Mention, ...]) -> str:
    """A lazy-loaded image: a placeholder until a script loads the image, and a fallback in `noscript`."""
    words = _attribute(mentions, "alt", "alt") + _attribute(mentions, "title", "alt")
    address = html.escape(_relative(mentions[0].url, page))
    fallback = f'<noscript><img src="{address}"{words}></noscript>'
    return f'<img class="lazy" src="{_BLANK}" data-src="{address}"{words}>{fallback}'


def _news(page: str, mentions: tuple[Mention, ...]) -> str:
    """Text in `title`; URLs without a scheme."""
    words = _attribute(mentions, "alt", "title") + _attribute(mentions, "title", "title")
    return f'<img src="{html.escape(mentions[0].url.removeprefix("http:"))}"{words}>'


_WRITERS = {
    "photos.example": _photo,
    "museum.example": _exhibit,
    "blog.example": _post,
    "press.example": _news,
}


def _relative(url: str, base: str) -> str:
    """Write a URL of the base's host as a relative path, others in full."""
    there, here = urlsplit(url), urlsplit(base)
    if there.netloc != here.netloc or there.scheme != here.scheme:
        return url
    return posixpath.relpath(there.path, posixpath.dirname(here.path))


def _warc_record(url: str, response: bytes) -> bytes:
    """Return one gzip member that holds a WARC/1.0 response record."""
    head = (
        "WARC/1.0\r\nWARC-Type: response\r\n"
        f"WARC-Record-ID: <urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, url)}>\r\n"
        f"WARC-Target-URI: {url}\r\nWARC-Date: {_DATE}\r\n"
        f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(response)}\r\n\r\n"
    )
    return gzip.compress(head.encode() + response + b"\r\n\r\n", 6, mtime=0)


def _write_damaged(web: Publisher, path: Path) -> None:
    """Write a WARC whose only record is truncated, as after an interrupted download."""
    record = _warc_record("http://photos.example/lost.html", _response(_page("photos.example", []), "utf-8"))
    path.write_bytes(record[: len(record) // 2])
    web.ledger.counts.append(Count("truncated file", "pairs", Reason.DAMAGED_FILE, 1))


def _write_tables(web: Publisher, directory: Path) -> None:
    archive = [mention for image in web.mentions.get("archive.example", []) for mention in image]
    shop = [mention for image in web.mentions.get("shop.example", []) for mention in image]
    table = pa.table({"caption": [m.caption for m in archive], "url": [m.url for m in archive]})
    pq.write_table(table, directory / "archive.parquet")
    with (directory / "shop.tsv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
        writer.writerow(["caption", "url"])
        writer.writerows((mention.caption, mention.url) for mention in shop)
