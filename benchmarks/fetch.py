"""Time fetching against img2dataset: the same photos from a web server on this machine, shrunk to 256 px, into tars.

    python -m benchmarks.fetch [--photos web small] [--images 4000] [--runs 3] [--processes N] [--threads 32]

Both write the same kind of shard (JPEG quality 95, shorter side 256 px, SHA-256, EXIF); ours also checks addresses,
robots.txt and opt-outs and computes PDQ hashes. Runs alternate, the median counts. CPU seconds are those of the whole
process tree; the server has a process of its own and is not counted. The cost of a run over one image per process
(mainly imports) is subtracted on both sides; the table also has the numbers with start-up. img2dataset is taken from
WIT_IMG2DATASET_PYTHON (an interpreter that can import it) or installed from PyPI into .venv-img2dataset.

Two sets of photos, from the folder of real data (WIT_SHARED_DATA), or generated ones where it is absent:
  web    COCO's, re-encoded to the file sizes of the web: those of 14,734 JPEG files of Conceptual Captions (validation)
         as served in January 2019, at 0.2 bytes per pixel (the median of Caltech 101's files); the main ratio
  small  Caltech's photos and faces and COCO's, unchanged: three in four have some 300 x 200 pixels and 14 kB
"""

import argparse
import asyncio
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
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import uvloop
from PIL import Image
from rich.console import Console
from rich.table import Table

