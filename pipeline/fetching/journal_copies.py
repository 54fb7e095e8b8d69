"""Copies of a journal in a workspace that is a store, so that another machine goes on where this one ended.

A store appends to no file, so each copy is a segment: what was written since the last one, named by where it begins.
The records of a journal are checksummed: if two machines wrote segments at odds with each other, what fits is used.
"""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.engine.workspace import Workspace
from pipeline.fetching.journal import Journal

logger = logging.getLogger("wit.fetch")

INTERVAL_S = 30.0
_SEGMENT_BYTES = 16 << 20


class JournalCopies:
    """The copies of one journal, under `folder` of the workspace."""

    def __init__(self, workspace: Workspace, folder: str) -> None:
        self._workspace = workspace
        self._folder = folder
        self._copied_bytes = 0

    def restore(self, path: Path) -> None:
        """Write the journal of another machine to `path`, if it is longer than what is there."""
        segments = sorted(self._workspace.sizes(self._folder).items())
        end = 0
        for name, size in segments:
            if _start(name) != end:
                break
            end += size
        self._copied_bytes = end
        if end <= (path.stat().st_size if path.exists() else 0):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.with_suffix(".restored")
        with whole.open("wb") as out:
            for name, _ in segments:
                if _start(name) == out.tell():
                    out.write(self._workspace.read_bytes(name))
        os.replace(whole, path)

    def copy(self, journal: Journal) -> None:
        """Copy what was written since the last time."""
        while (size := min(journal.size_bytes - self._copied_bytes, _SEGMENT_BYTES)) > 0:
            with self._workspace.create(f"{self._folder}/{self._copied_bytes:015d}") as out:
                out.write(journal.read((self._copied_bytes, size)))
            self._copied_bytes += size

    @contextmanager
    def kept(self, journal: Journal) -> Iterator[None]:
        """Copy every INTERVAL_S while the block runs, and once more if it fails."""
        self._copied_bytes = min(self._copied_bytes, journal.size_bytes)
        stop = threading.Event()

        def run() -> None:
            while not stop.wait(INTERVAL_S):
                self._try_copy(journal)

        thread = threading.Thread(target=run, name="journal-copies", daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            stop.set()
            thread.join()
            self._try_copy(journal)
            raise
        finally:
            stop.set()
            thread.join()

    def _try_copy(self, journal: Journal) -> None:
        try:
            self.copy(journal)
        except Exception as error:  # of any store: the fetch goes on, and the next copy has it all
            logger.warning("the journal could not be copied to %s: %s", self._folder, error)


def _start(name: str) -> int:
    """Return where a segment begins."""
    number = name.rpartition("/")[2]
    return int(number) if number.isdecimal() else -1
