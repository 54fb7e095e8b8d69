"""One run at a time in an output folder on a store: an object that says who writes there, renewed while the run lasts.

A run that was killed leaves its object behind. The next one takes over at once if that process ran beside it, on this
machine and in this container, and has ended; else when nobody has renewed the object for STALE_S. A run that could not
reach the store for so long, and finds another's object, ends before it writes again.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from trainer.errors import TrainerError, one_line
from trainer.remote_shards import filesystem_of, make_folder

log = logging.getLogger(__name__)
NAME = ".run"
RENEW_S = 20.0
STALE_S = 120.0
WATCH_S = 50.0
"""How long an object is watched at least, whatever its age: clocks of machines differ, and a renewal may fail."""
_LOOK_S = 2.0
_PARTS = {"token": str, "host": str, "place": str, "pid": int, "renewed": float}


class StoreClaim:
    """The object of one run; its first process uses it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._filesystem, root = filesystem_of(url, "train.output")
        self._path = f"{root}/{NAME}"
        self._token = uuid.uuid4().hex
        self._renewed_s = 0.0  # on this machine's own clock
        self._lost = threading.Event()

    @property
    def is_lost(self) -> bool:
        """Whether another run was seen to have taken over."""
        return self._lost.is_set()

    def check(self) -> None:
        """Raise TrainerError if another run has taken over."""
        is_ours = True
        with suppress(Exception):  # the store does not answer: what is written next will say so
            is_ours = self._is_ours()
        if not is_ours:
            raise TrainerError(
                f"another run has taken {self.url} over, because this one did not reach the store for minutes; it "
                "writes nothing more there"
            )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder.

        Raises:
            TrainerError: another run writes there, or it cannot be written.
        """
        try:
            self._take()
        except TrainerError:
            raise
        except Exception as error:  # each file system raises its client's errors
            raise TrainerError(f"cannot write {self.url}: {one_line(error)}; set train.output") from error
        ended = threading.Event()
        renewing = threading.Thread(target=self._renew, args=(ended,), daemon=True)
        renewing.start()
        try:
            yield
        finally:
            ended.set()
            renewing.join()
            with suppress(Exception):  # the next run finds out by itself
                if self._is_ours():
                    self._filesystem.rm_file(self._path)

    def _take(self) -> None:
        make_folder(self._filesystem, self._path)
        holder = self._holder()
        if holder and not _has_ended(holder):
            holder = self._watched(holder)
        if holder or not self._create():
            self._write()
            time.sleep(_LOOK_S)  # of runs that take over in one moment, the one that wrote last has it
        if (holder := self._holder()).get("token") != self._token:
            raise self._busy(holder)
        self._renewed_s = time.monotonic()

    def _create(self) -> bool:
        """Create the object if there is none; return whether there is one now, this run's or another's."""
        try:
            self._filesystem.pipe_file(self._path, self._content(), mode="create")
        except Exception:  # a store has its own error for an object that exists, and for what it cannot do
            return bool(self._holder())
        return True

    def _write(self) -> None:
        self._filesystem.pipe_file(self._path, self._content())
        self._renewed_s = time.monotonic()

    def _watched(self, holder: dict[str, Any]) -> dict[str, Any]:
        """Return the object once nobody has renewed it for STALE_S, or nothing if it is gone; raise if somebody does.

        Its age is of another machine's clock: it shortens the wait, and what decides is seen here.
        """
        left_s = max(WATCH_S, STALE_S - max(0.0, time.time() - holder["renewed"]))
        log.info("waiting up to %.0f s for a sign of another run in %s, on %s", left_s, self.url, holder["host"])
        end_s = time.monotonic() + left_s
        while (now := self._holder()) == holder and time.monotonic() < end_s:
            time.sleep(_LOOK_S)
        if now and now != holder:
            raise self._busy(now)
        return now

    def _busy(self, holder: dict[str, Any]) -> TrainerError:
        return TrainerError(
            f"another run is training in {self.url} (process {holder.get('pid')} on {holder.get('host')}): wait until "
            "it ends, or set train.output to another folder"
        )

    def _content(self) -> bytes:
        about = {
            "token": self._token, "host": socket.gethostname(), "place": _place(), "pid": os.getpid(),
            "renewed": time.time(),
        }  # fmt: skip
        return json.dumps(about).encode()

    def _holder(self) -> dict[str, Any]:
        """Return what the object says; nothing if there is none, or it has another form."""
        self._filesystem.invalidate_cache()
        try:
            told = json.loads(self._filesystem.cat_file(self._path))
            return dict(told) if all(type(told.get(key)) is kind for key, kind in _PARTS.items()) else {}
        except (FileNotFoundError, ValueError, AttributeError):
            return {}

    def _is_ours(self) -> bool:
        """Return whether no other run has taken over; an object that was deleted by hand is made again.

        After minutes without the store, one that is gone was another run's, which has ended since.
        """
        holder = self._holder()
        return bool(holder["token"] == self._token if holder else time.monotonic() - self._renewed_s < STALE_S)

    def _renew(self, ended: threading.Event) -> None:
        while not ended.wait(RENEW_S):
            with suppress(Exception):  # the store does not answer now: the next time it may
                if not self._is_ours():
                    self._lost.set()
                    return
                self._write()


def _place() -> str:
    """Return what tells machines and their containers apart, where names can be equal: pids count within one."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # another system than Linux
        return socket.gethostname()


def _has_ended(holder: dict[str, Any]) -> bool:
    """Return whether the process that wrote the object ran in this place, and has ended."""
    if holder["place"] != _place():
        return False
    if holder["pid"] == os.getpid():  # of an earlier run of this process
        return True
    try:
        os.kill(holder["pid"], 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:  # it is another user's
        return False
    return False
