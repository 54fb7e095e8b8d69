"""Run a set of 20,000 URLs through what its operators do, check each outcome, and time it.

    python -m benchmarks.operations [--urls 20000] [--folder DIR]

A web on this machine has small random pictures on 400 hosts: exact copies, missing images, and servers that are down at
first. Forecast against outcome, retry, the path of pairs, takedowns (a URL, a domain of 500 images, an image by its
look), a second crawl, and the merge of two sets: each is checked against the files, caps by brute force.
"""

import argparse
import asyncio
import contextlib
import io
import json
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.cli.main import main as wit
from pipeline.stages.balance.exact import balance
from queries.allowlist import Allowlist, import_allowlist

HOSTS = 400
DOMAIN_IMAGES = 500
WORDS = [f"{colour} {thing}" for colour in ("red", "blue", "old", "tiny", "wild") for thing in (
    "dog", "cat", "house", "tree", "river", "boat", "chair", "bird", "bridge", "flower", "car", "lamp", "hat", "stone",
)]  # fmt: skip
CAP = 300
SLACK = 1.5


def picture(seed: int) -> bytes:
    """Return a small JPEG that looks like no other."""
    coarse = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (10, 10, 3), np.uint8))
    out = io.BytesIO()
    coarse.resize((72, 64), Image.Resampling.BICUBIC).save(out, "JPEG", quality=85)
    return out.getvalue()


def url_of(number: int) -> str:
    """Return the URL of an image; those of one domain are on ten of its hosts."""
    if number % 40 == 1 and number // 40 < DOMAIN_IMAGES:
        return f"http://img{number // 40 % 10}.big.example/{number}.jpg"
    return f"http://host{number * 7919 % HOSTS}.example/{number}.jpg"


