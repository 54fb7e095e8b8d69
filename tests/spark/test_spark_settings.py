"""What the Spark runner is told beyond what the user said, and what is refused before a JVM is started."""

import json
import os
import socket
import zipfile
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import (
    DebugOptions,
    JobServerOptions,
    PipelineOptions,
    PortableOptions,
    SetupOptions,
    SparkRunnerOptions,
)

from pipeline.beam.options import parse_beam_options
from pipeline.beam.runner import run_pipeline, worker_count
from pipeline.beam.spark import job_server
from pipeline.errors import ConfigError, UserError

CLUSTER = "--spark_master_url=spark://10.0.0.1:7077"


@pytest.fixture(autouse=True)
def spark_that_is_not_there(tmp_path, monkeypatch):
    """A Java, a pyspark and a built job server for the look-ups to find; none of them would run."""
    (tmp_path / "java/bin").mkdir(parents=True)
    (tmp_path / "java/bin/java").touch(mode=0o755)
    (tmp_path / "site/pyspark/jars").mkdir(parents=True)
    (tmp_path / "site/pyspark/__init__.py").touch()
    (tmp_path / "site/pyspark/jars/spark-core_2.12-3.5.9.jar").touch()
    (tmp_path / "cache/wit/spark").mkdir(parents=True)
    (tmp_path / "cache/wit/spark" / job_server.BEAM_JAR).touch()
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "java"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path / "site")


def options(*args: str) -> PipelineOptions:
    return parse_beam_options(["--runner=SparkRunner", *args])


def properties(parsed: PipelineOptions) -> list[str]:
    return parsed.view_as(JobServerOptions).job_server_jvm_properties


def runner_options(parsed: PipelineOptions) -> dict[str, object]:
    """Return what the job server would be sent, among it the options that only the job server knows."""
    from pipeline.beam.spark.settings import add_job_server_options

    return parsed.get_all_options(add_extra_args_fn=add_job_server_options)


def test_naming_a_cluster_is_enough(tmp_path):
    parsed = options(CLUSTER)
    portable = parsed.view_as(PortableOptions)
    assert portable.environment_type == "PROCESS"
    assert os.access(json.loads(portable.environment_config)["command"], os.X_OK)
    assert portable.environment_cache_millis == "10000"
    assert parsed.view_as(SparkRunnerOptions).spark_job_server_jar.startswith(str(tmp_path / "cache/wit/spark"))
    assert parsed.view_as(SetupOptions).files_to_stage == [str(tmp_path / "cache/wit/spark" / job_server.BEAM_JAR)]
    assert parsed.view_as(JobServerOptions).job_server_java_launcher == str(tmp_path / "java/bin/java")
    assert runner_options(parsed)["storage_level"] == "MEMORY_AND_DISK"
    assert "-Dspark.excludeOnFailure.enabled=true" in properties(parsed)
    assert not any("spark.driver.host" in word for word in properties(parsed))


def test_graph_optimisation_keeps_combiner_lifting_and_splittable_reads():
    phases = options(CLUSTER).view_as(DebugOptions).lookup_experiment("pre_optimize")
    assert phases == "pack_combiners,lift_combiners,expand_sdf"


def test_a_master_on_this_machine_needs_a_driver_on_loopback():
    assert "-Dspark.driver.host=127.0.0.1" in properties(options("--spark_master_url=spark://127.0.0.1:7077"))
    assert "-Dspark.driver.host=127.0.0.1" in properties(options("--spark_master_url=spark://localhost:7077"))


def test_local_tasks_run_in_processes_of_their_own():
    parsed = options("--spark_master_url=local[3]")
    portable = parsed.view_as(PortableOptions)
    assert (portable.environment_type, portable.sdk_worker_parallelism) == ("PROCESS", "3")
    assert runner_options(parsed)["load_balance_bundles"] is True
    assert parsed.view_as(SetupOptions).files_to_stage is None


