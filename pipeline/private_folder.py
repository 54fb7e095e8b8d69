"""A folder in the temporary folder that all processes of one user on one machine share."""

import os
import stat
import tempfile
from pathlib import Path


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
