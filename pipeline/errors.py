"""Errors that a user can cause and fix. The CLI prints their message as one line and exits, also for errors of the
system (`OSError`). Any other exception is a bug and keeps its traceback.

UserError            exit 1: an input or an outcome that stops the work (missing file, account that does not close)
  DamagedFileError   exit 1: a file of the workspace has changed since it was written
  ConfigError        exit 2: a config, flag or Beam option that is wrong
  ShortageError      exit 3: no disk space, memory or open files
  NetworkError       exit 4: a network or store that does not respond, or limits the rate
  BusyError          exit 5: another build is running

queries/, dedup/ and trainer/ have one such error each (`InputError`, `DedupError`, `TrainerError`) in their errors.py.
"""

import errno
import re

from queries.redact import redact


class UserError(Exception):
    """The command cannot continue; the message names the value and the fix, without secrets."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))


class ShortageError(UserError):
    """This machine lacks disk space, memory or open files; nothing is lost, and running again resumes."""

    exit_code = 3


class NetworkError(UserError):
    """A network, a store or a service does not respond, or limits the rate; running again later resumes."""

    exit_code = 4


class BusyError(UserError):
    """Another build is running in the workspace."""

    exit_code = 5


class DamagedFileError(UserError):
    """A file of the workspace has changed since it was written; `file` is its name. The build writes it again."""

    @classmethod
    def of(cls, name: str, reason: str) -> "DamagedFileError":
        return cls(f"{name} is damaged: {reason}")

    @property
    def file(self) -> str:
        return str(self).partition(" is damaged: ")[0]


class ConfigError(UserError):
    """The config or an argument is wrong; nothing was started."""

    exit_code = 2


NOT_WHOLE = 6
"""Exit code of commands that look at a dataset and find it unfinished or damaged."""

EXIT_CODES = (
    ("0", "done", "not needed"),
    ("1", "failed; the message names the cause", "once the cause is removed; what is done stays done"),
    ("2", "a wrong config, argument or option; nothing was started", "never, until it is changed"),
    ("3", "this machine lacks disk space, memory or open files", "yes, when there is more; it resumes"),
    ("4", "a network or store does not respond, or limits the rate", "yes, later; it resumes"),
    ("5", "another build is running in the workspace", "yes, when that has ended"),
    ("6", "status or verify: the dataset is unfinished or damaged", "no: run `wit build`, then again"),
    ("129, 130, 143", "interrupted by SIGHUP, Ctrl-C or SIGTERM", "yes, at once; it resumes"),
)
"""(exit code of `wit`, what it means, whether running the same command again helps)."""

_MAX_CHARS = 500


def one_line(error: Exception | str) -> str:
    """Return a message, or that of an exception, as one non-empty line of at most 500 characters, without secrets."""
    line = " ".join(redact(str(error)).split()) or (type(error).__name__ if isinstance(error, Exception) else "")
    return line if len(line) <= _MAX_CHARS else line[: _MAX_CHARS - 1] + "…"


_SHORT = frozenset({errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE})
_UNREACHABLE = frozenset(
    {errno.ECONNREFUSED, errno.ECONNRESET, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN}
)
_RATE_LIMITS = re.compile(
    r"\b(SlowDown|TooManyRequests|Throttl\w*|RequestLimitExceeded|rateLimitExceeded|Too Many Requests)\b"
)
"""What stores say that limit the rate: S3, Google Cloud Storage, Azure, HTTP 429."""


def system_error(error: OSError | MemoryError) -> UserError:
    """Return the error of a command that an error of the system ended; of a full disk, also with what to do."""
    line = one_line(error)
    if isinstance(error, MemoryError):
        line = "" if line == "MemoryError" else f": {line}"
        return ShortageError(f"MemoryError{line}; this machine has too little memory, finished work is kept")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ShortageError(f"{line}: free space and run again; finished work is kept")
    if error.errno in _SHORT:
        return ShortageError(line)
    if error.errno in _UNREACHABLE or is_rate_limit(line):
        return NetworkError(line)
    return UserError(line)


def is_rate_limit(text: str) -> bool:
    """Return whether a store or service says in `text` that it limits the rate of requests."""
    return _RATE_LIMITS.search(text) is not None
