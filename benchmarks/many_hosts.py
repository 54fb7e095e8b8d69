"""Fetch 20,000 URLs of 2,000 local host names with real processes: requests for robots.txt, makespan, idle time, tree.

    python -m benchmarks.many_hosts [--urls 20000] [--hosts 2000] [--largest 0.1] [--processes 2 1] [--interval 0.1]
        [--folder DIR]

`wit build --to fetched` runs with one process, and with several, against a web server on 127.0.0.1 that answers for all
names (`fetch.gateway` sends every request to it) and writes down when each was asked. The number of URLs of a host
follows Zipf's law behind the largest. `bound` is the larger of the largest host's time at its interval and of the CPU
time of all processes, divided among them. `idle` is the share of the makespan in which no request arrived although
some host with URLs left could have been asked for longer than `SLACK_S`. The trees of the builds are compared. With a
folder, what was measured is kept there, and not measured again. The last line is JSON.
"""

import argparse
import asyncio
import hashlib
import heapq
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import uvloop
from PIL import Image

from benchmarks.photo_server import KeepAliveProtocol

ROOT = Path(__file__).parents[1]
SLACK_S = 0.25
IMAGES = 64
SIDE_PX = 96


def host_names(urls: int, hosts: int, largest: float) -> list[str]:
    """Return the host of each URL, those of a host apart from each other."""
    weights = 1 / np.arange(1, hosts + 1)
    weights[0] = weights[1:].sum() * largest / (1 - largest)
    counts = np.maximum(1, np.floor(weights / weights.sum() * urls)).astype(int)
    counts[0] += urls - counts.sum()
    names = np.repeat([f"host{number}.example" for number in range(hosts)], counts)
    np.random.default_rng(0).shuffle(names)
    return list(map(str, names))


def make_images() -> list[bytes]:
    """Return different small JPEG files."""
    random = np.random.default_rng(1)
    found = []
    for _ in range(IMAGES):
        pixels = Image.fromarray(random.integers(0, 255, (8, 8, 3), np.uint8)).resize((SIDE_PX, SIDE_PX))
        file = io.BytesIO()
        pixels.save(file, "JPEG", quality=85)
        found.append(file.getvalue())
    return found


class _Web(KeepAliveProtocol):
    """/robots.txt allows everything, the rest is a picture."""

    images: list[bytes]
    log: io.TextIOBase

    def answer(self, request: bytes) -> None:
        first, *lines = request.decode("latin-1").split("\r\n")
        path = first.split(" ")[1]
        host = next(line[5:].strip() for line in lines if line.lower().startswith("host:"))
        self.log.write(f"{time.time():.4f}\t{host}\t{path}\n")
        kind, body = "text/plain", b"User-agent: *\nAllow: /\n"
        if path != "/robots.txt":
            kind, body = "image/jpeg", self.images[int(path[1:-4]) % len(self.images)]
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)


def serve(folder: str) -> None:
    """Serve until the process ends; write the port to `folder`/port and requests to `folder`/log."""
    _Web.images = make_images()

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(_Web, "127.0.0.1", 0, backlog=1_024)
        Path(folder, "port.tmp").write_text(str(server.sockets[0].getsockname()[1]))
        Path(folder, "port.tmp").rename(Path(folder, "port"))
        await server.serve_forever()

    with Path(folder, "log").open("w", buffering=1) as _Web.log:
        uvloop.run(run())


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve from another process; yield the gateway's URL."""
    process = get_context("spawn").Process(target=serve, args=(str(folder),))
    process.start()
    while not (folder / "port").exists():
        if not process.is_alive():
            sys.exit("benchmarks.many_hosts: the web server did not start")
        time.sleep(0.05)
    try:
        yield f"http://127.0.0.1:{(folder / 'port').read_text()}"
    finally:
        process.terminate()
        process.join()


@dataclass(frozen=True)
class Asked:
    """What the server was asked for: times in seconds, hosts, and whether for robots.txt."""

    requests: list[tuple[float, str, bool]]

    @classmethod
    def read(cls, log: Path) -> "Asked":
        rows = (line.split("\t") for line in log.read_text().splitlines())
        return cls(sorted((float(when), host, path == "/robots.txt") for when, host, path in rows))

    @property
    def robots(self) -> int:
        return sum(is_robots for _, _, is_robots in self.requests)

    @property
    def makespan_s(self) -> float:
        return self.requests[-1][0] - self.requests[0][0]

    def smallest_interval_s(self) -> float:
        """Return the shortest time between two requests to a host, the 1st percentile: clocks and queues add noise."""
        times = defaultdict(list)
        for when, host, _ in self.requests:
            times[host].append(when)
        between = np.concatenate([np.diff(one) for one in times.values() if len(one) > 1] or [np.zeros(1)])
        return float(np.percentile(between, 1))

    def idle_s(self, interval_s: float) -> float:
        """Return the time in which nothing was asked although a host could have been for longer than SLACK_S."""
        left = Counter(host for _, host, _ in self.requests)
        start_s = self.requests[0][0]
        due = [(start_s, host) for host in left]
        heapq.heapify(due)
        last: dict[str, float] = {}
        idle_s, before_s = 0.0, start_s
        for when, host, _ in self.requests:
            while due and (not left[due[0][1]] or last.get(due[0][1], start_s - interval_s) + interval_s > due[0][0]):
                _, late = heapq.heappop(due)
                if left[late]:
                    heapq.heappush(due, (last[late] + interval_s, late))
            if due:
                idle_s += max(0.0, when - max(before_s, due[0][0]) - SLACK_S)
            left[host] -= 1
            last[host] = before_s = when
        return idle_s


