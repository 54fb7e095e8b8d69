"""Parse and validate Beam options before anything starts.

Beam silently drops unknown options, and lets argparse end the process on a bad value. Here both are a `ConfigError`
that names the option. Nothing in this module uses the network.
"""

import argparse
import difflib
from collections.abc import Sequence
from typing import Never

from apache_beam.options.pipeline_options import PipelineOptions, SetupOptions, StandardOptions

from pipeline.beam import dataflow
from pipeline.beam.spark import settings as spark
from pipeline.errors import ConfigError

# `DirectRunner` means one of three engines, depending on the transforms and on whether a Prism binary can be
# downloaded; here the in-process engine has its own name.
DEFAULT_RUNNER = "FnApiRunner"
_ALIASES = {"DirectRunner": DEFAULT_RUNNER}

# DaskRunner is missing on purpose: in Beam 2.77 it reports success without running every branch of a pipeline.
RUNNERS = ("FnApiRunner", "SparkRunner", "DataflowRunner", "FlinkRunner", "PrismRunner", "PortableRunner")

_REFUSED = {
    "streaming": "every stage is a batch job",
    "no_wait_until_finish": "each stage needs the one before it to be complete",
    "save_main_session": "all code is importable, so there is no session to save",
    "spark_submit_uber_jar": "a build is many jobs; run it on a machine that can connect to the master",
    "output_executable_path": "a build is many jobs that depend on each other's results; it cannot be one jar",
    "dry_run": "each stage needs the results of the job before it; `wit build --dry-run` prints what a build would use",
    "update": "every stage is a batch job",
}
_AT_LEAST_0 = (
    "direct_num_workers",
    "direct_runner_bundle_repeat",
    "sdk_worker_parallelism",
    "environment_cache_millis",
)


def parse_beam_options(args: Sequence[str]) -> PipelineOptions:
    """Turn command-line arguments into Beam options, and add the options that our pipelines need.

    Raises:
        ConfigError: for an unknown option (with the most similar known one), a bad value, a runner that is unknown or
            not installed, or an option that a build does not support.
    """
    arguments = [_canonical(argument) for argument in args]
    given = _parse(arguments, spark_options=False, strict=False)
    runner = _runner_name(given.runner)
    given = _parse(arguments, spark_options=runner == "SparkRunner", strict=True)
    _check_values(given)
    if runner == "SparkRunner":
        arguments += spark.missing_arguments(given)
    if given.direct_num_workers != 1 and not any(a.startswith("--direct_running_mode") for a in arguments):
        arguments.append("--direct_running_mode=multi_processing")  # more than one worker has no effect in memory
    options = PipelineOptions(arguments)
    options.view_as(StandardOptions).runner = runner
    options.view_as(SetupOptions).save_main_session = False
    if runner == "SparkRunner":
        spark.add_experiments(options)
    if runner == "DataflowRunner":
        dataflow.prepare(options)
    return options


def _canonical(argument: str) -> str:
    """Spell the name of an option with underscores, as Beam does; also accept dashes: `--direct-num-workers=2`."""
    name, equals, value = argument.partition("=")
    if not name.startswith("--"):
        return argument
    return "--" + name[2:].replace("-", "_") + equals + value


def _parse(arguments: list[str], *, spark_options: bool, strict: bool) -> argparse.Namespace:
    parser = _every_known_option()
    if spark_options:
        spark.add_job_server_options(parser)
    try:
        known, unknown = parser.parse_known_args(arguments)
    except (ValueError, TypeError, AssertionError) as error:  # from the actions of some Google Cloud options
        raise ConfigError(f"bad Beam option: {error}") from error
    if strict and unknown:
        raise ConfigError(_unknown_option(unknown, parser))
    return known


def _every_known_option() -> argparse.ArgumentParser:
    """Return Beam's parser of all its options, changed to raise instead of ending the process."""
    parsers: list[argparse.ArgumentParser] = []
    PipelineOptions([]).get_all_options(add_extra_args_fn=parsers.append)
    parser = parsers[0]
    parser.error = _refuse  # type: ignore[method-assign]
    parser._option_string_actions.pop("-h", None)
    parser._option_string_actions.pop("--help", None)
    return parser


def _refuse(message: str) -> Never:
    hint = " (write it as --name=value)" if "expected" in message else ""
    raise ConfigError(f"bad Beam option: {message.removeprefix('argument ')}{hint}")


def _unknown_option(unknown: list[str], parser: argparse.ArgumentParser) -> str:
    flags = [argument.partition("=")[0] for argument in unknown if argument.startswith("-")]
    if not flags:
        return f"unexpected argument {unknown[0]!r}: write Beam options as --name=value"
    known = [name for action in parser._actions for name in action.option_strings]
    nearest = difflib.get_close_matches(flags[0], known, n=1)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    return f"unknown Beam option {flags[0]}{hint}"


def _runner_name(given: str | None) -> str:
    if given is None:
        return DEFAULT_RUNNER
    spellings = {name.lower(): name for name in (*RUNNERS, *_ALIASES)}
    name = spellings.get(given.lower()) or spellings.get(given.lower() + "runner")
    if name is None:
        raise ConfigError(f"unknown runner {given!r}: choose one of {', '.join(RUNNERS)}")
    return _ALIASES.get(name, name)


def _check_values(given: argparse.Namespace) -> None:
    for name, why in _REFUSED.items():
        if getattr(given, name):
            raise ConfigError(f"--{name} cannot be used here: {why}")
    if given.direct_running_mode == "multi_threading":
        raise ConfigError("--direct_running_mode=multi_threading cannot be used here: use multi_processing")
    for name in _AT_LEAST_0:
        value = getattr(given, name)
        if not str(value).isdigit():
            raise ConfigError(f"bad Beam option: --{name} must be a whole number, 0 or more, not {value!r}")
