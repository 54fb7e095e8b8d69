"""Files of a workspace as files of this machine, to be mapped into memory: its processes share the pages."""

import fcntl
import shutil
from collections.abc import Mapping
from pathlib import Path

from pipeline.engine.units import digest
from pipeline.engine.workspace import CheckedFile, Workspace
from pipeline.private_folder import remove_leftovers, shared_folder

_COPY_BYTES = 1 << 20


def local_folder(workspace: Workspace, sha256: Mapping[str, str]) -> Path:
    """Return a local folder that has these files (name -> SHA-256) of a workspace, under their names.

    It is the workspace itself, if that is local. Else the first process of a machine copies the files into a folder in
    the temporary folder, which stays as long as any process uses it. Every process reads the files once to check them.

    Raises:
        DamagedFileError: a file is not what was written.
    """
    if workspace.is_local:
        folder = Path(workspace.path(""))
    else:
        folder = _copied(workspace, sha256)
    for name, expected in sha256.items():
        with (folder / name).open("rb") as raw:
            CheckedFile(raw, name, expected).check()
    return folder


def _copied(workspace: Workspace, sha256: Mapping[str, str]) -> Path:
    remove_leftovers()  # the files of earlier builds
    folder = shared_folder(f"files-{digest(sorted(sha256.items()))}")
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the system releases it, even if its holder is killed
        for name, expected in sha256.items():
            file = folder / name
            if file.exists():
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            unfinished = file.with_name(f"{file.name}.tmp")
            with workspace.open_checked(name, expected) as source, unfinished.open("wb") as out:
                shutil.copyfileobj(source, out, _COPY_BYTES)
                source.check()
            unfinished.replace(file)
    return folder
