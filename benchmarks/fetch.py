"""Time fetching against img2dataset: the same photos from a web server on this machine, shrunk to 256 px, into tars.

    python -m benchmarks.fetch [--webs web small faulty] [--images 4000] [--runs 5] [--processes N] [--threads 32]

Both write the same kind of shard (JPEG quality 95, shorter side 256 px, SHA-256, EXIF); ours also checks addresses,
robots.txt and opt-outs and computes PDQ hashes. Runs alternate; the median counts, with the lowest and the highest.
CPU seconds (user and system) are those of the whole process tree; the server has a process of its own and is not
counted. The cost of a run over one image per process (mainly imports) is subtracted on both sides; the table also has
the numbers with start-up. Memory is that of all processes together. The stall is the longest time for which one step
blocked our event loop. img2dataset is taken from WIT_IMG2DATASET_PYTHON (an interpreter that can import it) or
installed from PyPI into .venv-img2dataset.

Three webs, of photos from the folder of real data (WIT_SHARED_DATA), or of generated ones where it is absent:
  web     COCO's, re-encoded to the file sizes of the web: those of 14,734 JPEG files of Conceptual Captions
          (validation) as served in January 2019, at 0.2 bytes per pixel (the median of Caltech 101's files); the main
          ratio
  small   Caltech's photos and faces and COCO's, unchanged: three in four have some 300 x 200 pixels and 14 kB
  faulty  the photos of `web` on 20 servers: one takes 2 s to respond (5 % of the URLs), 20 % of the URLs are not found
          and 10 % are of a server that refuses connections
"""

import argparse
import io
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.photo_server import serving
from pipeline.config.fetch import FetchConfig
from pipeline.fetching.fetcher import Fetcher
from pipeline.records import PLAN, pair_uid

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("WIT_SHARED_DATA", ROOT.parent / "shared" / "data"))
PHOTOS = {
    "web": ["coco_159.tar"],
    "small": ["caltech101_20_per_class.tar", "caltech_faces_crop_pairs.tar", "coco_159.tar"],
}
PHOTOS_OF = {"web": "web", "small": "small", "faulty": "web"}
# The file sizes of the web in kB: the 2.5th, 7.5th ... 97.5th percentile.
WEB_KILOBYTES = (21, 28, 34, 39, 44, 48, 53, 59, 65, 71, 78, 86, 95, 105, 119, 138, 167, 223, 322, 644)
WEB_BYTES_PER_PIXEL = 0.2
IMAGE_SIZE = 256

IMG2DATASET = """
import sys
from img2dataset import download
if __name__ == "__main__":
    urls, out, processes, threads, per_shard = sys.argv[1:]
    download(url_list=urls, input_format="parquet", url_col="url", caption_col="caption", output_folder=out,
             output_format="webdataset", processes_count=int(processes), thread_count=int(threads), image_size=256,
             resize_mode="keep_ratio", resize_only_if_bigger=True, number_sample_per_shard=int(per_shard))
"""


@dataclass(frozen=True)
class Cost:
    """The cost of a run; `images` is the number stored in tars, `peak_mb` the most memory of all processes."""

    images: int
    wall_s: float
    cpu_s: float
    peak_mb: float = 0.0
    stall_s: float = 0.0

    def without(self, start_up: "Cost") -> "Cost":
        """Return the cost without start-up."""
        images, wall_s = self.images - start_up.images, self.wall_s - start_up.wall_s
        return replace(self, images=images, wall_s=wall_s, cpu_s=self.cpu_s - start_up.cpu_s)

    @property
    def images_per_s(self) -> float:
        return self.images / self.wall_s

    @property
    def images_per_cpu_second(self) -> float:
        return self.images / self.cpu_s


