"""One run at a time in an output folder."""

import errno
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.errors import TrainerError, one_line


@contextmanager
def output_lock(folder: Path) -> Iterator[None]:
    """Create an output folder and lock it; the system releases the lock when this process ends, even if killed.

    On a file system without locks there is no protection.

    Raises:
        TrainerError: another run has locked it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise TrainerError(
            f"cannot write to the output folder {folder}: {one_line(error)}; set train.output to another folder"
        ) from error
    with file:
        try:
            fcntl.lockf(
                file, fcntl.LOCK_EX | fcntl.LOCK_NB
            )  # loader processes would inherit a flock and keep it after a kill
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise TrainerError(
                    f"another run is training in {folder}: wait until it ends, or set train.output to another folder"
                ) from error
        yield
