"""What a worker process logs, prints and reports of exceptions is without secrets, whatever raised it."""

import logging
import os
import subprocess
import sys

import pytest

from pipeline.beam import worker

SECRET = "hunter2-of-the-store"
URL = f"s3://AKIA123:{SECRET}@bucket/x?token={SECRET}"

WORK = """
import logging, os, sys, threading, traceback
from pipeline.beam import worker
from apache_beam.runners.worker import sdk_worker_main

def work(arguments):
    logging.basicConfig(level=logging.INFO)
    logging.warning("asked for %s", sys.argv[1])
    try:
        raise OSError(f"no answer from {sys.argv[1]}")
    except OSError:
        logging.exception("a bundle failed")
        print(traceback.format_exc(), file=sys.stderr)
    thread = threading.Thread(target=lambda: {}[sys.argv[1]])
    thread.start()
    thread.join()
    raise RuntimeError("uncaught: " + os.environ["STORE_SECRET_KEY"])

sdk_worker_main.main = work
worker.be_worker([])
"""


def test_nothing_of_a_worker_shows_a_secret():
    run = subprocess.run(
        [sys.executable, "-c", WORK, URL],
        env=os.environ | {"STORE_SECRET_KEY": "only-in-the-environment"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    for told in ("asked for s3://bucket/x", "no answer from s3://bucket/x", "KeyError", "RuntimeError: uncaught: ***"):
        assert told in run.stderr
    assert SECRET not in run.stderr + run.stdout
    assert "only-in-the-environment" not in run.stderr + run.stdout


@pytest.mark.parametrize("argument", [URL, 3, None])
def test_a_log_record_keeps_what_is_no_secret(argument):
    from pipeline.beam import redacted_output

    record = redacted_output._LogRecord("x", logging.INFO, "f.py", 1, "got %s and %d", (argument, 7), None)
    assert record.getMessage() == f"got {'s3://bucket/x?token=***' if argument == URL else argument} and 7"
    assert worker.redact_output is redacted_output.redact_output