@dataclass(frozen=True)
class Measured:
    """The runs of one tool over one set of photos."""

    start_up: list[Cost]
    runs: list[Cost]

    def figures(self) -> list[list[float]]:
        """Return, for each run, images per CPU second and per second, without and with start-up."""
        start_up = Cost(
            self.start_up[0].images,
            statistics.median(cost.wall_s for cost in self.start_up),
            statistics.median(cost.cpu_s for cost in self.start_up),
        )
        bare = [run.without(start_up) for run in self.runs]
        return [
            [one.images_per_cpu_second, one.images_per_s, run.images_per_cpu_second, run.images_per_s]
            for one, run in zip(bare, self.runs, strict=True)
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--webs", nargs="+", choices=list(PHOTOS_OF), default=list(PHOTOS_OF))
    parser.add_argument("--images", type=int, default=4_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--threads", type=int, default=32, help="of img2dataset, per process")
    parser.add_argument("--ours", metavar="FILE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.ours:
        fetch_all(Path(args.ours), args.processes)
        return
    python = find_img2dataset()
    results = {}
    for name in args.webs:
        photos = load_photos(PHOTOS_OF[name])
        with tempfile.TemporaryDirectory() as folder, serving(photos, Path(folder)) as ports:
            results[name] = compare(
                Arena(Path(folder), ports, args.processes, args.threads, python, name == "faulty"), args
            )
        report(name, photos, results[name], args)
    print_json(results)


def compare(arena: "Arena", args: argparse.Namespace) -> dict[str, Measured]:
    """Run both, alternating."""
    measured = {"ours": Measured([], []), "img2dataset": Measured([], [])}
    for _ in range(args.runs):
        for name, run in {"ours": arena.run_ours, "img2dataset": arena.run_theirs}.items():
            measured[name].start_up.append(run(args.processes, is_start_up=True))
            measured[name].runs.append(run(args.images))
    return measured


def load_photos(name: str) -> list[bytes]:
    """Return the photos to serve."""
    if not SHARED.is_dir():
        photos = [generate_photo(seed) for seed in range(200)]
    else:
        photos = []
        for tar_name in PHOTOS[name]:
            with tarfile.open(SHARED / "photos" / tar_name) as tar:
                members = [member for member in tar if member.name.endswith((".jpg", ".jpeg"))]
                photos += [tar.extractfile(member).read() for member in members]  # type: ignore[union-attr]
    if name == "web":
        kilobytes = (WEB_KILOBYTES[number % len(WEB_KILOBYTES)] for number in range(len(photos)))
        return [encode_to_size(photo, 1_000 * size) for photo, size in zip(photos, kilobytes, strict=False)]
    return photos


def encode_to_size(photo: bytes, size_bytes: int) -> bytes:
    """Return a photo with the pixels of a web file of `size_bytes`, as close to that size as JPEG gets it."""
    image = Image.open(io.BytesIO(photo)).convert("RGB")
    factor = (size_bytes / WEB_BYTES_PER_PIXEL / (image.width * image.height)) ** 0.5
    image = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)
    files = []
    for quality in (60, 70, 80, 87, 92, 95):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        files.append(file.getvalue())
    return min(files, key=lambda file: abs(len(file) - size_bytes))


def generate_photo(seed: int) -> bytes:
    """Return a JPEG file with some detail at every scale, as photos have."""
    random = np.random.default_rng(seed)
    width, height = random.integers(300, 900, 2)
    total = np.zeros((height, width, 3), np.float32)
    for cells in (4, 16, 64, 256):
        noise = Image.fromarray(random.integers(0, 255, (cells, cells, 3), dtype=np.uint8))
        total += np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC), np.float32) * (4 / cells)
    file = io.BytesIO()
    Image.fromarray((255 * total / total.max()).astype(np.uint8)).save(file, "JPEG", quality=88)
    return file.getvalue()


