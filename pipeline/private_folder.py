"""A folder in the temporary folder that all processes of a user on a machine share."""

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SCRATCH = "wit-scratch"
_LOGS = "wit-beam-*.log"
KEPT = b"This log was kept because the run failed.\n"
"""The last line of a log that is kept after its process ends."""


def private_folder(name: str) -> Path:
    """Return a folder that only this user can enter: `name` and the user's id in the temporary folder.

    Raises:
        PermissionError: another user owns it, or may enter it.
    """
    folder = Path(tempfile.gettempdir(), f"{name}-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    facts = folder.lstat()
    if facts.st_uid != os.getuid() or facts.st_mode & 0o777 != 0o700 or not stat.S_ISDIR(facts.st_mode):
        raise PermissionError(f"{folder} is not a private folder of this user (mode 0700)")
    return folder


@contextmanager
def scratch_folder(kind: str) -> Iterator[Path]:
    """Create a folder for temporary files and remove it at the end. The process holds a lock on it; if the process is
    killed, the system releases the lock, and `remove_leftovers` removes the folder.
    """
    shared = private_folder(_SCRATCH)
    with (shared / "lock").open("w") as making:
        fcntl.flock(making, fcntl.LOCK_SH)
        folder = Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=shared))
        held = os.open(folder, os.O_RDONLY)
        fcntl.flock(held, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def shared_folder(name: str) -> Path:
    """Return a folder of this name that the processes of a user on a machine fill and read together.

    This process holds it until it ends. When no process does, `remove_leftovers` removes it.
    """
    shared = private_folder(_SCRATCH)
    with (shared / "lock").open("w") as making:
        fcntl.flock(making, fcntl.LOCK_SH)
        folder = shared / name
        folder.mkdir(exist_ok=True)
        if folder not in _HELD:
            _HELD[folder] = os.open(folder, os.O_RDONLY)
            fcntl.flock(_HELD[folder], fcntl.LOCK_SH)
    return folder


_HELD: dict[Path, int] = {}
"""The descriptors that keep the shared folders of this process."""


def remove_leftovers() -> None:
    """Remove the scratch folders and logs that no running process has locked."""
    shared = private_folder(_SCRATCH)
    with (shared / "lock").open("w") as making:
        fcntl.flock(making, fcntl.LOCK_EX)
        for folder in shared.iterdir():
            if folder.is_dir() and _has_no_owner(folder):
                shutil.rmtree(folder, ignore_errors=True)
    for log in Path(tempfile.gettempdir()).glob(_LOGS):
        if log.lstat().st_uid == os.getuid() and _has_no_owner(log) and not _ends_with(log, KEPT):
            log.unlink(missing_ok=True)


def _ends_with(file: Path, end: bytes) -> bool:
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - len(end)))
        return stream.read() == end


def _has_no_owner(path: Path) -> bool:
    try:
        held = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(held)
    return True
