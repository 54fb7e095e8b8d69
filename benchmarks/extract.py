"""Time the reading of candidates from a WAT file, in CPU seconds of one core; with --peer also cc2dataset's parser.

    python -m benchmarks.extract [--megabytes 300] [--peer OTHER_VENV/bin/python]

The WAT file is made of real records and of records that list the links of 130 real pages the way Common Crawl's
extractor does, one gzip member each, repeated up to the given size. A whole WAT file of Common Crawl is assumed to hold
1.4 GB (about 350 MB compressed). Needs the folder of real data (WIT_SHARED_DATA); the peer is any Python that has the
package: `uv venv peer && uv pip install --python peer/bin/python cc2dataset`.
"""

import argparse
import gzip
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from lxml import etree
from rich.console import Console
from rich.table import Table

from pipeline.config import PairsConfig
from pipeline.config.sources import SourceConfig
from pipeline.sources import read_source
from pipeline.web.warc_records import WarcRecord, read_records

FULL_WAT_MB = 1_400
SHARED = Path(os.environ.get("WIT_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
PEER = """
import json, sys, time
from loguru import logger
logger.remove()
from cc2dataset.main import process_wat
started = time.process_time()
rows = sum(1 for _ in process_wat(sys.argv[1], "image"))
print(json.dumps({"cpu_s": time.process_time() - started, "rows": rows}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--runs", type=int, default=3, help="runs of each, alternating; the median counts")
    parser.add_argument("--peer", help="a Python interpreter with cc2dataset")
    arguments = parser.parse_args()
    if not SHARED.is_dir():
        sys.exit("benchmarks.extract: needs the folder of real data: set WIT_SHARED_DATA")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.warc.wat.gz"
        facts = write_wat(path, arguments.megabytes * 1_000_000)
        print_figures(facts | measure(str(path), facts, arguments.runs, arguments.peer))


def measure(path: str, facts: dict[str, float], runs: int, peer: str | None) -> dict[str, float]:
    """Return the median CPU seconds of ours and of the peer, and the rates and ratios."""
    ours, theirs = [], []
    for _ in range(runs):
        ours.append(time_ours(path))
        if peer:
            theirs.append(time_peer(path, peer))
    figures = speed("ours", ours, facts)
    if theirs:
        figures |= speed("cc2dataset", theirs, facts)
        figures["ratio"] = figures["ours_mb_per_s"] / figures["cc2dataset_mb_per_s"]
    return figures


def speed(name: str, runs: list[dict[str, float]], facts: dict[str, float]) -> dict[str, float]:
    cpu_s = statistics.median(run["cpu_s"] for run in runs)
    return {
        f"{name}_cpu_s": cpu_s,
        f"{name}_pairs": runs[0]["rows"],
        f"{name}_records_per_s": facts["records"] / cpu_s,
        f"{name}_mb_per_s": facts["raw_mb"] / cpu_s,
        f"{name}_s_per_full_wat": FULL_WAT_MB * cpu_s / facts["raw_mb"],
    }


def time_ours(path: str) -> dict[str, float]:
    source = SourceConfig(kind="wat", paths=(path,))
    started = time.process_time()
    rows = sum(batch.candidates.num_rows for batch in read_source(source, path, PairsConfig()))
    return {"cpu_s": time.process_time() - started, "rows": rows}


def time_peer(path: str, python: str) -> dict[str, float]:
    done = subprocess.run([python, "-c", PEER, path], check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def write_wat(path: Path, raw_bytes: int) -> dict[str, float]:
    """Write a WAT file of at least `raw_bytes` uncompressed; return its facts."""
    members = [(gzip.compress(raw, 6), len(raw)) for raw in (*real_records(), *records_of_pages())]
    records = size = 0
    with path.open("wb") as out:
        while size < raw_bytes:
            for compressed, length in members:
                out.write(compressed)
                size += length
                records += 1
    return {"records": records, "raw_mb": size / 1e6, "compressed_mb": path.stat().st_size / 1e6}


def real_records() -> Iterator[bytes]:
    with tarfile.open(SHARED / "web" / "cc_main_2014_35_warc_wat_wet.tar.gz") as archive:
        member = next(m for m in archive.getmembers() if m.name.endswith(".wat"))
        wat = archive.extractfile(member).read()  # type: ignore[union-attr]
    for record in read_records(io.BytesIO(wat)):
        assert isinstance(record, WarcRecord)
        yield record.header + record.block + b"\r\n\r\n"


def records_of_pages() -> Iterator[bytes]:
    with tarfile.open(SHARED / "web" / "html_readability_130.tar.gz") as archive:
        pages = [m for m in archive.getmembers() if m.name.endswith("source.html")]
        for number, member in enumerate(sorted(pages, key=lambda m: m.name)):
            html = archive.extractfile(member).read().decode("utf-8", "replace")  # type: ignore[union-attr]
            yield from page_records(f"https://www.example.com/section/{number}/page.html", html)


def page_records(url: str, html: str) -> Iterator[bytes]:
    """Yield the three WAT records of a page: request, response, crawl metadata."""
    links = Links()
    parser = etree.HTMLParser(target=links)
    parser.feed(html)
    parser.close()
    head = {"Metas": links.metas, "Title": "A page", "Link": links.heads, "Scripts": links.scripts}
    response = {"Response-Message": {"Status": "200", "Version": "HTTP/1.1", "Reason": "OK"}, "Headers": HEADERS}
    response["HTML-Metadata"] = {"Head": head, "Links": links.links}
    for name, content in (
        ("HTTP-Request-Metadata", {"Headers": HEADERS, "Request-Message": {"Method": "GET", "Path": "/"}}),
        ("HTTP-Response-Metadata", response),
        ("WARC-Metadata-Metadata", {"Metadata-Records": [{"Name": "fetchTimeMs", "Value": "261"}]}),
    ):
        envelope = {
            "Format": "WARC",
            "WARC-Header-Metadata": {
                "WARC-Type": "response",
                "WARC-Date": "2024-05-31T01:17:49Z",
                "WARC-Target-URI": url,
                "Content-Type": "application/http; msgtype=response",
            },
            "Payload-Metadata": {"Actual-Content-Type": "application/http; msgtype=response", name: content},
        }
        record = {"Container": {"Filename": "bench.warc.gz", "Compressed": True, "Offset": "0"}, "Envelope": envelope}
        yield wat_record(url, json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode())


HEADERS = {"Content-Type": "text/html; charset=UTF-8", "Connection": "keep-alive", "Server": "nginx", "Vary": "Cookie"}


class Links:
    """A parser target that collects links like Common Crawl's extractor."""

    def __init__(self) -> None:
        self.links: list[dict[str, str]] = []
        self.metas: list[dict[str, str]] = []
        self.heads: list[dict[str, str]] = []
        self.scripts: list[dict[str, str]] = []
        self._text: list[str] | None = None

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if tag == "a" and "href" in attributes:
            self.links.append({"path": "A@/href", "url": attributes["href"]})
            self._text = []
        elif tag == "img" and "src" in attributes:
            texts = {name: attributes[name] for name in ("alt", "title") if attributes.get(name)}
            self.links.append({"path": "IMG@/src", **texts, "url": attributes["src"]})
        elif tag == "meta":
            self.metas.append(dict(attributes))
        elif tag == "link":
            self.heads.append({"path": "LINK@/href", "url": attributes.get("href", "")})
        elif tag == "script" and "src" in attributes:
            self.scripts.append({"path": "SCRIPT@/src", "url": attributes["src"]})

    def end(self, tag: str) -> None:
        if tag == "a" and self._text is not None:
            self.links[-1]["text"] = " ".join("".join(self._text).split())
            self._text = None

    def data(self, text: str) -> None:
        if self._text is not None:
            self._text.append(text)

    def close(self) -> None:
        pass


def wat_record(url: str, body: bytes) -> bytes:
    header = (
        f"WARC/1.0\r\nWARC-Type: metadata\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2024-05-31T01:17:49Z\r\n"
        "WARC-Record-ID: <urn:uuid:3d3f4785-c69a-4f8c-968c-d23302c55ef4>\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return header.encode() + body + b"\r\n\r\n"


def print_figures(figures: dict[str, float]) -> None:
    table = Table("figure", "value")
    for name, value in figures.items():
        table.add_row(name, f"{value:,.2f}")
    Console().print(table)
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
