"""A Spark standalone cluster on this machine: a master and workers in separate processes, on free ports.

For tests, and to try a build on a cluster:

    python -m pipeline.beam.spark.cluster --workers 2
"""

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.beam.spark.job_server import java, pyspark_jars
from pipeline.errors import UserError

_START_TIMEOUT_S = 120
_POLL_INTERVAL_S = 0.1
_MASTER_URL = re.compile(r"Starting Spark master at (spark://\S+)")
_REGISTERED = "Registering worker"


@dataclass(frozen=True)
class Cluster:
    """A running cluster: its address and its processes, which are the JVMs themselves."""

    url: str
    master: "subprocess.Popen[bytes]"
    workers: "tuple[subprocess.Popen[bytes], ...]"


@contextlib.contextmanager
def local_cluster(
    folder: Path, *, workers: int = 2, cores: int = 1, memory: str = "1g", hosts: Sequence[str] = ("127.0.0.1",)
) -> Iterator[Cluster]:
    """Start a cluster whose logs and work files are in `folder`, and end its processes afterwards.

    `cores` and `memory` are per worker; an executor takes one core and, by default, 1 GiB. Workers get the addresses
    `hosts` in turn: to Spark, two addresses are two machines.

    Raises:
        ConfigError: Java or pyspark is missing.
        UserError: the cluster did not start.
    """
    processes: list[subprocess.Popen[bytes]] = []
    try:
        master_log = folder / "master.log"
        master = _start("master.Master", "127.0.0.1", [], master_log)
        processes.append(master)
        url = _wait_for(master, master_log, _MASTER_URL)
        for number in range(workers):
            options = ["--cores", str(cores), "--memory", memory, "--work-dir", str(folder / f"worker-{number}"), url]
            host = hosts[number % len(hosts)]
            processes.append(_start("worker.Worker", host, options, folder / f"worker-{number}.log"))
        _wait_for(master, master_log, re.compile(f"(?s)(?:{_REGISTERED}.*){{{workers}}}"))
        yield Cluster(url, master, tuple(processes[1:]))
    finally:
        _stop(processes)


def _start(role: str, host: str, options: list[str], log: Path) -> "subprocess.Popen[bytes]":
    """Start `org.apache.spark.deploy.<role>`; without the `spark-class` script, so that its process id is the JVM's."""
    jars = pyspark_jars()[0].parent
    light = ["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]  # they do little after their start
    command = [java(), *light, "-cp", f"{jars}/*", f"org.apache.spark.deploy.{role}"]
    command += ["--host", host, "--port", "0", "--webui-port", "0", *options]
    core = next(jars.glob("spark-core_*.jar"))  # spark-core_2.12-3.5.9.jar
    environment = os.environ | {
        "SPARK_HOME": str(jars.parent),
        "SPARK_SCALA_VERSION": core.name.split("_")[1].split("-")[0],  # needed when a worker starts an executor
        "SPARK_LOCAL_IP": host,
    }
    with log.open("wb") as output:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
        )


def _wait_for(process: "subprocess.Popen[bytes]", log: Path, pattern: re.Pattern[str]) -> str:
    """Wait until the pattern occurs in the log; return its last group, or the whole match."""
    give_up = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < give_up and process.poll() is None:
        if match := pattern.search(log.read_text(errors="replace")):
            return match[match.lastindex or 0]
        time.sleep(_POLL_INTERVAL_S)
    raise UserError(f"the Spark cluster did not start: see {log}")


def _stop(processes: "list[subprocess.Popen[bytes]]") -> None:
    """End workers first: they end their executors."""
    for process in reversed(processes):
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def main() -> None:
    """Run a cluster until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.beam.spark.cluster", description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cores", type=int, default=1, help="per worker")
    parser.add_argument("--memory", default="1g", help="per worker")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="wit-spark-"))
    try:
        with local_cluster(folder, workers=args.workers, cores=args.cores, memory=args.memory) as cluster:
            size = f"--job_server_jvm_properties=-Dspark.cores.max={args.workers * args.cores}"
            print(f"wit build -c wit.toml --runner=SparkRunner --spark_master_url={cluster.url} {size}")
            print("Ctrl-C ends the cluster.", flush=True)
            cluster.master.wait()
    except KeyboardInterrupt:
        pass
    except UserError as error:  # keep the folder: the message names a log in it
        parser.exit(error.exit_code, f"{error}\n")
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