def test_what_the_user_says_wins():
    parsed = options(
        CLUSTER,
        "--environment_type=EXTERNAL",
        "--environment_config=localhost:50000",
        "--environment_cache_millis=5",
        "--storage_level=DISK_ONLY",
        "--experiments=pre_optimize=all",
        "--job_server_jvm_properties=-Dspark.default.parallelism=999",
        "--job_server_jvm_properties=-Xmx9g",
    )
    portable = parsed.view_as(PortableOptions)
    assert (portable.environment_type, portable.environment_config) == ("EXTERNAL", "localhost:50000")
    assert portable.environment_cache_millis == "5"
    assert runner_options(parsed)["storage_level"] == "DISK_ONLY"
    assert parsed.view_as(DebugOptions).lookup_experiment("pre_optimize") == "all"
    assert [word for word in properties(parsed) if "parallelism" in word] == ["-Dspark.default.parallelism=999"]
    assert [word for word in properties(parsed) if word.startswith("-Xmx")] == ["-Xmx9g"]


def test_a_running_job_server_is_left_to_its_own_settings(monkeypatch):
    monkeypatch.setenv("JAVA_HOME", "/nowhere")
    assert properties(options(CLUSTER, "--job_endpoint=localhost:8099")) == []


@pytest.mark.parametrize(
    ("args", "workers"),
    [
        (["--spark_master_url=local"], 1),
        (["--spark_master_url=local[3]"], 3),
        (["--spark_master_url=local[*]"], 7),
        ([CLUSTER], 16),
        ([CLUSTER, "--job_server_jvm_properties=-Dspark.cores.max=400"], 400),
        (["--spark_master_url=yarn"], 16),
        (
            [
                "--spark_master_url=yarn",
                "--job_server_jvm_properties=-Dspark.executor.instances=10",
                "--job_server_jvm_properties=-Dspark.executor.cores=8",
            ],
            80,
        ),
        (
            [
                "--spark_master_url=k8s://https://10.0.0.1:6443",
                "--job_server_jvm_properties=-Dspark.dynamicAllocation.enabled=true",
                "--job_server_jvm_properties=-Dspark.dynamicAllocation.maxExecutors=40",
            ],
            40,
        ),
    ],
)
def test_the_bound_on_units_at_once_is_what_spark_is_told(args, workers, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 7)
    parsed = options(*args)
    assert worker_count(parsed) == workers
    assert f"-Dspark.default.parallelism={3 * workers}" in properties(parsed)
    if "spark://" in args[0]:
        assert f"-Dspark.cores.max={workers}" in properties(parsed)


def test_what_changes_the_number_of_attempts_is_stated():
    chosen = properties(options(CLUSTER))
    assert "-Dspark.speculation=false" in chosen
    assert "-Dspark.task.maxFailures=4" in chosen
    assert "-Dspark.dynamicAllocation.enabled=false" in chosen
    assert "-Dspark.dynamicAllocation.maxExecutors=16" in chosen


@pytest.mark.parametrize(("attempts", "per_node", "excludes"), [(8, 7, "true"), (2, 1, "true"), (1, 1, "false")])
def test_exclusion_leaves_a_task_an_attempt_elsewhere(attempts, per_node, excludes):
    """Spark refuses to start if a task may have all its attempts on one node."""
    chosen = properties(options(CLUSTER, f"--job_server_jvm_properties=-Dspark.task.maxFailures={attempts}"))
    assert [word for word in chosen if "task.maxFailures" in word] == [f"-Dspark.task.maxFailures={attempts}"]
    assert f"-Dspark.excludeOnFailure.enabled={excludes}" in chosen
    assert "-Dspark.excludeOnFailure.task.maxTaskAttemptsPerExecutor=1" in chosen
    assert f"-Dspark.excludeOnFailure.task.maxTaskAttemptsPerNode={per_node}" in chosen


