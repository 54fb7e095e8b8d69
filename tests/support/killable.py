"""Work that may be killed: each piece in a session of its own, forked from a process that has everything imported.

The imports of `wit build` take seconds of CPU, which a test that kills a build ten times would spend eleven times.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from pipeline.cli.main import main

_CONTEXT = multiprocessing.get_context("forkserver")
_MODULES = ["pipeline.build", "pipeline.fetching.fetcher", "s3fs", "support.fetching", "support.killable"]


def start(work: Callable[..., int | None], *arguments: Any) -> ForkServerProcess:
    """Start `work` with the environment of this process; what it returns is its exit code."""
    _CONTEXT.set_forkserver_preload(_MODULES)
    process = _CONTEXT.Process(target=_run, args=(dict(os.environ), work, *arguments))
    process.start()
    return process


def start_build(config: Path, *words: str) -> ForkServerProcess:
    """Start `wit build -c CONFIG WORDS... --quiet`."""
    return start(main, ["build", "-c", str(config), *words, "--quiet"])


def kill(process: ForkServerProcess) -> bool:
    """Kill a process and all that it started with SIGKILL; return whether it was still running."""
    assert process.pid is not None
    while process.is_alive():
        if os.getpgid(process.pid) == process.pid:  # else it has only just been forked
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
            return process.exitcode == -signal.SIGKILL
        time.sleep(0.001)
    return False


def _run(environment: dict[str, str], work: Callable[..., int | None], *arguments: Any) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # where TMPDIR says
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    sys.exit(work(*arguments))