def make_project(folder: Path, names: Sequence[str], gateway: str, interval_s: float) -> Path:
    """Write a project whose plan has one URL per row; return its config."""
    folder.mkdir()
    urls = [f"http://{host}/{number}.jpg" for number, host in enumerate(names)]
    captions = [f"a picture of thing {number}" for number in range(len(names))]
    pq.write_table(pa.table({"url": urls, "caption": captions}), folder / "list.parquet")
    (folder / "queries.txt").write_text("picture\n")
    config = folder / "wit.toml"
    config.write_text(
        'workspace = "work"\n[allowlist]\npath = "queries.parquet"\n'
        '[[sources]]\nkind = "url-table"\npaths = ["list.parquet"]\n'
        f"[balance]\ncap = {len(names)}\n"
        f'[fetch]\ngateway = "{gateway}"\ncontact = "mailto:benchmark@example.org"\n'
        f"host_interval_s = {interval_s}\nparts = 4\n"
    )
    _wit(folder, "queries", "import", "queries.txt", "--out", "queries.parquet")
    _wit(folder, "build", "-c", str(config), "--quiet", "--to", "plan")
    return config


def _wit(folder: Path, *arguments: str) -> float:
    """Run a command; return its CPU time and that of all its processes, in seconds."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPATH"] = str(ROOT)
    before = psutil.Process().cpu_times()
    subprocess.run([sys.executable, "-m", "pipeline.cli", *arguments], cwd=folder, env=environment, check=True)
    after = psutil.Process().cpu_times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def tree(root: Path) -> dict[str, str]:
    """Return the SHA-256 of the files of fetched/ by name."""
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in root.glob("*")}


def fetch(folder: Path, names: Sequence[str], processes: int, interval_s: float) -> dict[str, object]:
    """Fetch all URLs; return the figures and the tree."""
    folder.mkdir()
    with serving(folder) as gateway:
        config = make_project(folder / "project", names, gateway, interval_s)
        options = ["--direct_num_workers", str(processes)] if processes > 1 else []
        cpu_s = _wit(config.parent, "build", "-c", str(config), "--quiet", "--to", "fetched", *options)
    asked = Asked.read(folder / "log")
    counts = Counter(host for _, host, is_robots in asked.requests if not is_robots)
    slowest_s = (max(counts.values()) + 1) * interval_s
    bound_s = max(slowest_s, cpu_s / processes)
    return {
        "processes": processes,
        "requests": len(asked.requests),
        "robots_per_host": round(asked.robots / len(counts), 4),
        "largest_host_s": round(slowest_s, 1),
        "cpu_s": round(cpu_s, 1),
        "makespan_s": round(asked.makespan_s, 1),
        "makespan_of_bound": round(asked.makespan_s / bound_s, 3),
        "idle": round(asked.idle_s(interval_s) / asked.makespan_s, 4),
        "interval_s_1st_percentile": round(asked.smallest_interval_s(), 3),
        "tree": tree(config.parent / "work" / "fetched"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--urls", type=int, default=20_000)
    parser.add_argument("--hosts", type=int, default=2_000)
    parser.add_argument("--largest", type=float, default=0.1)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--interval", type=float, default=0.1)
    parser.add_argument("--folder", type=Path, help="keep the builds here")
    args = parser.parse_args()
    names = host_names(args.urls, args.hosts, args.largest)
    with tempfile.TemporaryDirectory(prefix="wit-hosts-") as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        runs = []
        for processes in args.processes:
            kept = folder / f"with-{processes}.json"
            if not kept.exists():
                kept.write_text(json.dumps(fetch(folder / f"with-{processes}", names, processes, args.interval)))
            runs.append(json.loads(kept.read_text()))
            print(json.dumps({name: value for name, value in runs[-1].items() if name != "tree"}), flush=True)
        print(json.dumps({"trees_equal": all(run["tree"] == runs[0]["tree"] for run in runs)}))


if __name__ == "__main__":
    main()
