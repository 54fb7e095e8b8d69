"""Phases of a benchmark that fail in one way each; a process that runs phases imports them from here."""

import os
import subprocess
import sys

from benchmarks.gpu.bench import Bench


def says(bench: Bench) -> None:
    bench.say("says", process=os.getpid())


def raises(bench: Bench) -> None:
    bench.say("raises", process=os.getpid())
    raise ValueError("a wrong value")


def lacks_a_package(bench: Bench) -> None:
    import a_package_that_nobody_has  # noqa: F401


def crashes(bench: Bench) -> None:
    os.abort()


def waits(bench: Bench) -> None:
    """Wait for a process that waits for its input."""
    waiting = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    bench.say("waits", process=waiting.pid)
    waiting.wait()
