"""Extract a one-line cause from Beam's exceptions.

In the same process a DoFn's exception arrives unchanged, with the name of the step added to its message. From any other
process only text arrives: nested Python tracebacks, on Spark wrapped in Java's. The exception that the DoFn raised is
the first one after the last "Traceback" line.
"""

import errno
import re
import tempfile
from pathlib import Path

from dedup.errors import DedupError
from pipeline.errors import (
    BusyError,
    ConfigError,
    DamagedFileError,
    NetworkError,
    ShortageError,
    UserError,
    is_rate_limit,
    one_line,
)
from queries.errors import InputError

_TRACEBACK = "Traceback (most recent call last):"
_STEP = re.compile(r" \[while running '(?P<step>.*?)'\]")
_JOB_PREFIX = re.compile(r"^Pipeline \S+ failed in state \w+: ")
_USER_ERRORS = (UserError, InputError, DedupError)
_KINDS = (UserError, ConfigError, DamagedFileError, ShortageError, NetworkError, BusyError)
_RAISED_AS = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in _KINDS} | {
    f"{kind.__module__}.{kind.__qualname__}": UserError for kind in (InputError, DedupError)
}


def user_error(error: Exception, log: Path) -> UserError:
    """Return the `UserError` of a failed run: the DoFn's, or one that names the cause, step and log file."""
    name, message = _python_cause(str(error)) or (type(error).__qualname__, str(error))
    if isinstance(error, _USER_ERRORS):
        kind = type(error) if isinstance(error, UserError) else UserError
        return kind(without_step(str(error)))
    if name in _RAISED_AS:
        return _RAISED_AS[name](without_step(message))
    step = _STEP.search(message)
    where = f"in step {step['step']!r}; " if step else ""
    if f"[Errno {errno.ENOSPC}]" in message:
        disks = f"the disk of the workspace or of {tempfile.gettempdir()}"
        return ShortageError(f"no space left on {disks}; free space and run again to resume ({where[:-2]})")
    if name == "MemoryError":
        return ShortageError(f"{name}: {one_line(without_step(message))} ({where}the log is in {log})")
    if is_rate_limit(message):
        return NetworkError(f"{name}: {one_line(without_step(message))}; run again later to resume ({where[:-2]})")
    if name == "RuntimeError":  # Beam wraps errors without a Python traceback, and unusual exception classes, in it
        return UserError(f"{_java_cause(without_step(message))} ({where}the log is in {log})")
    return UserError(f"{name}: {one_line(without_step(message))} ({where}the log is in {log})")


def is_interruption(error: Exception) -> bool:
    """Return whether Ctrl-C interrupted a DoFn: Beam wraps it, as it cannot copy an exception without arguments."""
    return without_step(str(error)).strip() == KeyboardInterrupt.__name__


def without_step(message: str) -> str:
    """Drop the "[while running ...]" that Beam adds to the message of an exception."""
    return _STEP.sub("", message)


def _python_cause(text: str) -> tuple[str, str] | None:
    """Return (class, message) of the last exception in the last traceback of `text`, None if it holds none."""
    _, found, last = text.rpartition(_TRACEBACK)
    if not found:
        return None
    for line in last.splitlines():
        if line.strip() and not line[0].isspace():  # frames and their carets are indented
            name, _, message = line.partition(": ")
            return name, message
    return None


def _java_cause(text: str) -> str:
    """Return the innermost "Caused by" of a Java stack trace, else the first line."""
    lines = [line.strip() for line in _JOB_PREFIX.sub("", text).splitlines() if line.strip()]
    causes = [line.removeprefix("Caused by: ") for line in lines if line.startswith("Caused by: ")]
    return one_line((causes or lines or ["unknown error"])[-1 if causes else 0])