from pipeline.config import FetchConfig
from pipeline.fetching.fetcher import Fetcher
from pipeline.records import PLAN, pair_uid

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("WIT_SHARED_DATA", ROOT.parent / "shared" / "data"))
PHOTOS = {
    "web": ["coco_159.tar"],
    "small": ["caltech101_20_per_class.tar", "caltech_faces_crop_pairs.tar", "coco_159.tar"],
}
# The file sizes of the web in kB: the 2.5th, 7.5th ... 97.5th percentile.
WEB_KILOBYTES = (21, 28, 34, 39, 44, 48, 53, 59, 65, 71, 78, 86, 95, 105, 119, 138, 167, 223, 322, 644)
WEB_BYTES_PER_PIXEL = 0.2
IMAGE_SIZE = 256
STRIDE = 7919  # a prime: neighbours in the list are not neighbours in the tar

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
    """The cost of a run; `images` is the number stored in tars."""

    images: int
    wall_s: float
    cpu_s: float

    def without(self, start_up: "Cost") -> "Cost":
        """Return the cost without start-up."""
        return Cost(self.images - start_up.images, self.wall_s - start_up.wall_s, self.cpu_s - start_up.cpu_s)

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

    def medians(self) -> list[float]:
        """Return images per CPU second and per second, without and with start-up."""
        start_up = Cost(
            self.start_up[0].images,
            statistics.median(cost.wall_s for cost in self.start_up),
            statistics.median(cost.cpu_s for cost in self.start_up),
        )
        bare = [run.without(start_up) for run in self.runs]
        return [
            statistics.median(cost.images_per_cpu_second for cost in bare),
            statistics.median(cost.images_per_s for cost in bare),
            statistics.median(cost.images_per_cpu_second for cost in self.runs),
            statistics.median(cost.images_per_s for cost in self.runs),
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", nargs="+", choices=sorted(PHOTOS), default=sorted(PHOTOS, reverse=True))
    parser.add_argument("--images", type=int, default=4_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--threads", type=int, default=32, help="of img2dataset, per process")
    parser.add_argument("--ours", metavar="FILE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.ours:
        fetch_all(Path(args.ours), args.processes)
        return
    python = find_img2dataset()
    results = {}
    for name in args.photos:
        photos = load_photos(name)
        with tempfile.TemporaryDirectory() as folder, serving(photos, Path(folder)) as port:
            results[name] = compare(Arena(Path(folder), port, args.processes, args.threads, python), args)
        report(name, photos, results[name], args)
    print_json(results)


def compare(arena: "Arena", args: argparse.Namespace) -> dict[str, Measured]:
    """Run both, alternating."""
    measured = {"ours": Measured([], []), "img2dataset": Measured([], [])}
    for _ in range(args.runs):
        for name, run in {"ours": arena.run_ours, "img2dataset": arena.run_theirs}.items():
            measured[name].start_up.append(run(args.processes))
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


class _Photos(asyncio.Protocol):
    """A minimal HTTP server that keeps connections open: /N.jpg is a photo, everything else is not found."""

    answers: list[bytes]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            request, self._received = self._received[:end], self._received[end + 4 :]
            self._answer(request)

    def _answer(self, request: bytes) -> None:
        name = request.split(b" ", 2)[1].removeprefix(b"/").removesuffix(b".jpg")
        not_found = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
        known = name.isdigit()
        self._transport.write(self.answers[int(name) * STRIDE % len(self.answers)] if known else not_found)
        if b"onnection: close" in request:
            self._transport.close()


def serve(folder: str) -> None:
    """Serve the photos in `folder`/photos.arrow; write the port to `folder`/port."""
    with pa.ipc.open_file(pa.memory_map(f"{folder}/photos.arrow")) as file:
        photos = file.read_all()["photo"].to_pylist()
    head = "HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {}\r\n\r\n"
    _Photos.answers = [head.format(len(photo)).encode() + photo for photo in photos]

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(_Photos, "127.0.0.1", 0, backlog=1_024)
        port = server.sockets[0].getsockname()[1]
        Path(folder, "port.tmp").write_text(str(port))
        Path(folder, "port.tmp").rename(Path(folder, "port"))
        await server.serve_forever()

    uvloop.run(run())


@contextmanager
def serving(photos: list[bytes], folder: Path) -> Iterator[int]:
    """Serve photos from another process; yield the port."""
    table = pa.table({"photo": photos})
    with pa.ipc.new_file(str(folder / "photos.arrow"), table.schema) as file:
        file.write_table(table)
    process = get_context("spawn").Process(target=serve, args=(str(folder),))
    process.start()
    while not (folder / "port").exists():
        if not process.is_alive():
            sys.exit("benchmarks.fetch: the web server did not start")
        time.sleep(0.05)
    try:
        yield int((folder / "port").read_text())
    finally:
        process.terminate()
        process.join()


@dataclass(frozen=True)
class Arena:
    """The setting of both: same server, same list of URLs, same number of processes."""

    folder: Path
    port: int
    processes: int
    threads: int
    img2dataset_python: Path

    def run_ours(self, images: int) -> Cost:
        out = self._fresh("ours")
        pq.write_table(self._plan(images), out / "plan.parquet")
        command = [sys.executable, "-m", "benchmarks.fetch", "--ours", out / "plan.parquet"]
        return measure([*command, "--processes", str(self.processes)], out)

    def run_theirs(self, images: int) -> Cost:
        out = self._fresh("theirs")
        pq.write_table(self._plan(images).select(["url", "caption"]), self.folder / "urls.parquet")
        (self.folder / "run.py").write_text(IMG2DATASET)
        per_shard = -(-images // self.processes)
        arguments = [self.folder / "urls.parquet", out, self.processes, self.threads, per_shard]
        return measure([self.img2dataset_python, self.folder / "run.py", *arguments], out)

    def _fresh(self, name: str) -> Path:
        shutil.rmtree(self.folder / name, ignore_errors=True)
        (self.folder / name).mkdir()
        return self.folder / name

    def _plan(self, images: int) -> pa.Table:
        urls = [f"http://127.0.0.1:{self.port}/{number}.jpg" for number in range(images)]
        constant = {"caption": "a photo", "text_field": "alt", "page_url": "", "source": "benchmark", "language": "en"}
        rows = [
            constant | {"uid": pair_uid(url, "a photo"), "url": url, "query_ids": [1], "selected_by": [1]}
            for url in urls
        ]
        return pa.Table.from_pylist(rows, schema=PLAN)


def measure(command: list[object], out: Path) -> Cost:
    """Run a command that fills tars in `out`; measure its CPU time and that of all its children."""
    environment = os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1"}
    started_s = time.monotonic()
    with (out / "log.txt").open("wb") as log:
        process = subprocess.Popen([str(word) for word in command], cwd=ROOT, env=environment, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall_s = time.monotonic() - started_s
    if process.returncode:
        sys.exit(f"benchmarks.fetch: {command[0]} failed:\n{(out / 'log.txt').read_text()[-2_000:]}")
    images = 0
    for path in out.glob("*.tar"):
        with tarfile.open(path) as tar:
            images += sum(member.name.endswith(".jpg") for member in tar)
    return Cost(images, wall_s, usage.ru_utime + usage.ru_stime)


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
    """Print the table of one set of photos, and the machine."""
    kind = name if SHARED.is_dir() else f"{name}, generated"
    kilobytes = sum(map(len, photos)) / len(photos) / 1_000
    table = Table(title=f"{args.images} of {len(photos)} photos ({kind}, {kilobytes:.0f} kB each)")
    figures_of = ("images/CPU second", "images/s")
    for column in ("", *figures_of, *(f"{figure}, with start-up" for figure in figures_of)):
        table.add_column(column, justify="right" if column else "left")
    for tool, runs in measured.items():
        table.add_row(tool, *(f"{figure:,.0f}" for figure in runs.medians()))
    table.add_row("ratio", *(f"{ratio:.2f}" for ratio in ratios_of(measured)))
    console = Console()
    console.print(table)
    machine = f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}"
    console.print(f"{args.processes} processes, median of {args.runs} runs; {machine}, load {os.getloadavg()[0]:.1f}")


def ratios_of(measured: dict[str, Measured]) -> list[float]:
    """Return ours over theirs, for each of the medians."""
    pairs = zip(measured["ours"].medians(), measured["img2dataset"].medians(), strict=True)
    return [ours / theirs for ours, theirs in pairs]


def print_json(results: dict[str, dict[str, Measured]]) -> None:
    """Print all ratios as one line; those of the first set of photos have no suffix."""
    figures = {}
    for name, measured in results.items():
        suffix = f"_{name}" if figures else ""
        per_cpu_second, per_s, per_cpu_second_all, per_s_all = ratios_of(measured)
        figures[f"ratio_images_per_cpu_second{suffix}"] = round(per_cpu_second, 3)
        figures[f"ratio_images_per_s{suffix}"] = round(per_s, 3)
        figures[f"ratio_images_per_cpu_second_with_start_up{suffix}"] = round(per_cpu_second_all, 3)
        figures[f"ratio_images_per_s_with_start_up{suffix}"] = round(per_s_all, 3)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
