"""Redirect Beam's and Spark's output from the terminal to one log file per process, in the temporary folder.

They write hundreds of harmless lines per job, some of them alarming ("Multiplexer hanging up"), through loggers, plain
prints and crashing threads. Handlers of this project's own loggers are not changed.
"""

import atexit
import contextlib
import fcntl
import functools
import logging
import os
import tempfile
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from apache_beam.runners.worker import sdk_worker

from pipeline.beam.dead_workers import note_death
from pipeline.private_folder import KEPT
from queries.redact import redact

_NOISY = ("apache_beam", "SparkJarJobServer")
_BEAM_FRAMES = f"{os.sep}apache_beam{os.sep}"


@functools.cache
def log_file() -> Path:
    """Return this process's log file; it is removed at exit unless `keep_log` was called."""
    descriptor, name = tempfile.mkstemp(prefix="wit-beam-", suffix=".log")  # readable by this user only
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # and locked until this process ends: see `remove_leftovers`
    atexit.register(_remove_log)
    return Path(name)


def keep_log() -> None:
    """Keep the log file after this process ends."""
    atexit.unregister(_remove_log)
    atexit.register(_sign_log)


@contextlib.contextmanager
def noise_in_log_file() -> Iterator[None]:
    """Send all output to the log file, including what Beam logs later, mostly at exit."""
    handler = _silence_for_good()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def _sign_log() -> None:
    with log_file().open("ab") as log:
        log.write(KEPT)


def _remove_log() -> None:
    log_file().unlink(missing_ok=True)


class _WithoutSecrets(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


@functools.cache
def _silence_for_good() -> logging.Handler:
    handler = logging.FileHandler(log_file())
    handler.setFormatter(_WithoutSecrets("%(asctime)s %(levelname)s %(name)s %(message)s"))
    for name in _NOISY:
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(logging.INFO)
    threading.excepthook = functools.partial(_log_thread_of_beam, threading.excepthook)
    # The worker that runs in this process (LOOPBACK) prints the traceback of every failed bundle.
    sdk_worker.print = _log_print  # type: ignore[attr-defined]
    return handler


def _log_thread_of_beam(otherwise: object, args: threading.ExceptHookArgs) -> None:
    """Log the exception of a Beam thread, which is normal when a job server ends; pass on those of other threads."""
    note_death(args.exc_value)
    files = [frame.filename for frame in traceback.extract_tb(args.exc_traceback)]
    if not any(_BEAM_FRAMES in file for file in files):
        assert callable(otherwise)
        otherwise(args)
    elif args.exc_value is not None:
        logging.getLogger("apache_beam").info("A thread ended", exc_info=args.exc_value)


def _log_print(text: str, file: TextIO) -> None:
    logging.getLogger("apache_beam").error(text)