@dataclass(frozen=True)
class Arena:
    """The setting of both: same servers, same list of URLs, same number of processes."""

    folder: Path
    ports: list[int]
    processes: int
    threads: int
    img2dataset_python: Path
    is_faulty: bool

    def run_ours(self, images: int, *, is_start_up: bool = False) -> Cost:
        out = self._fresh("ours")
        pq.write_table(self._plan(images, is_start_up), out / "plan.parquet")
        command = [sys.executable, "-m", "benchmarks.fetch", "--ours", out / "plan.parquet"]
        cost = measure([*command, "--processes", str(self.processes)], out)
        return replace(cost, stall_s=max(float(path.read_text()) for path in out.glob("*.stall")))

    def run_theirs(self, images: int, *, is_start_up: bool = False) -> Cost:
        out = self._fresh("theirs")
        pq.write_table(self._plan(images, is_start_up).select(["url", "caption"]), self.folder / "urls.parquet")
        (self.folder / "run.py").write_text(IMG2DATASET)
        per_shard = -(-images // self.processes)
        arguments = [self.folder / "urls.parquet", out, self.processes, self.threads, per_shard]
        return measure([self.img2dataset_python, self.folder / "run.py", *arguments], out)

    def _fresh(self, name: str) -> Path:
        shutil.rmtree(self.folder / name, ignore_errors=True)
        (self.folder / name).mkdir()
        return self.folder / name

    def _url(self, number: int) -> str:
        """Return the URL of an image: of the faulty web, of every 20 one is slow, four are not found, two refused."""
        *ports, slow, refuses = self.ports
        kind = number % 20 if self.is_faulty else 5
        if kind in (1, 4, 11, 14):
            return f"http://127.0.0.1:{ports[kind % len(ports)]}/gone/{number}.jpg"
        port = {0: slow, 7: refuses, 17: refuses}.get(kind, ports[kind % len(ports)])
        return f"http://127.0.0.1:{port}/{number}.jpg"

    def _plan(self, images: int, is_start_up: bool) -> pa.Table:
        urls = [self._url(20 * number + 5 if is_start_up else number) for number in range(images)]
        constant = {"caption": "a photo", "text_field": "alt", "page_url": "", "source": "benchmark", "language": "en"}
        rows = [
            constant | {"uid": pair_uid(url, "a photo"), "url": url, "query_ids": [1], "selected_by": [1]}
            for url in urls
        ]
        return pa.Table.from_pylist(rows, schema=PLAN)


def measure(command: list[object], out: Path) -> Cost:
    """Run a command that fills tars in `out`; measure its CPU time and that of all its children."""
    environment = os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # or each start compiles every module again
    started_s = time.monotonic()
    with (out / "log.txt").open("wb") as log:
        process = subprocess.Popen([str(word) for word in command], cwd=ROOT, env=environment, stdout=log, stderr=log)
        memory = _Memory(process.pid)
        memory.start()
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall_s = time.monotonic() - started_s
    memory.join()
    if process.returncode:
        sys.exit(f"benchmarks.fetch: {command[0]} failed:\n{(out / 'log.txt').read_text()[-2_000:]}")
    images = 0
    for path in out.glob("*.tar"):
        with tarfile.open(path) as tar:
            images += sum(member.name.endswith(".jpg") for member in tar)
    return Cost(images, wall_s, usage.ru_utime + usage.ru_stime, memory.peak_mb)


class _Memory(threading.Thread):
    """Measures the most memory of a process and its children together, without what they share, until they end."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak_mb = 0.0
        self._process = psutil.Process(pid)

    def run(self) -> None:
        with suppress(psutil.NoSuchProcess):
            while self._process.status() != psutil.STATUS_ZOMBIE:
                used = 0
                for one in [self._process, *self._process.children(recursive=True)]:
                    with suppress(psutil.NoSuchProcess):
                        facts = one.memory_info()
                        used += facts.rss - facts.shared
                self.peak_mb = max(self.peak_mb, used / 1e6)
                time.sleep(0.2)


def fetch_all(plan_file: Path, processes: int) -> None:
    """Fetch a plan in as many parts as processes."""
    rows = pq.read_metadata(plan_file).num_rows
    size = -(-rows // processes)
    jobs = [(plan_file, number, size, processes) for number in range(processes)]
    if processes == 1:
        fetch_one(*jobs[0])
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for job in [pool.submit(fetch_one, *job) for job in jobs]:
            job.result()


def fetch_one(plan_file: Path, number: int, size: int, processes: int) -> None:
    """Fetch part `number` of a plan, beside it."""
    plan = pq.read_table(plan_file).slice(number * size, size)
    config = FetchConfig(
        allow_private_hosts=True, host_interval_s=0.0, host_concurrency=32 * processes, image_size=IMAGE_SIZE
    )
    stem = plan_file.parent / f"part-{number:05d}"
    with Fetcher(config, workers=processes) as fetcher, stem.with_suffix(".tar").open("wb") as tar:
        table = fetcher.fetch_part(plan, tar_stream=tar, scratch_dir=plan_file.parent)
        stem.with_suffix(".stall").write_text(str(fetcher.stats.longest_stall_s))
    pq.write_table(table, stem.with_suffix(".parquet"))


def find_img2dataset() -> Path:
    """Return an interpreter that can import img2dataset, installing it if none is given."""
    named = os.environ.get("WIT_IMG2DATASET_PYTHON")
    if named:
        return Path(named)
    python = ROOT / ".venv-img2dataset" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", python.parents[1]], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "img2dataset"], check=True)
    return python


def report(name: str, photos: list[bytes], measured: dict[str, Measured], args: argparse.Namespace) -> None:
    """Print the table of one web, and the machine."""
    kind = name if SHARED.is_dir() else f"{name}, generated"
    kilobytes = sum(map(len, photos)) / len(photos) / 1_000
    table = Table(title=f"{args.images} of {len(photos)} photos ({kind}, {kilobytes:.0f} kB each)")
    figures_of = ("images/CPU second", "images/s")
    for column in ("", *figures_of, *(f"{figure}, with start-up" for figure in figures_of), "images", "MB", "stall, s"):
        table.add_column(column, justify="right" if column else "left")
    for tool, runs in measured.items():
        peak_mb, stall_s = max(run.peak_mb for run in runs.runs), max(run.stall_s for run in runs.runs)
        stored = sorted({run.images for run in runs.runs})
        spreads = [in_words(column, 0) for column in zip(*runs.figures(), strict=True)]
        stall = f"{stall_s:.2f}" if stall_s else ""
        table.add_row(tool, *spreads, ", ".join(map(str, stored)), f"{peak_mb:.0f}", stall)
    table.add_row("ratio", *(in_words(column, 2) for column in ratios_of(measured)))
    console = Console(width=180)
    console.print(table)
    machine = f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}"
    console.print(
        f"{args.processes} processes, median (lowest to highest) of {args.runs} rounds; {machine}, "
        f"load {os.getloadavg()[0]:.1f}"
    )


def in_words(values: Sequence[float], digits: int) -> str:
    """Return the median, the lowest and the highest value."""
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def ratios_of(measured: dict[str, Measured]) -> list[list[float]]:
    """Return ours over theirs, for each of the figures, round by round."""
    rounds = zip(measured["ours"].figures(), measured["img2dataset"].figures(), strict=True)
    by_round = [[ours / theirs for ours, theirs in zip(*pair, strict=True)] for pair in rounds]
    return [list(column) for column in zip(*by_round, strict=True)]


def print_json(results: dict[str, dict[str, Measured]]) -> None:
    """Print the median of all ratios as one line; those of the first web have no suffix."""
    figures = {}
    for name, measured in results.items():
        suffix = f"_{name}" if figures else ""
        per_cpu_second, per_s, per_cpu_second_all, per_s_all = map(statistics.median, ratios_of(measured))
        figures[f"ratio_images_per_cpu_second{suffix}"] = round(per_cpu_second, 3)
        figures[f"ratio_images_per_s{suffix}"] = round(per_s, 3)
        figures[f"ratio_images_per_cpu_second_with_start_up{suffix}"] = round(per_cpu_second_all, 3)
        figures[f"ratio_images_per_s_with_start_up{suffix}"] = round(per_s_all, 3)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
