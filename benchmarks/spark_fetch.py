"""Images per second per vCPU on Spark, from the plan to finished shards, against worker processes without Spark.

    python -m benchmarks.spark_fetch [--images 2000] [--cores 2]

A web server on this machine has photos of the sizes of the web (see benchmarks.fetch). `wit build` makes the plan;
what counts is the time from there to the last shard, with everything that a cluster adds: its executors start, a Python
process for each core starts, and each job is scheduled. The standalone cluster has one executor with one core for each
of `--cores`. CPU seconds are those of all processes of driver, master, workers, executors and Python, sampled; the web
server, which has a process of its own, is not counted. The photos repeat, so most images are duplicates that reach no
shard: of the cost of a pair, 0.4 ms of some 3.5 are missing.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.fetch import IMAGE_SIZE, load_photos
from benchmarks.photo_server import serving
from pipeline.beam.spark.cluster import local_cluster
from pipeline.cli.main import main as wit
from queries.allowlist import import_allowlist

_SAMPLE_S = 0.25


class CpuMeter(threading.Thread):
    """Adds up the CPU seconds of this process and all that it started, but for one."""

    def __init__(self, but: set[int]) -> None:
        super().__init__(daemon=True)
        self._but = but
        self._seconds: dict[tuple[int, float], float] = {}
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(_SAMPLE_S):
            self.sample()

    def sample(self) -> None:
        me = psutil.Process()
        for process in [me, *me.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                if process.pid not in self._but:
                    times = process.cpu_times()
                    self._seconds[process.pid, process.create_time()] = times.user + times.system

    @property
    def total_s(self) -> float:
        self.sample()
        return sum(self._seconds.values())

    def end(self) -> None:
        self._done.set()
        self.join()


def write_project(folder: Path, ports: list[int], images: int) -> Path:
    """Write a list of links to the server, one query that all captions match, and a config."""
    urls = [f"http://127.0.0.1:{ports[n % len(ports)]}/{n}.jpg" for n in range(images)]
    captions = [f"a photo of a thing, number {n}" for n in range(images)]
    pq.write_table(pa.table({"url": urls, "caption": captions}), folder / "list.parquet")
    (folder / "words.txt").write_text("photo\n")
    import_allowlist(str(folder / "words.txt"), str(folder / "queries.parquet"))
    config = folder / "wit.toml"
    config.write_text(
        'workspace = "work"\n[allowlist]\npath = "queries.parquet"\n[[sources]]\nkind = "url-table"\n'
        f'paths = ["list.parquet"]\n[balance]\ncap = {images}\nslack = 1.0\n[fetch]\nparts = 8\n'
        f"image_size = {IMAGE_SIZE}\nallow_private_hosts = true\nhost_interval_s = 0.0\nhost_concurrency = 64\n"
        'contact = "mailto:benchmark@example.org"\n'
    )
    return config


@contextmanager
def options_of(engine: str, cores: int, folder: Path) -> Iterator[list[str]]:
    """Yield the options of a build on an engine, which runs meanwhile."""
    if engine == "processes":
        yield [f"--direct_num_workers={cores}"]
        return
    with local_cluster(folder, workers=cores) as cluster:
        size = f"--job_server_jvm_properties=-Dspark.cores.max={cores}"
        yield ["--runner=SparkRunner", f"--spark_master_url={cluster.url}", size]


def measure(engine: str, cores: int, images: int, photos: list[bytes]) -> dict[str, float]:
    """Build once; return images, seconds and CPU seconds from the plan to the shards."""
    with tempfile.TemporaryDirectory(prefix="wit-spark-fetch-") as place:
        folder = Path(place)
        (folder / "web").mkdir()
        (folder / "cluster").mkdir()
        before = {process.pid for process in psutil.Process().children(recursive=True)}
        with serving(photos, folder / "web") as ports:
            server = {process.pid for process in psutil.Process().children(recursive=True)} - before
            config = write_project(folder, list(ports), images)
            build = ["build", "-c", str(config), "--quiet"]
            if wit([*build, "--to", "plan"]):
                sys.exit("the plan failed")
            with options_of(engine, cores, folder / "cluster") as options:
                meter = CpuMeter(server)
                start_s, cpu_s = time.perf_counter(), meter.total_s
                meter.start()
                if wit([*build, "--to", "shards", *options]):
                    sys.exit(f"{engine}: the build failed")
                seconds, cpu_s = time.perf_counter() - start_s, meter.total_s - cpu_s
                meter.end()
        parts = (folder / "work" / "fetched").glob("*.parquet")  # the images are beside them
        statuses = [pq.read_table(part, columns=["status"])["status"].to_pylist() for part in parts]
        fetched = sum(status.count("success") for status in statuses)
    return {"images": fetched, "seconds": seconds, "cpu_s": cpu_s}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--engines", nargs="+", choices=["processes", "spark"], default=["processes", "spark"])
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    args = parser.parse_args()
    photos = load_photos("web")
    for engine in args.engines:
        found = measure(engine, args.cores, args.images, photos)
        rates = {
            "images_per_s_per_vcpu": found["images"] / found["seconds"] / args.cores,
            "images_per_cpu_s": found["images"] / found["cpu_s"],
        }
        if args.json:
            print(json.dumps({"engine": engine, "cores": args.cores} | found | rates))
        else:
            print(
                f"{engine:<10} {found['images']:,.0f} images in {found['seconds']:.0f} s with {args.cores} vCPUs: "
                f"{rates['images_per_s_per_vcpu']:.1f} images per second per vCPU, "
                f"{rates['images_per_cpu_s']:.1f} per CPU second"
            )


if __name__ == "__main__":
    main()
