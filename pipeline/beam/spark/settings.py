"""The Spark runner's settings: the user sets the runner and the master, this module chooses the other settings.

The user's options take precedence. docs/spark.md has more details.
"""

import argparse
import ipaddress
import json
import os
import re
import sys
from pathlib import Path
from urllib.parse import urlsplit

from apache_beam.options.pipeline_options import DebugOptions, PipelineOptions

from pipeline.beam.spark.job_server import cached_beam_jar, java, runnable_jar
from pipeline.errors import ConfigError

# A cluster job takes at most this many cores unless `spark.cores.max` says otherwise: a fetch is cut by host for a
# known number of processes.
DEFAULT_CORES = 16

_ATTEMPTS = 4
"""Spark's default, written down because the settings below depend on it."""

# Beam reads options of the Java runner from the job server, and drops those that the job server does not know.
JOB_SERVER_OPTIONS: dict[str, type] = {
    "bundle_size": int,
    "cache_disabled": bool,
    "environment_expiration_millis": int,
    "load_balance_bundles": bool,
    "prefer_group_by_key_to_handle_huge_values": bool,
    "semi_persist_dir": str,
    "storage_level": str,
}

_LOCAL_MASTER = re.compile(r"local(?:\[([1-9]\d*|\*)(?:,\d+)?\])?")
_CLUSTER_MASTER = re.compile(r"(?:spark|k8s)://.+|yarn")


def add_job_server_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the Spark job server to `parser`, which has Beam's own."""
    for name, kind in JOB_SERVER_OPTIONS.items():
        if kind is bool:
            parser.add_argument(f"--{name}", action="store_true")
        else:
            parser.add_argument(f"--{name}", type=kind)


def add_experiments(options: PipelineOptions) -> None:
    """Choose the phases of graph optimisation; on the command line, their commas would make three experiments."""
    debug = options.view_as(DebugOptions)
    if debug.lookup_experiment("pre_optimize") is None:
        debug.add_experiment("pre_optimize=pack_combiners,lift_combiners,expand_sdf")
    debug.add_experiment("disable_logging_submission_environment")  # a `pip freeze` per job, which only Dataflow uses


def missing_arguments(given: argparse.Namespace) -> list[str]:
    """Return the arguments to add to the user's.

    Raises:
        ConfigError: the master is not a Spark master, or Java, pyspark or the job server jar is missing.
    """
    if given.job_endpoint:
        return []  # the user's own job server has its master, Java and Spark properties
    cores = local_cores(given.spark_master_url)
    arguments = _job_server(given)
    properties = _jvm_properties(given, cores)
    arguments += _worker_processes(given, per_executor=cores or _parse_int(properties, "spark.executor.cores", 1))
    arguments += [f"--job_server_jvm_properties={argument}" for argument in _jvm_args(given, properties)]
    if given.storage_level is None and not given.cache_disabled:
        # A stage read twice is cached; in memory alone an evicted partition would be computed, and its side effects
        # run, a second time. The Kryo serializer is what makes spilling Beam's values to disk possible.
        arguments.append("--storage_level=MEMORY_AND_DISK")
    return arguments


def local_cores(master: str) -> int | None:
    """Return N of a `local[N]` master, None for a cluster.

    Raises:
        ConfigError: it is neither.
    """
    if match := _LOCAL_MASTER.fullmatch(master):
        return (os.cpu_count() or 1) if match[1] == "*" else int(match[1] or 1)
    if _CLUSTER_MASTER.fullmatch(master) and all(map(_is_address, master.split("://")[-1].split(","))):
        return None
    raise ConfigError(f"bad Spark master {master!r}: write local[N], spark://HOST:PORT, yarn or k8s://HOST:PORT")


def _is_address(text: str) -> bool:
    try:
        return urlsplit(f"//{text}").port != 0
    except ValueError:  # an invalid port, or an unclosed IPv6 bracket
        return False


