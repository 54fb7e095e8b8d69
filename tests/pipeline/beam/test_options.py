"""Beam options: nothing a user writes is dropped, and nothing wrong gets past."""

import pytest
from apache_beam.options.pipeline_options import (
    DirectOptions,
    JobServerOptions,
    PortableOptions,
    SetupOptions,
    StandardOptions,
)

from pipeline.beam.options import parse_beam_options
from pipeline.beam.runner import worker_count
from pipeline.errors import ConfigError


def runner_of(*args: str) -> str:
    return parse_beam_options(args).view_as(StandardOptions).runner


def test_the_local_engine_is_named_explicitly():
    assert runner_of() == "FnApiRunner"


@pytest.mark.parametrize("name", ["DirectRunner", "directrunner", "direct", "FnApiRunner", "fnapi"])
def test_names_of_the_local_engine_mean_the_same(name):
    assert runner_of(f"--runner={name}") == "FnApiRunner"


def test_options_reach_beam():
    options = parse_beam_options(["--direct_running_mode=multi_processing", "--direct_num_workers", "3"])
    direct = options.view_as(DirectOptions)
    assert (direct.direct_running_mode, direct.direct_num_workers) == ("multi_processing", 3)


def test_hyphens_are_read_as_underscores():
    direct = parse_beam_options(["--direct-runner-bundle-repeat=2"]).view_as(DirectOptions)
    assert direct.direct_runner_bundle_repeat == 2


def test_more_than_one_worker_means_processes():
    options = parse_beam_options(["--direct_num_workers=2"])
    assert options.view_as(DirectOptions).direct_running_mode == "multi_processing"


def test_the_main_session_is_never_pickled():
    assert parse_beam_options([]).view_as(SetupOptions).save_main_session is False


def test_values_may_hold_equals_signs_and_hyphens():
    options = parse_beam_options(["--job_server_jvm_properties=-Dspark.some-thing=a=b"])
    assert options.view_as(JobServerOptions).job_server_jvm_properties == ["-Dspark.some-thing=a=b"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--direct_num_worker=2"], "unknown Beam option --direct_num_worker; did you mean --direct_num_workers?"),
        (["--direct_num_workers=two"], "--direct_num_workers: invalid int value: 'two'"),
        (["--direct_num_workers=-1"], "--direct_num_workers must be a whole number, 0 or more, not -1"),
        (["--direct_running_mode=fast"], "invalid choice: 'fast'"),
        (["--direct_running_mode=multi_threading"], "use multi_processing"),
        (["--job_server_jvm_properties", "-Xmx1g"], "expected one argument (write it as --name=value)"),
        (["--runner=SparkRuner"], "unknown runner 'SparkRuner': choose one of FnApiRunner, SparkRunner"),
        (["--runner=DaskRunner"], "unknown runner 'DaskRunner'"),
        (["--runner"], "--runner: expected one argument"),
        (["--storage_level=DISK_ONLY"], "unknown Beam option --storage_level"),
        (["work.toml"], "unexpected argument 'work.toml'"),
        (["--no-such-thing", "5"], "unknown Beam option --no_such_thing"),
        (["--help"], "unknown Beam option --help"),
        (["-h"], "unknown Beam option -h"),
        (["--streaming"], "--streaming cannot be used here: every stage is a batch job"),
        (["--no_wait_until_finish"], "cannot be used here"),
        (["--save_main_session"], "cannot be used here"),
        (["--output_executable_path=build.jar"], "cannot be used here"),
        (["--spark_submit_uber_jar"], "cannot be used here"),
        (["--sdk_worker_parallelism=many"], "must be a whole number"),
        (["--direct_test_splits=nonsense"], "--direct_test_splits"),
        (["--gcs_custom_audit_entries=nonsense"], "bad Beam option"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(args, said, capsys):
    with pytest.raises(ConfigError) as refused:
        parse_beam_options(args)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert capsys.readouterr() == ("", "")


def test_parsing_changes_nothing_that_a_second_parse_could_see():
    first = parse_beam_options(["--experiments=a"])
    first.view_as(PortableOptions).environment_type = "LOOPBACK"
    assert parse_beam_options([]).view_as(PortableOptions).environment_type is None


@pytest.mark.parametrize(
    ("args", "workers"),
    [
        ([], 1),
        (["--direct_num_workers=3"], 3),
        (["--direct_running_mode=multi_processing"], 1),
        (["--runner=PortableRunner", "--job_endpoint=embed"], 1),
        (["--runner=FlinkRunner", "--parallelism=500"], 500),
    ],
)
def test_worker_count(args, workers):
    assert worker_count(parse_beam_options(args)) == workers


def test_no_number_of_workers_means_all_cores(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 5)
    assert worker_count(parse_beam_options(["--direct_num_workers=0"])) == 5
