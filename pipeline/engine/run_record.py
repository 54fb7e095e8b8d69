"""Who runs a build and how far it is, kept in the workspace (.wit/run) so that any machine can ask.

One small file, written again every few seconds and removed when the build has ended well. One that is left says where
a build ended: with a cause where it failed, else it was killed. Failures to write it never stop a build.
"""

import getpass
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline.engine.workspace import Workspace
from pipeline.errors import one_line

logger = logging.getLogger(__name__)

RUN_RECORD = ".wit/run"
_EVERY_S, _EVERY_S_IN_STORES = 2.0, 30.0
_SILENT_S = 90.0
"""A run that has not been heard of for so long has ended."""


@dataclass(frozen=True)
class StepState:
    """A step of a stage, with its units and rows: how many are done, per second, and the seconds left, if known."""

    step: str
    units: int
    done: int
    resumed: int
    rows: int
    elapsed_s: float
    rows_per_s: float | None
    left_s: float | None
    counts: dict[str, int]


@dataclass(frozen=True)
class RunRecord:
    """A run: `state` is running, paused (see `cause`), or stopped. Times are seconds since 1970."""

    command: str
    host: str
    user: str
    process: int
    started: float
    heard: float
    state: str = "running"
    cause: str | None = None
    stages: tuple[str, ...] = ()
    stage: str | None = None
    step: StepState | None = None

    @property
    def stage_number(self) -> int | None:
        """Return which of `stages` runs, counted from 1."""
        return self.stages.index(self.stage) + 1 if self.stage in self.stages else None

    @property
    def is_alive(self) -> bool:
        """Return whether it runs now; on this machine exactly, elsewhere by when it was last heard of."""
        if self.state == "stopped":
            return False
        if self.host == socket.gethostname() and not runs_here(self.process):
            return False
        return time.time() - self.heard < _SILENT_S


def runs_here(process: int) -> bool:
    """Return whether a process runs on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


def read_run(workspace: Workspace) -> RunRecord | None:
    """Return the run that is under way, or that was interrupted last; None where there is none."""
    try:
        value = json.loads(workspace.read_bytes(RUN_RECORD))
        step = None if value["step"] is None else StepState(**value["step"])
        return RunRecord(**value | {"step": step, "stages": tuple(value["stages"])})
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        logger.debug("%s cannot be read: %s", RUN_RECORD, error)
        return None


class RunKeeper:
    """Keeps the record of this process's run."""

    def __init__(self, workspace: Workspace, command: str, stages: tuple[str, ...]) -> None:
        now = time.time()
        self._workspace = workspace
        self._every_s = _EVERY_S if workspace.is_local else _EVERY_S_IN_STORES
        self._written_s = -self._every_s
        self._record = RunRecord(command, socket.gethostname(), _user(), os.getpid(), now, now, stages=stages)

    def update(self, *, at_once: bool = False, **changes: Any) -> None:
        """Change fields of the record; write it if it is time."""
        self._record = replace(self._record, **changes, heard=time.time())
        if at_once or time.monotonic() - self._written_s >= self._every_s:
            self._written_s = time.monotonic()
            try:
                with self._workspace.create(RUN_RECORD) as out:
                    out.write(json.dumps(asdict(self._record)).encode())
            except Exception as error:  # any error of a store; the build goes on
                logger.debug("%s cannot be written: %s", RUN_RECORD, error)

    def remove(self) -> None:
        with suppress(Exception):  # any error of a store
            self._workspace.remove([RUN_RECORD])


@contextmanager
def keeping_run(workspace: Workspace, command: str, stages: tuple[str, ...]) -> Iterator[RunKeeper]:
    """Keep the record of a run while the block runs; hold the workspace's lock."""
    keeper = RunKeeper(workspace, command, stages)
    keeper.update(at_once=True)
    try:
        yield keeper
    except BaseException as error:
        cause = "interrupted" if isinstance(error, KeyboardInterrupt) else one_line(str(error)) or type(error).__name__
        keeper.update(at_once=True, state="stopped", cause=cause)
        raise
    keeper.remove()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without an entry for the user
        return str(os.getuid())