def most_units_at_once(master: str, jvm_properties: list[str]) -> int:
    """Return the maximum number of tasks that run at the same time, from the master and the JVM properties."""
    cores = local_cores(master)
    if cores is not None:
        return cores
    given = _properties(jvm_properties)
    if master.startswith("spark://"):
        return _parse_int(given, "spark.cores.max", DEFAULT_CORES)
    per_executor = _parse_int(given, "spark.executor.cores", 1)
    is_dynamic = given.get("spark.dynamicAllocation.enabled", "").lower() == "true"
    count = "spark.dynamicAllocation.maxExecutors" if is_dynamic else "spark.executor.instances"
    return _parse_int(given, count, max(1, DEFAULT_CORES // per_executor)) * per_executor


def _job_server(given: argparse.Namespace) -> list[str]:
    arguments = [f"--job_server_java_launcher={java(given.job_server_java_launcher)}"]
    if given.spark_job_server_jar is None:
        arguments.append(f"--spark_job_server_jar={runnable_jar()}")
        if local_cores(given.spark_master_url) is None and given.files_to_stage is None:
            # Else Spark copies every jar of the job server's class path, 250 of them, to each executor.
            arguments.append(f"--files_to_stage={cached_beam_jar()}")
    elif "://" not in given.spark_job_server_jar and not Path(given.spark_job_server_jar).is_file():
        raise ConfigError(f"--spark_job_server_jar: no such file: {given.spark_job_server_jar}")
    return arguments


def _jvm_properties(given: argparse.Namespace, local: int | None) -> dict[str, str]:
    """Return all properties: our defaults, overridden by the user's."""
    user = _properties(given.job_server_jvm_properties)
    cores = most_units_at_once(given.spark_master_url, given.job_server_jvm_properties)
    ours = {
        # Partitions, and so bundles: enough to even out slow units (Spark's tuning guide advises 2 to 3 per core).
        "spark.default.parallelism": str(3 * cores),
        "spark.serializer": "org.apache.spark.serializer.KryoSerializer",
        "spark.ui.showConsoleProgress": "false",
        # One Spark application for all jobs of a build: without new executors each time, a job costs a third.
        "beam.spark.test.reuseSparkContext": "true",
    }
    if local is not None:
        ours["spark.ui.enabled"] = "false"
    else:
        ours |= _cluster_properties(
            cores,
            per_executor=_parse_int(user, "spark.executor.cores", 1),
            attempts=_parse_int(user, "spark.task.maxFailures", _ATTEMPTS),
        )
    if local is not None or _is_loopback_master(given.spark_master_url):
        ours |= {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
    return ours | user


def _cluster_properties(cores: int, *, per_executor: int, attempts: int) -> dict[str, str]:
    executors = str(max(1, cores // per_executor))
    return {
        "spark.cores.max": str(cores),  # for a standalone master; the others count executors
        "spark.executor.instances": executors,
        # A fetch is cut by host for a known number of processes; executors that come and go change it in mid-fetch.
        "spark.dynamicAllocation.enabled": "false",
        "spark.dynamicAllocation.maxExecutors": executors,  # where a user switches it on
        # A second attempt of a slow unit would request the images of a slow host a second time.
        "spark.speculation": "false",
        "spark.task.maxFailures": str(attempts),
        # One core, hence one Python process, per executor: it fits every worker, and the death of a process (a decoder
        # that crashes on a hostile image) then costs one core, not a host.
        "spark.executor.cores": "1",
        # Without it one dead Python process fails the job: its executor keeps the broken environment, and all four
        # attempts of a task go there. So one does, and a task whose process dies three times still has an attempt; an
        # excluded executor is replaced; and the other executors of its host are kept.
        "spark.excludeOnFailure.enabled": str(attempts > 1).lower(),
        "spark.excludeOnFailure.killExcludedExecutors": "true",
        "spark.excludeOnFailure.task.maxTaskAttemptsPerExecutor": "1",
        "spark.excludeOnFailure.task.maxTaskAttemptsPerNode": str(max(1, attempts - 1)),  # Spark wants fewer than all
        "spark.scheduler.excludeOnFailure.unschedulableTaskSetTimeout": "30s",  # for clusters of one host
        "spark.excludeOnFailure.stage.maxFailedExecutorsPerNode": "1000",
        "spark.excludeOnFailure.application.maxFailedExecutorsPerNode": "1000",
    }


def _jvm_args(given: argparse.Namespace, properties: dict[str, str]) -> list[str]:
    user = _properties(given.job_server_jvm_properties)
    arguments = [f"-D{name}={value}" for name, value in properties.items() if name not in user]
    if not any(argument.startswith("-Xmx") for argument in given.job_server_jvm_properties):
        arguments.append("-Xmx2g")
    # Gives the Kryo serializer access to a sun.security class; for executors Spark itself sets it.
    return [*arguments, "--add-exports=java.base/sun.security.action=ALL-UNNAMED"]


def _worker_processes(given: argparse.Namespace, per_executor: int) -> list[str]:
    """Return the arguments that make each executor start a Python process per task, with this project's boot script.

    Beam's default for `local[N]` is LOOPBACK: N threads in the submitting process, which share the interpreter lock and
    all die if a decoder crashes. On other runners a process runs one unit at a time; so also here.
    """
    arguments = []
    if given.environment_type is None:
        arguments.append("--environment_type=PROCESS")
        if not (given.environment_config or given.environment_options):
            arguments.append("--environment_config=" + json.dumps({"command": boot_command()}))
    if str(given.environment_cache_millis) == "0":
        # Without it every bundle starts a new Python process. Not longer, because the processes of one job outlive it,
        # and the next job of the build starts its own.
        arguments.append("--environment_cache_millis=10000")
    if str(given.sdk_worker_parallelism) == "1" and per_executor > 1:
        # Each bundle goes to an idle process; by default they are assigned in turn, even to busy ones.
        arguments += [f"--sdk_worker_parallelism={per_executor}", "--load_balance_bundles"]
    return arguments


def boot_command() -> str:
    """Return the path of `wit-beam-boot`; on a cluster the same path must exist on every host.

    Raises:
        ConfigError: the project is not installed in this environment.
    """
    command = Path(sys.prefix, "bin", "wit-beam-boot")
    if not command.is_file():
        raise ConfigError(f"{command} does not exist: install this project in the environment of {sys.executable}")
    return str(command)


def _properties(jvm_properties: list[str]) -> dict[str, str]:
    pairs = (argument[2:].partition("=") for argument in jvm_properties if argument.startswith("-D"))
    return {name: value for name, _, value in pairs}


def _parse_int(properties: dict[str, str], name: str, default: int) -> int:
    value = properties.get(name, str(default))
    if not value.isdigit() or int(value) < 1:
        raise ConfigError(f"-D{name} must be a whole number, 1 or more, not {value!r}")
    return int(value)


def _is_loopback_master(master: str) -> bool:
    host = urlsplit(master).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