def test_executors_with_many_cores_get_as_many_processes():
    parsed = options(CLUSTER, "--job_server_jvm_properties=-Dspark.executor.cores=8")
    assert parsed.view_as(PortableOptions).sdk_worker_parallelism == "8"
    assert "-Dspark.executor.instances=2" in properties(parsed)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--spark_master_url=10.0.0.1:7077"], "bad Spark master '10.0.0.1:7077'"),
        (["--spark_master_url=local[0]"], "bad Spark master 'local[0]'"),
        (["--spark_master_url=spark://host:abc"], "bad Spark master 'spark://host:abc'"),
        (["--spark_master_url=spark://host:99999"], "bad Spark master 'spark://host:99999'"),
        (["--spark_master_url=spark://a:7077,b:x"], "bad Spark master 'spark://a:7077,b:x'"),
        (["--spark_master_url=spark://[::1"], "bad Spark master 'spark://[::1'"),
        ([CLUSTER, "--spark_job_server_jar=/no/such.jar"], "no such file: /no/such.jar"),
        ([CLUSTER, "--job_server_jvm_properties=-Dspark.cores.max=all"], "-Dspark.cores.max must be a whole number"),
        ([CLUSTER, "--storage_levle=DISK_ONLY"], "unknown Beam option --storage_levle; did you mean --storage_level?"),
        ([CLUSTER, "--bundle_size=big"], "--bundle_size: invalid int value: 'big'"),
    ],
)
def test_what_is_wrong_is_refused(args, said):
    with pytest.raises(ConfigError) as refused:
        options(*args)
    assert said in str(refused.value)


def test_no_java(monkeypatch):
    monkeypatch.setenv("JAVA_HOME", "/nowhere")
    with pytest.raises(ConfigError, match=r"Spark needs Java 11 or 17, but '/nowhere/bin/java' was not found"):
        options(CLUSTER)


def test_no_job_server(tmp_path):
    (tmp_path / "cache/wit/spark" / job_server.BEAM_JAR).unlink()
    with pytest.raises(ConfigError, match=r"python -m pipeline\.beam\.spark\.build_job_server.*--spark_job_server_jar"):
        options(CLUSTER)


def test_the_runnable_jar_has_spark_and_beam_on_its_class_path(tmp_path):
    text = zipfile.ZipFile(job_server.runnable_jar()).read("META-INF/MANIFEST.MF").decode()
    assert max(map(len, text.split("\r\n"))) <= 70
    entries = dict(line.split(": ", 1) for line in text.replace("\r\n ", "").split("\r\n") if line)
    assert entries["Main-Class"] == "org.apache.beam.runners.spark.SparkJobServerDriver"
    paths = [Path(url.removeprefix("file://")) for url in entries["Class-Path"].split()]
    assert [path.name for path in paths] == [job_server.BEAM_JAR, "spark-core_2.12-3.5.9.jar"]
    assert all(path.is_file() for path in paths)


def test_the_runnable_jar_finds_yarn(tmp_path, monkeypatch):
    """A class path of a manifest takes a URL for a folder if it ends with a slash."""
    (tmp_path / "conf").mkdir()
    monkeypatch.setenv("HADOOP_CONF_DIR", str(tmp_path / "conf"))
    monkeypatch.setenv("YARN_CONF_DIR", str(tmp_path / "conf"))
    text = zipfile.ZipFile(job_server.runnable_jar()).read("META-INF/MANIFEST.MF").decode()
    assert text.replace("\r\n ", "").count(f" {(tmp_path / 'conf').as_uri()}/") == 1


def test_a_pyspark_that_changed_gets_a_jar_of_its_own(tmp_path):
    first = job_server.runnable_jar()
    (tmp_path / "site/pyspark/jars/spark-sql_2.12-3.5.9.jar").touch()
    assert job_server.runnable_jar() != first


def test_a_master_that_does_not_answer_is_one_line():
    with socket.socket() as bound:  # and not listening
        bound.bind(("127.0.0.1", 0))
        url = f"spark://127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(UserError, match=rf"cannot connect to a Spark master at {url} \(.*refused\)"):
            run_pipeline(lambda pipeline: None, options(f"--spark_master_url={url}"))
