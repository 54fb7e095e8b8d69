"""Writes small WARC and WAT files by hand, damage included, and reads sources back as plain rows."""

import gzip
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from pipeline.records import Reason
from pipeline.sources import SourceBatch

Rows = list[tuple[str, str, str, str]]  # url, caption, text_field, page_url


def record(kind: str, block: bytes, uri: str = "http://a.example/", **options: Any) -> bytes:
    """Return one WARC record. Options: version, eol, content_length (a lie), content_type, fields (raw lines)."""
    eol = options.get("eol", "\r\n")
    lines = [
        options.get("version", "WARC/1.0"),
        f"WARC-Type: {kind}",
        f"WARC-Target-URI: {uri}",
        f"Content-Type: {options.get('content_type', 'application/http; msgtype=response')}",
        *options.get("fields", ()),
        f"Content-Length: {options.get('content_length', len(block))}",
    ]
    head = eol.join(lines) + eol * 2
    return head.encode() + block + eol.encode() * 2


def http(
    body: bytes, status: str = "200 OK", content_type: str | None = "text/html", headers: Iterable[str] = ()
) -> bytes:
    lines = [f"HTTP/1.1 {status}", *([f"Content-Type: {content_type}"] if content_type else []), *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def page(html: str | bytes, uri: str = "http://a.example/dir/page.html", **http_options: Any) -> bytes:
    """Return the response record of a page."""
    body = html.encode() if isinstance(html, str) else html
    return record("response", http(body, **http_options), uri)


def wat(links: Any, uri: str = "http://a.example/dir/page.html", **options: Any) -> bytes:
    """Return the WAT record of a page. Options: base, status, metas, headers, separators (of the JSON)."""
    html: dict[str, Any] = {"Head": {"Title": "t"} | ({"Base": options["base"]} if "base" in options else {})}
    html["Head"] |= {"Metas": options["metas"]} if "metas" in options else {}
    html["Links"] = links
    response = {"Response-Message": {"Status": options.get("status", "200"), "Version": "HTTP/1.1"}}
    response["Headers"] = options.get("headers", {})
    payload = {"Actual-Content-Type": "application/http; msgtype=response", "HTTP-Response-Metadata": response}
    response["HTML-Metadata"] = html
    body = {"Container": {}, "Envelope": {"Payload-Metadata": payload, "WARC-Header-Metadata": {}}}
    text = json.dumps(body, separators=options.get("separators", (",", ":")), ensure_ascii=False)
    return record("metadata", text.encode("utf-8", "surrogatepass"), uri, content_type="application/json")


def image_link(url: str, **texts: str) -> dict[str, str]:
    return {"path": "IMG@/src", "url": url, **texts}


def gzipped(records: Iterable[bytes]) -> bytes:
    """Return a WARC file with one gzip member per record."""
    return b"".join(gzip.compress(raw, mtime=0) for raw in records)


def rows_of(batches: Iterator[SourceBatch]) -> tuple[Rows, Counter[Reason]]:
    """Read a source to its end: its candidates as tuples, and what was dropped."""
    rows: Rows = []
    dropped: Counter[Reason] = Counter()
    for batch in batches:
        batch.candidates.validate(full=True)
        rows += [tuple(row.values())[:4] for row in batch.candidates.to_pylist()]
        dropped += batch.dropped
    return rows, dropped
