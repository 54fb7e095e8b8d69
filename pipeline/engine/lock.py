"""One build at a time in a workspace."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from pipeline.engine.workspace import Workspace
from pipeline.errors import ConfigError, UserError, one_line
from pipeline.private_folder import remove_leftovers

_LOCK = ".wit/lock"


@contextmanager
def build_lock(workspace: Workspace) -> Iterator[None]:
    """Hold the lock of a workspace while a build runs; the system releases it even if the build is killed.

    Object stores have no locks: there, the file is only written, to check that the store is writable.

    Raises:
        ConfigError: the workspace is not writable.
        UserError: another build is running in it.
    """
    remove_leftovers()
    try:
        file = _open(workspace)
    except Exception as error:  # any error of a store
        reason = (isinstance(error, OSError) and error.strerror) or one_line(error)
        raise ConfigError(
            f"cannot write to workspace {workspace.root!r} ({reason}): choose a folder you have write access to"
        ) from None
    if file is None:
        yield
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"{workspace.root}: another build is running in this workspace; wait until it ends"
            ) from None
        yield


def _open(workspace: Workspace) -> TextIO | None:
    if not workspace.is_local:
        workspace.fs.pipe_file(workspace.path(_LOCK), b"")
        return None
    lock = Path(workspace.path(_LOCK))
    lock.parent.mkdir(parents=True, exist_ok=True)
    return lock.open("w")