@dataclass
class Web:
    """Serves pictures by their number and counts requests; every eleventh is missing, `down` ones have status 503."""

    requests: Counter[str] = field(default_factory=Counter)
    down: bool = True
    port: int = 0

    def answer(self, url: str) -> bytes:
        self.requests[url] += 1
        name = url.rpartition("/")[2].removesuffix(".jpg")
        number = int(name) if name.isdigit() else 0
        if not name.isdigit() or number % 11 == 5:
            return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
        if self.down and number % 20 == 3:
            return b"HTTP/1.1 503 Down\r\nContent-Length: 0\r\n\r\n"
        body = picture(number - 2 if number % 50 == 9 else number)
        return f"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while head := (await reader.readuntil(b"\r\n\r\n")).decode("latin-1"):
                host = head.partition("Host: ")[2].partition("\r\n")[0]
                writer.write(self.answer(f"http://{host}{head.split(' ')[1]}"))
                await writer.drain()
        writer.close()

    @contextlib.contextmanager
    def running(self) -> Iterator["Web"]:
        """Serve until the block ends."""
        loop = asyncio.new_event_loop()
        server = loop.run_until_complete(asyncio.start_server(self.serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        yield self
        loop.call_soon_threadsafe(loop.stop)
        thread.join()

    def take_requests(self) -> set[str]:
        """Return the images that were requested since the last time."""
        found, self.requests = self.requests, Counter()
        assert all(count == 1 for count in found.values()), "a URL was requested twice"
        return {url for url in found if not url.endswith("/robots.txt")}


def write_project(folder: Path, web: Web, tables: list[str]) -> Path:
    """Write a config for the URL tables of the folder above."""
    folder.mkdir(parents=True)
    config = folder / "wit.toml"
    config.write_text(
        f'workspace = "work"\nseed = 5\n[allowlist]\npath = "../queries.parquet"\n[[sources]]\nkind = "url-table"\n'
        f'paths = {json.dumps([f"../{name}" for name in tables])}\nurl = "url"\ncaption = "caption"\n'
        f"[balance]\ncap = {CAP}\nslack = {SLACK}\n"
        f'[fetch]\nparts = 20\ngateway = "http://127.0.0.1:{web.port}"\ncontact = "mailto:test@example.org"\n'
        "host_interval_s = 0.0\nretries = 0\nimage_size = 64\n"
    )
    return config


def write_tables(folder: Path, urls: int) -> None:
    """Write three tables: the first crawl in two halves, and a second crawl of a quarter more."""
    rows = []
    for number in range(urls + urls // 4):
        random = np.random.default_rng(number)
        one, two = (WORDS[int(len(WORDS) * random.random() ** 2)] for _ in range(2))
        rows.append({"url": url_of(number), "caption": f"Number {number}: a {one} beside a {two}"})
    for name, part in {"a": rows[: urls // 2], "b": rows[urls // 2 : urls], "c": rows[urls:]}.items():
        pq.write_table(pa.Table.from_pylist(part), folder / f"{name}.parquet")
    (folder / "words.txt").write_text("\n".join(WORDS))
    import_allowlist(str(folder / "words.txt"), str(folder / "queries.parquet"))


def run(*words: str) -> str:
    """Run a command; return what it prints."""
    printed = io.StringIO()
    started_s = time.monotonic()
    with contextlib.redirect_stdout(printed):
        code = wit(list(words))
    assert code == 0, f"wit {' '.join(words)}: exit code {code}"
    shown = " ".join(word.rpartition("/")[2] if "/" in word else word for word in words if not word.startswith("-c"))
    print(f"{time.monotonic() - started_s:7.1f} s  wit {shown[:100]}", flush=True)
    return printed.getvalue()


def rows_of(config: Path, folder: str) -> list[dict[str, Any]]:
    """Return the rows of a stage of a workspace."""
    files = sorted((config.parent / "work" / folder).glob("*.parquet"))
    return [row for path in files for row in pq.read_table(path).to_pylist()]


def samples(config: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of a finished set by uid."""
    return {row["uid"]: row for row in rows_of(config, "shards") if row["status"] == "success"}


def check_caps(config: Path, removed: frozenset[str] = frozenset()) -> None:
    """Compare the set with the selection by brute force: of all pairs, then of all that survived."""
    queries = Allowlist.load(str(config.parent.parent / "queries.parquet")).queries
    pool = {row["uid"]: {"uid": row["uid"], "query_ids": row["query_ids"]} for row in rows_of(config, "pairs")}
    pairs = pa.Table.from_pylist(sorted(pool.values(), key=lambda row: row["uid"]))
    planned = set(balance(pairs, cap=round(CAP * SLACK), seed=5, queries=queries)["uid"].to_pylist())
    fetched = [row for row in rows_of(config, "fetched") if row["uid"] not in removed]
    assert planned - removed == {row["uid"] for row in fetched}, "the plan is not that of brute force"
    copies = set(pq.read_table(config.parent / "work/dedup/duplicates.parquet")["uid"].to_pylist())
    good = [
        {"uid": row["uid"], "query_ids": row["query_ids"]}
        for row in fetched
        if row["status"] == "success" and row["uid"] not in copies
    ]
    chosen = set(balance(pa.Table.from_pylist(good), cap=CAP, seed=5, queries=queries)["uid"].to_pylist())
    assert samples(config).keys() == chosen, "the set is not that of brute force"
    per_query = Counter(query for row in samples(config).values() for query in row["selected_by"])
    assert max(per_query.values()) == CAP
    print(
        f"           caps as by brute force: {len(chosen):,} pairs, {sum(n == CAP for n in per_query.values())} at cap"
    )


def forecast_and_build(config: Path, web: Web) -> None:
    run("build", "-c", str(config), "--quiet", "--to", "plan")
    found = json.loads(run("forecast", "-c", str(config), "--json", "--sample", "600"))
    web.requests.clear()
    run("build", "-c", str(config), "--quiet")
    web.take_requests()
    fetched = rows_of(config, "fetched")
    good = {row["url"] for row in fetched if row["status"] == "success"}
    share, expected = len(good) / found["planned_urls"], found["success"]
    stored_gb = sum(path.stat().st_size for path in (config.parent / "work/fetched").glob("*.tar")) / 1e9
    per_query = Counter(query for row in fetched if row["status"] == "success" for query in row["selected_by"])
    at_cap = sum(count >= CAP for count in per_query.values())
    for name, value, interval in (
        ("success share", share, expected),
        ("stored GB", stored_gb, found["stored_gb"]),
        ("queries at cap", at_cap, found["queries_at_cap"]),
    ):
        inside = interval["low"] <= value <= interval["high"]
        said = f"{interval['value']:.4g} ({interval['low']:.4g} to {interval['high']:.4g})"
        print(f"           {name}: forecast {said}, outcome {value:.4g}{'' if inside else ', OUTSIDE'}")


def retry(config: Path, web: Web) -> None:
    down = {row["url"] for row in rows_of(config, "fetched") if row["reason"] == "http_server_error"}
    web.down = False
    web.requests.clear()
    run("build", "-c", str(config), "--quiet", "--retry", "http_server_error", "--retry-older-than", "0s")
    asked = web.take_requests()
    assert asked == down, f"{len(asked ^ down)} URLs more or less than those that failed"
    print(f"           {len(asked):,} URLs requested again, and no other")
    check_caps(config)


def explain(config: Path) -> None:
    row = min(samples(config).values(), key=lambda one: one["uid"])
    gone = next(one for one in rows_of(config, "fetched") if one["reason"] == "http_not_found")
    for wanted, word in ((row["uid"], row["uid"]), (row["url"], row["uid"]), (row["sha256"], row["uid"]),
                         (gone["url"], "http_not_found")):  # fmt: skip
        assert word in run("why", wanted, "-c", str(config), "--json")


def take_down(config: Path) -> None:
    request = config.parent / "request.txt"
    photo = config.parent / "photo.jpg"
    before = samples(config)
    url = min(row["url"] for row in before.values() if "big.example" not in row["url"])
    found = {row["url"] for row in before.values()} - {url}
    number = next(n for n in range(1_000_000) if url_of(n) in found and "big.example" not in url_of(n))
    photo.write_bytes(picture(number))
    cases = {
        url: {uid for uid, row in before.items() if row["url"] == url},
        "big.example": {uid for uid, row in before.items() if ".big.example/" in row["url"]},
        "image:photo.jpg": {uid for uid, row in before.items() if row["url"] == url_of(number)},
    }
    gone: set[str] = set()
    for line, expected in cases.items():
        request.write_text(f"{line}\n")
        changed = {path: path.stat().st_mtime_ns for path in (config.parent / "work/shards").glob("*.tar")}
        run("takedown", str(request), "-c", str(config), "--quiet")
        touched = {path.name for path, at in changed.items() if path.stat().st_mtime_ns != at}
        left = samples(config)
        now = before.keys() - left.keys() - gone
        assert now >= expected - gone, f"{line}: {len(expected - gone - now)} pairs are still there"
        assert touched == {before[uid]["shard"] for uid in now}, f"{line}: other shards were written"
        gone |= now
        print(f"           {len(now):,} pairs of {len(touched)} shards of {len(changed)}")
    run("verify", "-c", str(config))


def grow(folder: Path, web: Web, first: set[str]) -> None:
    """Add a second crawl to a set of the first."""
    config = write_project(folder / "grown", web, ["a.parquet", "b.parquet"])
    run("build", "-c", str(config), "--quiet")
    before = web.take_requests()
    assert before >= first
    shutil.copytree(config.parent / "work/shards", folder / "before")
    config.write_text(config.read_text().replace('"../b.parquet"', '"../b.parquet", "../c.parquet"'))
    run("build", "-c", str(config), "--quiet")
    new = web.take_requests()
    assert new.isdisjoint(before), "URLs of the first crawl were requested again"
    print(f"           {len(new):,} URLs requested, none of the {len(before):,} before")
    check_caps(config)
    print(
        "           " + " ".join(run("diff", str(folder / "before"), str(config.parent / "work/shards")).split())[:200]
    )


def merge(folder: Path, web: Web) -> None:
    halves = [write_project(folder / name, web, [f"{name}.parquet"]) for name in ("a", "b")]
    for config in halves:
        run("build", "-c", str(config), "--quiet")
    web.requests.clear()
    merged = write_project(folder / "merged", web, ["none.parquet"])
    run("merge", *(str(config.parent / "work") for config in halves), "-c", str(merged), "--quiet")
    assert not web.take_requests()
    check_caps(merged)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--urls", type=int, default=20_000)
    parser.add_argument("--folder", type=Path, help="an empty folder to keep everything in")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, Web().running() as web:
        folder = args.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        write_tables(folder, args.urls)
        config = write_project(folder / "set", web, ["a.parquet", "b.parquet"])
        forecast_and_build(config, web)
        retry(config, web)
        explain(config)
        first = {row["url"] for row in rows_of(config, "fetched")}
        take_down(config)
        web.requests.clear()
        grow(folder, web, first)
        merge(folder, web)


if __name__ == "__main__":
    main()
