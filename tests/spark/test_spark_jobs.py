"""The small job on Spark: local, on a cluster, and on a cluster that loses processes in mid-run."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import apache_beam as beam
import psutil
import pytest
from support import small_job
from support.spark_cluster import LOCAL, end_job_servers, in_mid_run, kill_worker, on_cluster

from pipeline.beam.runner import log_file, parse_beam_options, run_pipeline
from pipeline.beam.spark.cluster import Cluster, local_cluster
from pipeline.errors import UserError

pytestmark = [pytest.mark.spark, pytest.mark.timeout(900), pytest.mark.usefixtures("spark")]

UNITS = 30


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    root = tmp_path_factory.mktemp("expected")
    run_pipeline(small_job.small_job(root, UNITS), parse_beam_options([]))
    return small_job.tree(root)


def test_local(expected, tmp_path):
    options = parse_beam_options(LOCAL)
    for repeat in ("first", "second"):  # the second is served by the same job server
        root = tmp_path / repeat
        run_pipeline(small_job.small_job(root, UNITS), options)
        assert small_job.tree(root) == expected
        assert small_job.calls(root) == list(range(UNITS))


def test_local_units_run_in_processes_one_at_a_time(tmp_path):
    run_pipeline(small_job.small_job(tmp_path, 8, pause_s=0.2), parse_beam_options(LOCAL))
    processes = small_job.processes(tmp_path)
    assert len(processes) == 2
    assert psutil.Process() not in processes


def test_cluster(cluster, expected, tmp_path):
    run_pipeline(small_job.small_job(tmp_path, UNITS), parse_beam_options(on_cluster(cluster)))
    assert small_job.tree(tmp_path) == expected
    assert small_job.calls(tmp_path) == list(range(UNITS))


def test_a_users_error_crosses_processes_and_languages(cluster, capfd):
    with pytest.raises(UserError) as raised:
        run_pipeline(failing(small_job.fail_as_user), parse_beam_options(on_cluster(cluster)))
    assert str(raised.value) == "cannot read unit 3"
    assert capfd.readouterr() == ("", "")


def test_a_bug_names_its_step_and_the_log(capfd):
    with pytest.raises(UserError) as raised:
        run_pipeline(failing(small_job.fail_as_bug), parse_beam_options(LOCAL))
    assert str(raised.value) == f"LookupError: no such thing: 3 (in step 'Fail'; the log is in {log_file()})"
    assert capfd.readouterr() == ("", "")


def failing(work):
    def build(pipeline: beam.Pipeline) -> None:
        _ = pipeline | beam.Create([3]) | beam.Reshuffle() | "Fail" >> beam.Map(work)

    return build


def test_the_job_outlives_a_python_process(cluster, expected, tmp_path):
    def strike() -> None:
        small_job.processes(tmp_path).pop().kill()

    with in_mid_run(some_units_began(tmp_path), strike):
        run_pipeline(small_job.small_job(tmp_path, UNITS, 0.3), parse_beam_options(on_cluster(cluster)))
    assert small_job.tree(tmp_path) == expected
    assert set(small_job.calls(tmp_path)) == set(range(UNITS))


def test_the_job_outlives_a_worker_and_its_executor_and_then_nothing_is_left_running(expected, tmp_path):
    job = tmp_path / "job"
    (tmp_path / "cluster").mkdir()
    with local_cluster(tmp_path / "cluster") as cluster:
        with in_mid_run(some_units_began(job), lambda: kill_worker(cluster)):
            run_pipeline(small_job.units_only(job, UNITS, 0.3), parse_beam_options(on_cluster(cluster)))
        started = [
            child for worker in cluster.workers[1:] for child in psutil.Process(worker.pid).children(recursive=True)
        ]
        started += small_job.processes(job)
        assert started
    end_job_servers()
    assert small_job.tree(job) == units_of(expected)
    assert set(small_job.calls(job)) == set(range(UNITS))
    wait_for_the_end_of(started)


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Path]]:
    """A cluster of two machines, and its folder."""
    folder = tmp_path_factory.mktemp("machines")
    with local_cluster(folder, hosts=("127.0.0.1", "127.0.0.2")) as cluster:
        yield cluster, folder
        end_job_servers()


def test_the_job_outlives_two_deaths_of_the_process_of_one_unit(machines, expected, tmp_path):
    deadly = small_job.DeadlyAtFirst(str(tmp_path), 0.05, deaths=2)
    end_job_servers()  # another application would keep the cores
    run_pipeline(small_job.units_only(tmp_path, UNITS, write=deadly), parse_beam_options(on_cluster(machines[0])))
    end_job_servers()
    assert small_job.tree(tmp_path) == units_of(expected)
    assert small_job.calls(tmp_path).count(0) == 3


def test_executors_that_come_and_go_with_the_work(machines, expected, tmp_path):
    """Dynamic allocation begins with one executor, and asks for the other when units wait."""
    cluster, folder = machines
    settings = ["enabled=true", "shuffleTracking.enabled=true", "minExecutors=0", "initialExecutors=1"]
    settings += ["maxExecutors=2", "schedulerBacklogTimeout=1s", "executorIdleTimeout=5s"]
    changed = [f"--job_server_jvm_properties=-Dspark.dynamicAllocation.{setting}" for setting in settings]
    end_job_servers()
    before = set(folder.glob("worker-*/app-*/*"))
    options = parse_beam_options([*on_cluster(cluster), *changed])
    run_pipeline(small_job.units_only(tmp_path, UNITS, 0.3), options)
    end_job_servers()
    assert len(set(folder.glob("worker-*/app-*/*")) - before) >= 2
    assert small_job.tree(tmp_path) == units_of(expected)
    assert small_job.calls(tmp_path) == list(range(UNITS))


def test_speculation_on_a_cluster_of_two_machines(machines, expected, tmp_path):
    """A copy of a slow unit starts on the other machine; the result is the same."""
    settings = ["spark.speculation=true", "spark.speculation.interval=100ms", "spark.speculation.quantile=0.5"]
    changed = [f"--job_server_jvm_properties=-D{setting}" for setting in settings]
    slow = small_job.SlowAtFirst(str(tmp_path), 0.05, 20.0)
    end_job_servers()
    options = parse_beam_options([*on_cluster(machines[0]), *changed])
    run_pipeline(small_job.units_only(tmp_path, UNITS, write=slow), options)
    end_job_servers()
    assert small_job.tree(tmp_path) == units_of(expected)
    assert small_job.calls(tmp_path).count(0) == 2


def units_of(tree: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in tree.items() if name.startswith("unit-")}


def some_units_began(root: Path) -> Callable[[], bool]:
    return lambda: len(list(root.glob("calls/*"))) >= 8


def wait_for_the_end_of(processes: list[psutil.Process]) -> None:
    give_up = time.monotonic() + 120
    while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes):
        assert time.monotonic() < give_up, [process.cmdline() for process in processes if process.is_running()]
        time.sleep(0.2)
