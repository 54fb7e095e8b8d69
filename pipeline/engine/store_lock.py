"""The lock of a workspace on a store: an object that is created only if there is none, and touched during a build.

S3 creates it with `If-None-Match`, Google Cloud Storage with a generation match. A build that was killed leaves the
object behind. It is taken over at once if that process ran beside this one, on this machine and in this container; else
when its last touch is STALE_S ago, and nobody touches it while it is watched. Where the store cannot create
conditionally (hdfs://), two builds that start in the same moment both get it; the first touch tells one of them.
"""

import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from pipeline.engine.run_record import runs_here
from pipeline.engine.workspace import Workspace
from pipeline.errors import BusyError

logger = logging.getLogger(__name__)

TOUCH_S = 30.0
STALE_S = 300.0
WATCH_S = 70.0
"""How long a lock that seems old is watched: clocks of machines differ, so its age alone decides nothing."""
_LOOK_S = 2.0


@contextmanager
def hold(workspace: Workspace, name: str, token: str) -> Iterator[None]:
    """Hold the lock object `name` that `take` created; interrupt the main thread if another build takes it over.

    Raises:
        BusyError: another build has taken it over.
    """
    done, lost = threading.Event(), threading.Event()
    toucher = threading.Thread(target=_touch, args=(workspace, name, token, done, lost), daemon=True)
    toucher.start()
    try:
        yield
    finally:
        done.set()
        toucher.join()
        if lost.is_set():
            raise BusyError(
                f"{workspace.root}: another build has taken this workspace over, because this one did not reach the "
                "store for minutes; it has ended, and nothing is lost"
            ) from None
        if _read(workspace, name).get("token") == token:
            workspace.remove([name])


def take(workspace: Workspace, name: str) -> str:
    """Create the lock object `name`; return the token that tells it from another build's.

    Raises:
        BusyError: another build holds it.
        Exception: any error of the store: it is not writable.
    """
    token = uuid.uuid4().hex
    if _create(workspace, name, token):
        return token
    holder = _read(workspace, name)
    if holder.get("token") == token:  # it was created, but the response was lost, and so the request repeated
        return token
    if holder := _running(workspace, name, holder):
        raise BusyError(
            f"{workspace.root}: another build is running in this workspace (process {holder['pid']} on "
            f"{holder['host']}, last seen at {holder['touched']}); wait until it ends. If it was killed, "
            f"the workspace is free {STALE_S / 60:.0f} minutes after it was last seen"
        )
    workspace.remove([name])
    if not _create(workspace, name, token) and _read(workspace, name).get("token") != token:
        raise BusyError(f"{workspace.root}: another build has just started in this workspace; wait until it ends")
    return token


def _create(workspace: Workspace, name: str, token: str) -> bool:
    """Create the object if there is none; tell whether it was created."""
    try:
        workspace.fs.pipe_file(workspace.path(name), _content(token), mode="create")
    except Exception:  # a store has its own error for an object that exists, and for what it cannot do
        if workspace.exists(name):
            return False
        workspace.fs.pipe_file(workspace.path(name), _content(token))
        return _read(workspace, name).get("token") == token
    return True


def _content(token: str) -> bytes:
    touched = _now().isoformat("T", "seconds")
    about = {"token": token, "host": socket.gethostname(), "place": _place(), "pid": os.getpid(), "touched": touched}
    return json.dumps(about).encode()


def _now() -> datetime:
    return datetime.now(UTC)


def _read(workspace: Workspace, name: str) -> dict[str, Any]:
    """Return what the lock says; nothing if there is none, or it is not a lock (earlier versions wrote it empty)."""
    workspace.fs.invalidate_cache()
    try:
        told = json.loads(workspace.read_bytes(name))
        return dict(told) if {"token", "host", "pid", "touched"} <= told.keys() else {}
    except (FileNotFoundError, ValueError, AttributeError):
        return {}


def _running(workspace: Workspace, name: str, holder: dict[str, Any]) -> dict[str, Any]:
    """Return the lock if its build is running, as far as can be told; nothing if it has ended."""
    if not holder or (holder.get("place") == _place() and not runs_here(int(holder["pid"]))):
        return {}
    age_s = (_now() - datetime.fromisoformat(holder["touched"])).total_seconds()
    if abs(age_s) < STALE_S:  # it is negative where the other machine's clock is ahead
        return holder
    logger.info("watching the lock of %s for %.0f s: its build may still run", holder["host"], WATCH_S)
    end_s = time.monotonic() + WATCH_S
    while (now := _read(workspace, name)) == holder and time.monotonic() < end_s:
        time.sleep(_LOOK_S)
    return {} if now == holder else now


def _place() -> str:
    """Return what tells machines and their containers apart, where names can be equal: pids count within one."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # another system than Linux
        return socket.gethostname()


def _touch(workspace: Workspace, name: str, token: str, done: threading.Event, lost: threading.Event) -> None:
    while not done.wait(TOUCH_S):
        try:
            if _read(workspace, name).get("token") != token:
                lost.set()
                signal.pthread_kill(cast(int, threading.main_thread().ident), signal.SIGINT)
                return
            workspace.fs.pipe_file(workspace.path(name), _content(token))
        except Exception as error:  # the store does not answer now: the next touch may reach it, or find the lock taken
            logger.debug("%s cannot be touched: %s", name, error)
