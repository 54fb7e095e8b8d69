"""A process that runs phases one after another, and is replaced when one fails, crashes or exceeds its time.

An error of CUDA makes a process useless for the phases that follow, and a collective may wait forever.
"""

import gc
import os
import signal
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Self

import torch

from benchmarks.gpu.bench import Bench

Outcome = dict[str, str]
"""Of a phase: `error` or `skipped` with the reason; empty: done."""
_OWN = ("benchmarks", "trainer", "pipeline", "dedup", "queries")
_START_S = 300
"""Enough for the imports on a busy machine; they do not count as the phase's time."""


class Worker:
    """Runs phases in a process that is started when it is needed."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._running: tuple[SpawnProcess, Connection] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def run(self, work: Callable[[Bench], None], limit_s: float) -> Outcome:
        """Run a phase; end it, with all processes that it started, after `limit_s`."""
        process, pipe = self._running = self._running or self._started()
        try:
            pipe.send(work)
            outcome: Outcome = pipe.recv() if pipe.poll(limit_s) else {"error": f"took more than {limit_s:.0f} s"}
        except (EOFError, ConnectionError):
            process.join()
            outcome = {"error": f"the process ended with code {process.exitcode}"}
        if "error" in outcome:
            self._end()
        return outcome

    def _started(self) -> tuple[SpawnProcess, Connection]:
        context = get_context("spawn")  # a fork could not use CUDA
        pipe, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._bench))
        process.start()
        theirs.close()
        if not pipe.poll(_START_S):
            process.kill()
        with suppress(EOFError):  # `run` says how the process ended
            pipe.recv()
        return process, pipe

    def _end(self) -> None:
        if self._running is None:
            return
        (process, pipe), self._running = self._running, None
        with suppress(ProcessLookupError):  # all of its group have ended
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.kill()
        process.join()
        pipe.close()


def _serve(pipe: Connection, bench: Bench) -> None:
    """Run the phases that arrive; loader processes and runs of the trainer are in this process's group."""
    os.setpgid(0, 0)
    pipe.send("ready")
    while True:
        pipe.send(_outcome(pipe.recv(), bench))


def _outcome(work: Callable[[Bench], None], bench: Bench) -> Outcome:
    """Run a phase; return what it raises, because the next must run."""
    try:
        gc.collect()
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()  # what the phase before has left
        work(bench)
    except ModuleNotFoundError as error:
        is_own = (error.name or "").partition(".")[0] in _OWN
        return {"error" if is_own else "skipped": f"{error}"}
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"[:500]}
    return {}
