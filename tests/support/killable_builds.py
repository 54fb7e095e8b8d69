"""Builds that may be killed: each in a session of its own, forked from a process that has everything imported.

The imports of `wit build` take seconds of CPU, which a test that kills a build ten times would spend eleven times.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from pipeline.cli.main import main

_CONTEXT = multiprocessing.get_context("forkserver")
_MODULES = ["pipeline.build", "pipeline.fetching.fetcher", "s3fs", "support.killable_builds"]


def start_build(config: Path, *words: str) -> ForkServerProcess:
    """Start `wit build -c CONFIG WORDS... --quiet` with the environment of this process."""
    _CONTEXT.set_forkserver_preload(_MODULES)
    arguments = ["build", "-c", str(config), *words, "--quiet"]
    process = _CONTEXT.Process(target=_build, args=(arguments, dict(os.environ)))
    process.start()
    return process


def kill_build(process: ForkServerProcess) -> bool:
    """Kill a build and all that it started with SIGKILL; return whether it was still running."""
    assert process.pid is not None
    while process.is_alive():
        if os.getpgid(process.pid) == process.pid:  # else it has only just been forked
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
            return process.exitcode == -signal.SIGKILL
        time.sleep(0.001)
    return False


def _build(arguments: list[str], environment: dict[str, str]) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # where TMPDIR says
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    sys.exit(main(arguments))
