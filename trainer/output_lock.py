"""One run at a time in an output folder."""

import errno
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.errors import TrainerError, one_line


@contextmanager
def output_lock(folder: Path) -> Iterator[None]:
    """Make an output folder and hold it; the system lets go of it when this process ends, however it ends.

    A file system without locks is used without.

    Raises:
        TrainerError: another run holds it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise TrainerError(
            f"the output folder {folder} cannot be written: {one_line(error)}; set train.output to another"
        ) from error
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # flock's would live on in loader processes after a kill
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise TrainerError(
                    f"another run is training in {folder}: wait for its end, or set train.output to another folder"
                ) from error
        yield
