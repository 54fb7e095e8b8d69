"""The same job on every engine that needs no Java: one result, whatever repeats, splits or spreads the work."""

import functools
import logging
import threading

import apache_beam as beam
import pytest
from support import small_job

from pipeline.beam import log as beam_noise
from pipeline.beam.runner import log_file, parse_beam_options, run_pipeline
from pipeline.errors import UserError

UNITS = 20
ENGINES = {
    "fn-api": [],
    "bundle-repeat": ["--direct_runner_bundle_repeat=2"],
    "embed": ["--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK"],
    "processes": ["--direct_running_mode=multi_processing", "--direct_num_workers=2"],
}
every_engine = pytest.mark.parametrize(
    "args",
    [pytest.param(args, id=name, marks=[pytest.mark.slow] * (name == "processes")) for name, args in ENGINES.items()],
)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    root = tmp_path_factory.mktemp("expected")
    run_pipeline(small_job.small_job(root, UNITS), parse_beam_options([]))
    return small_job.tree(root)


def test_the_job_writes_what_it_should(expected):
    assert len(expected) == UNITS + small_job.GROUPS + 1


@every_engine
def test_same_tree(args, expected, tmp_path):
    run_pipeline(small_job.small_job(tmp_path, UNITS), parse_beam_options(args))
    assert small_job.tree(tmp_path) == expected
    repeats = 3 if "--direct_runner_bundle_repeat=2" in args else 1
    assert small_job.calls(tmp_path) == sorted(list(range(UNITS)) * repeats)


@every_engine
def test_a_users_error_is_raised_as_it_is(args, capfd):
    with pytest.raises(UserError) as raised:
        run_pipeline(failing(small_job.fail_as_user), parse_beam_options(args))
    assert str(raised.value) == "cannot read unit 3"
    assert capfd.readouterr() == ("", "")


@every_engine
def test_a_bug_is_one_line_and_its_traceback_is_in_the_log(args, capfd):
    with pytest.raises(UserError) as raised:
        run_pipeline(failing(small_job.fail_as_bug), parse_beam_options(args))
    assert str(raised.value) == f"LookupError: no such thing: 3 (in step 'Fail'; the log is in {log_file()})"
    assert "small_job.py" in log_file().read_text()
    assert capfd.readouterr() == ("", "")


def test_ctrl_c_stays_what_it_is():
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(failing(small_job.fail_by_ctrl_c), parse_beam_options([]))


def failing(work):
    def build(pipeline: beam.Pipeline) -> None:
        _ = pipeline | beam.Create([3]) | beam.Reshuffle() | "Fail" >> beam.Map(work)

    return build


def test_a_bug_in_the_wiring_is_not_dressed_up():
    def build(pipeline: beam.Pipeline) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_pipeline(build, parse_beam_options([]))


def test_loggers_and_options_are_as_they_were(tmp_path):
    root = logging.getLogger()
    before, options = (root.handlers[:], root.level), parse_beam_options([])
    said = str(options.get_all_options())
    run_pipeline(small_job.small_job(tmp_path, 2), options)
    assert (root.handlers[:], root.level) == before
    assert str(options.get_all_options()) == said


@pytest.mark.parametrize(("file", "reported"), [("fetch.py", True), ("/lib/apache_beam/data_plane.py", False)])
def test_only_the_death_of_beams_own_threads_is_kept_from_the_terminal(file, reported, monkeypatch):
    died: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", functools.partial(beam_noise._log_thread_of_beam, died.append))
    thread = threading.Thread(target=exec, args=(compile("1 / 0", file, "exec"),))
    thread.start()
    thread.join()
    assert bool(died) is reported
