"""Wait before a disk is full: a unit does not start while less than `run.min_free_bytes` are free."""

import logging
import shutil
import tempfile
import time

from pipeline.engine.workspace import Workspace

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 5.0
_WARN_EVERY_S = 600.0


def short_of_space(workspace: Workspace, min_free_bytes: int) -> str | None:
    """Return which disk has too little space, with the way out; None where all have enough.

    Looks at the temporary folder, and at the workspace if it is local.
    """
    for folder in (tempfile.gettempdir(), *([workspace.path("")] if workspace.is_local else [])):
        try:
            free = shutil.disk_usage(folder).free
        except OSError:  # not there yet
            continue
        if free < min_free_bytes:
            return (
                f"{free / 1e9:.1f} GB are free on the disk of {folder.rstrip('/')}, below run.min_free_bytes "
                f"({min_free_bytes / 1e9:.1f} GB): free space, and the build goes on"
            )
    return None


def wait_for_space(workspace: Workspace, min_free_bytes: int) -> None:
    """Return when all disks have enough space; a warning says what is waited for."""
    warned_s = -_WARN_EVERY_S
    while (problem := short_of_space(workspace, min_free_bytes)) is not None:
        if time.monotonic() - warned_s >= _WARN_EVERY_S:
            warned_s = time.monotonic()
            logger.warning("paused: %s", problem)
        time.sleep(_LOOK_EVERY_S)
