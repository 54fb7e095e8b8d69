"""The lock of a workspace on a store: an object that is created only if there is none, and touched during a build.

S3 creates it with `If-None-Match`, Google Cloud Storage with a generation match. A build that was killed leaves the
object behind: it is taken over at once if that process ran on this machine, else when it has not been touched for
STALE_S. Where the store cannot create conditionally (hdfs://), two builds that start in the same moment both get it;
the first touch tells one of them.
"""

import json
import logging
import os
import signal
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, cast

from pipeline.engine.run_record import runs_here
from pipeline.engine.workspace import Workspace
from pipeline.errors import BusyError

logger = logging.getLogger(__name__)

TOUCH_S = 30.0
STALE_S = 300.0


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
    if _is_alive(holder):
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
    return json.dumps({"token": token, "host": socket.gethostname(), "pid": os.getpid(), "touched": touched}).encode()


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


def _is_alive(holder: dict[str, Any]) -> bool:
    if not holder:
        return False
    if holder["host"] == socket.gethostname():
        return runs_here(int(holder["pid"]))
    return (_now() - datetime.fromisoformat(holder["touched"])).total_seconds() < STALE_S


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
