"""What tests do to a Spark cluster: use it, and kill parts of it in mid-run."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
from apache_beam.runners.portability.spark_runner import JOB_SERVER_CACHE

from pipeline.beam.spark.cluster import Cluster

# The runs are short: JVMs that start quickly are worth more than JVMs that get quick.
_QUICK_START = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
QUICK = [f"--job_server_jvm_properties={word}" for word in _QUICK_START.split()]
LOCAL = ["--runner=SparkRunner", "--spark_master_url=local[2]", *QUICK]


def on_cluster(cluster: Cluster) -> list[str]:
    """Return the options of a build on a cluster with two cores."""
    return [
        "--runner=SparkRunner",
        f"--spark_master_url={cluster.url}",
        "--job_server_jvm_properties=-Dspark.cores.max=2",
        f"--job_server_jvm_properties=-Dspark.executor.extraJavaOptions={_QUICK_START}",
        *QUICK,
    ]


def end_job_servers() -> None:
    """End the JVMs that Beam keeps for the next job of this process; their clusters are gone."""
    for server in JOB_SERVER_CACHE.values():
        server.stop()
    JOB_SERVER_CACHE.clear()


@contextmanager
def in_mid_run(is_time: Callable[[], bool], strike: Callable[[], None]) -> Iterator[None]:
    """Call `strike` from a thread as soon as `is_time`; the block must not end before that."""
    over = threading.Event()
    failures: list[BaseException] = [AssertionError("the run ended before it was time to strike")]

    def wait_and_strike() -> None:
        while not over.wait(0.05):
            if is_time():
                failures.clear()
                try:
                    strike()
                except BaseException as error:
                    failures.append(error)
                return

    thread = threading.Thread(target=wait_and_strike)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if failures:
        raise failures[0]


def kill_worker(cluster: Cluster) -> None:
    """Kill -9 the first worker, and what it started: its executor and those who wait for its Python processes."""
    worker = psutil.Process(cluster.workers[0].pid)
    victims = [worker, *worker.children(recursive=True)]
    assert any("CoarseGrainedExecutorBackend" in " ".join(victim.cmdline()) for victim in victims)
    for victim in victims:
        victim.kill()
    cluster.workers[0].wait()
