"""What a user is told of a failed run, from the texts that runners really give."""

from pathlib import Path

import pytest

from dedup.errors import DedupError
from pipeline.beam.failures import user_error, without_step
from pipeline.errors import ConfigError, UserError, one_line
from queries.errors import InputError

LOG = Path("/tmp/run.log")

FROM_A_WORKER = """Traceback (most recent call last):
  File "apache_beam/runners/common.py", line 1512, in apache_beam.runners.common.DoFnRunner.process
  File "stage.py", line 5, in work
    raise {error}
          ^^^^^^^^
{error}

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "sdk_worker.py", line 310, in _execute
    response = task()
               ^^^^^^
{error} [while running 'Stage/Work']
"""

FROM_SPARK = (
    "Pipeline BeamApp-x_1 failed in state FAILED: java.lang.RuntimeException: Error received from SDK harness for "
    "instruction 3: "
    + FROM_A_WORKER
    + """
\tat org.apache.beam.runners.fnexecution.control.FnApiControlClient$ResponseStreamObserver.onNext(FnApi.java:180)
Caused by: java.lang.RuntimeException: Error received from SDK harness for instruction 3: """
    + FROM_A_WORKER
    + """
\tat org.apache.beam.runners.fnexecution.control.FnApiControlClient$ResponseStreamObserver.onNext(FnApi.java:160)
\t... 1 more"""
)

FROM_JAVA = """Pipeline BeamApp-x_1 failed in state FAILED: java.lang.IllegalStateException: No context
\tat org.apache.spark.SparkContext.<init>(SparkContext.scala:1)
Caused by: org.apache.spark.SparkException: Job aborted due to stage failure
\t... 3 more
Caused by: java.io.IOException: No space left on device
\t... 9 more
"""


@pytest.mark.parametrize("text", [FROM_A_WORKER, FROM_SPARK])
@pytest.mark.parametrize("kind", [UserError, ConfigError])
def test_a_users_error_surfaces_as_itself_from_another_process(text, kind):
    error = f"{kind.__module__}.{kind.__name__}: cannot read a.parquet: no column 'url'"
    found = user_error(RuntimeError(text.format(error=error)), LOG)
    assert type(found) is kind
    assert str(found) == "cannot read a.parquet: no column 'url'"


@pytest.mark.parametrize("text", [FROM_A_WORKER, FROM_SPARK])
@pytest.mark.parametrize("kind", [InputError, DedupError])
def test_the_errors_of_the_other_packages_are_a_users_too(text, kind):
    error = f"{kind.__module__}.{kind.__name__}: a.xml: not a dump"
    for found in (
        user_error(RuntimeError(text.format(error=error)), LOG),
        user_error(kind("a.xml: not a dump [while running 'Read']"), LOG),
    ):
        assert type(found) is UserError
        assert str(found) == "a.xml: not a dump"


@pytest.mark.parametrize("text", [FROM_A_WORKER, FROM_SPARK])
def test_a_bug_is_named_with_its_step_and_the_log(text):
    found = user_error(RuntimeError(text.format(error="KeyError: 'url'")), LOG)
    assert type(found) is UserError
    assert str(found) == "KeyError: 'url' (in step 'Stage/Work'; the log is in /tmp/run.log)"


@pytest.mark.parametrize("where", ["", "in step 'Run'"])
def test_a_full_disk_says_what_to_do(where):
    step = " [while running 'Run']" if where else ""
    found = user_error(OSError(f"[Errno 28] No space left on device{step}"), LOG)
    assert str(found).startswith("no space left on the disk of the workspace or of ")
    assert "run again" in str(found)
    assert where in str(found)


def test_an_exception_from_this_process_is_named_too():
    found = user_error(ZeroDivisionError("division by zero [while running 'Sum']"), LOG)
    assert str(found) == "ZeroDivisionError: division by zero (in step 'Sum'; the log is in /tmp/run.log)"


def test_an_exception_class_that_beam_cannot_copy_keeps_its_name():
    found = user_error(RuntimeError(FROM_A_WORKER.format(error="RuntimeError: lib.Odd: 1-2")), LOG)
    assert str(found) == "lib.Odd: 1-2 (in step 'Stage/Work'; the log is in /tmp/run.log)"


def test_an_exception_without_a_message():
    found = user_error(RuntimeError(FROM_A_WORKER.format(error="TimeoutError")), LOG)
    assert str(found).startswith("TimeoutError")


def test_the_root_cause_of_a_java_failure_is_named():
    assert str(user_error(RuntimeError(FROM_JAVA), LOG)) == (
        "java.io.IOException: No space left on device (the log is in /tmp/run.log)"
    )


def test_a_failure_without_any_text():
    assert str(user_error(RuntimeError(""), LOG)) == "unknown error (the log is in /tmp/run.log)"


def test_long_and_broken_lines_are_joined_and_cut():
    line = one_line("many\nwords " * 500)
    assert "\n" not in line
    assert len(line) == 500


def test_step_names_with_quotes_are_removed():
    assert without_step("bad [while running 'Map(f \"x\")'] end") == "bad end"
