"""Failures of this machine, which never become the outcome of a URL: the part stops, and the next run resumes."""

import errno
import os
import tempfile

from pipeline.errors import ShortageError, UserError

_RESUME = "and run again: finished work is kept"
_NO_SPACE = f"free space or set TMPDIR to a folder on a larger disk, {_RESUME}"
_NO_FILES = f"raise the limit of open files (ulimit -n) or lower fetch.concurrency, {_RESUME}"
_NO_MEMORY = f"lower fetch.concurrency, --direct_num_workers or fetch.max_pixels, {_RESUME}"
_BAD_DISK = f"check the disk of {{folder}} or set TMPDIR to another, {_RESUME}"
_WAYS_OUT = {
    errno.ENOSPC: _NO_SPACE,
    errno.EDQUOT: _NO_SPACE,
    errno.EIO: _BAD_DISK,
    errno.EROFS: _BAD_DISK,
    errno.EMFILE: _NO_FILES,
    errno.ENFILE: _NO_FILES,
    errno.ENOMEM: _NO_MEMORY,
    errno.ENOBUFS: _NO_MEMORY,
}


def local_fault(error: BaseException) -> UserError | None:
    """Return the error to stop with if `error`, or its cause, is a failure of this machine; else None."""
    seen: BaseException | None = error
    while seen is not None:
        number = errno.ENOMEM if isinstance(seen, MemoryError) else seen.errno if isinstance(seen, OSError) else None
        if number in _WAYS_OUT:
            folder = getattr(seen, "filename", None) or tempfile.gettempdir()
            way_out = _WAYS_OUT[number].format(folder=folder)
            return ShortageError(f"fetch stopped: {os.strerror(number)} on this machine ({folder}): {way_out}")
        seen = getattr(seen, "os_error", None) or seen.__cause__
    return None
