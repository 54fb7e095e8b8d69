"""End a run when a local worker process dies, and a worker process when its run ends.

Beam itself waits endlessly for a worker that died before it connected, or that connects after the run has ended, and
reports "Channel closed prematurely" for one that died later.
"""

import re
import signal
import threading
import time
from contextlib import suppress

from apache_beam.portability import python_urns
from apache_beam.runners.portability.fn_api_runner.worker_handlers import (
    BeamFnControlServicer,
    SubprocessSdkWorkerHandler,
    WorkerHandler,
)

from pipeline.errors import UserError

_EXITED = re.compile(r"Worker subprocess exited with return code (-?[0-9]+)")
_LOST = ("Channel closed prematurely", "Socket closed", "Connection reset by peer")
_SHELLS_KILLED = 128
_ENDING_S = 3.0
"""Beam notices a lost connection before the end of the process behind it."""
_ABORT_INTERVAL_S = 0.2

_deaths: list[str] = []


@WorkerHandler.register_environment(python_urns.SUBPROCESS_SDK, bytes)
class WatchedWorkerHandler(SubprocessSdkWorkerHandler):
    """Starts a worker process like Beam's own handler, and fails its pending requests if it dies."""

    def start_worker(self) -> None:
        self._stopped = threading.Event()
        super().start_worker()
        threading.Thread(target=self._watch, args=(self.worker_thread,), daemon=True).start()

    def stop_worker(self) -> None:
        self._stopped.set()
        self.control_conn.push(BeamFnControlServicer._DONE_MARKER)  # Beam does so only for workers that have connected
        super().stop_worker()

    def _watch(self, process: threading.Thread) -> None:
        process.join()
        while not self._stopped.wait(_ABORT_INTERVAL_S):
            if _deaths:
                error = RuntimeError(_deaths[0])
                self.data_conn._exception = error  # no method sets it; waiting threads check it every second
                with suppress(RuntimeError):  # the dictionary may change meanwhile: the next call retries
                    self.control_conn.abort(error)


def note_death(error: BaseException | None) -> None:
    """Record why a thread that waits for a worker process ended."""
    if _EXITED.fullmatch(str(error)):
        _deaths.append(str(error))


def forget_deaths() -> None:
    """Start a new run: forget how the workers of the previous one ended."""
    _deaths.clear()


def death_behind(error: Exception) -> UserError | None:
    """Return the error to raise instead of Beam's after the death of a worker; None if no worker died."""
    exited = _EXITED.search(str(error))
    if exited is None and any(text in str(error) for text in _LOST):
        until_s = time.monotonic() + _ENDING_S
        while not _deaths and time.monotonic() < until_s:
            time.sleep(0.05)
        exited = _EXITED.search(_deaths[0]) if _deaths else None
    if exited is None:
        return None
    how = _how_it_ended(int(exited[1]))
    return UserError(f"a worker process {how}; finished work is kept: run the same command again")


def _how_it_ended(code: int) -> str:
    number = -code if code < 0 else code - _SHELLS_KILLED
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"ended with exit code {code}"
    if number == signal.SIGKILL:
        return "was killed by SIGKILL, most often by the system for lack of memory (lower --direct_num_workers)"
    return f"was killed by {name}"
