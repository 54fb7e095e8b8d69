"""One build at a time in a workspace."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from pipeline.engine.store_lock import hold, take
from pipeline.engine.workspace import Workspace
from pipeline.errors import BusyError, ConfigError, UserError, one_line
from pipeline.private_folder import remove_leftovers

_LOCK = ".wit/lock"


@contextmanager
def build_lock(workspace: Workspace) -> Iterator[None]:
    """Hold the lock of a workspace while a build runs; on disk the system releases it even if the build is killed.

    Raises:
        ConfigError: the workspace is not writable.
        BusyError: another build is running in it.
    """
    remove_leftovers()
    try:
        holding = _lock_file(workspace) if workspace.is_local else hold(workspace, _LOCK, take(workspace, _LOCK))
    except UserError:
        raise
    except Exception as error:  # any error of a store
        reason = (isinstance(error, OSError) and error.strerror) or one_line(error)
        raise ConfigError(
            f"cannot write to workspace {workspace.root!r} ({reason}): choose a folder you have write access to"
        ) from None
    with holding:
        yield


def _lock_file(workspace: Workspace) -> TextIO:
    lock = Path(workspace.path(_LOCK))
    lock.parent.mkdir(parents=True, exist_ok=True)
    file = lock.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise BusyError(f"{workspace.root}: another build is running in this workspace; wait until it ends") from None
    return file
