"""Run one Beam pipeline to its end, on any runner, without terminal output.

A failure becomes one line that names its cause and the log file.
"""

import logging
import os
import shlex
import socket
import sys
from collections.abc import Callable
from urllib.parse import urlsplit

import apache_beam as beam
from apache_beam.options.pipeline_options import (
    DirectOptions,
    FlinkRunnerOptions,
    JobServerOptions,
    PipelineOptions,
    PortableOptions,
    SparkRunnerOptions,
    StandardOptions,
    WorkerOptions,
)
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.runners.runner import PipelineState
from apache_beam.transforms.environments import SubprocessSDKEnvironment

from pipeline.beam.dataflow import vcpus_of
from pipeline.beam.dead_workers import death_behind, forget_deaths
from pipeline.beam.failures import is_interruption, user_error, without_step
from pipeline.beam.log import keep_log, log_file, noise_in_log_file
from pipeline.beam.options import parse_beam_options
from pipeline.beam.spark import settings as spark
from pipeline.errors import ConfigError, NetworkError, UserError, one_line

__all__ = ["log_file", "parse_beam_options", "run_pipeline", "worker_count"]

_LOGGER = logging.getLogger("apache_beam.wit")  # goes to the log file with the rest, not to the terminal


def run_pipeline(build: Callable[[beam.Pipeline], None], options: PipelineOptions) -> None:
    """Build a pipeline and run it until it is done.

    With Spark, call it from the main thread, because Beam sets signal handlers; the first call starts a job server that
    later calls of this process use too.

    Raises:
        UserError: raised by a DoFn on any worker; or, for any other failure of the run, one that names the root cause
            and the log file. Exceptions of `build` itself are bugs and are not converted.
        ConfigError: the options are incomplete for the runner.
    """
    _expect_master(options)
    forget_deaths()
    with noise_in_log_file():
        try:
            pipeline = _pipeline(options)
        except ValueError as error:
            raise ConfigError(one_line(str(error))) from error
        build(pipeline)
        try:
            state = pipeline.run().wait_until_finish()
        except UserError as error:
            raise type(error)(without_step(str(error))) from error
        except Exception as error:
            if is_interruption(error):
                raise KeyboardInterrupt from None
            if lost := death_behind(error):
                raise lost from error
            raise _failure(error) from error
    if state != PipelineState.DONE:
        raise UserError(f"the job ended as {state}; the log is in {log_file()}")


def worker_count(options: PipelineOptions) -> int:
    """Return the maximum number of units that run at the same time. A fetch is cut by host for as many processes.

    Units run in processes that do not communicate, one unit at a time in each:

    - FnApiRunner: 1, or `--direct_num_workers` (0 means all cores);
    - Spark: N of `local[N]`; on a cluster `spark.cores.max`, or executors x cores where the resource manager counts
      executors. We set both, so the number is a true bound;
    - Dataflow: `--max_num_workers` x vCPUs of the machine type (Python runs one process per vCPU);
    - Flink: `--parallelism`; Prism and other job servers: `--sdk_worker_parallelism`, at least this machine's cores.
    """
    runner = options.view_as(StandardOptions).runner
    cores = os.cpu_count() or 1
    if runner == "FnApiRunner":
        direct = options.view_as(DirectOptions)
        return 1 if direct.direct_running_mode == "in_memory" else direct.direct_num_workers or cores
    if runner == "SparkRunner":
        master = options.view_as(SparkRunnerOptions).spark_master_url
        return spark.most_units_at_once(master, options.view_as(JobServerOptions).job_server_jvm_properties)
    if runner == "DataflowRunner":
        workers = options.view_as(WorkerOptions)
        return workers.max_num_workers * vcpus_of(workers.machine_type)
    portable = options.view_as(PortableOptions)
    if portable.job_endpoint == "embed":
        return 1
    parallelism = options.view_as(FlinkRunnerOptions).parallelism
    return max(cores, parallelism, int(portable.sdk_worker_parallelism))


def _failure(error: Exception) -> UserError:
    _LOGGER.error("The run failed", exc_info=error)
    found = user_error(error, log_file())
    if str(log_file()) in str(found):
        keep_log()
    return found


def _pipeline(options: PipelineOptions) -> beam.Pipeline:
    """Make an empty pipeline on a copy of `options`, with FnApiRunner's worker processes made to write to the log."""
    direct = options.view_as(DirectOptions)
    if options.view_as(StandardOptions).runner != "FnApiRunner" or direct.direct_running_mode != "multi_processing":
        return beam.Pipeline(options=options)
    worker = [sys.executable, "-m", "pipeline.beam.worker"]
    command = f"exec {shlex.join(worker)} >>{shlex.quote(str(log_file()))} 2>&1"
    pipeline = beam.Pipeline(FnApiRunner(SubprocessSDKEnvironment.from_command_string(command)), options=options)
    # With multi_processing in its options, the runner would start processes with its own command.
    pipeline.options.view_as(DirectOptions).direct_running_mode = "in_memory"
    return pipeline


def _expect_master(options: PipelineOptions) -> None:
    """Raise NetworkError if no standalone Spark master is listening; the driver would try for minutes."""
    if options.view_as(StandardOptions).runner != "SparkRunner" or options.view_as(PortableOptions).job_endpoint:
        return
    master = options.view_as(SparkRunnerOptions).spark_master_url
    if not master.startswith("spark://"):
        return
    problems = []
    for address in master.removeprefix("spark://").split(","):  # several: masters with a stand-by
        url = urlsplit(f"//{address}")
        try:
            socket.create_connection((url.hostname or "", url.port or 7077), timeout=10).close()
            return
        except OSError as error:
            problems.append(f"{address}: {error.strerror or error}")
    raise NetworkError(f"cannot connect to a Spark master at {master} ({'; '.join(problems)})")
