"""One build at a time in a workspace."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from pipeline.engine.workspace import Workspace
from pipeline.errors import ConfigError, UserError, one_line

_LOCK = ".wit/lock"


@contextmanager
def build_lock(workspace: Workspace) -> Iterator[None]:
    """Hold the lock of a workspace while a build runs; the system lets go of it however the build ends.

    Stores have no locks: there, the file is only written, to see that it can be.

    Raises:
        ConfigError: the workspace cannot be written.
        UserError: another build is running in it.
    """
    try:
        file = _open(workspace)
    except Exception as error:  # whatever a store raises that cannot be written
        said = (isinstance(error, OSError) and error.strerror) or one_line(error)
        raise ConfigError(
            f"workspace {workspace.root!r} cannot be written ({said}); name a folder where you may"
        ) from None
    if file is None:
        yield
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{workspace.root}: another build is running in this workspace") from None
        yield


def _open(workspace: Workspace) -> TextIO | None:
    if not workspace.is_local:
        workspace.fs.pipe_file(workspace.path(_LOCK), b"")
        return None
    lock = Path(workspace.path(_LOCK))
    lock.parent.mkdir(parents=True, exist_ok=True)
    return lock.open("w")
