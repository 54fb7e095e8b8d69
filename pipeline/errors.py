"""Errors that a user can cause and fix. The CLI prints their message as one line and exits, also for errors of the
system (`OSError`). Any other exception is a bug and keeps its traceback.

UserError            exit 1: an input or an outcome that stops the work (missing file, account that does not close)
  DamagedFileError   exit 1: a file of the workspace has changed since it was written
  ConfigError        exit 2: a config, flag or Beam option that is wrong

queries/, dedup/ and trainer/ have one such error each (`InputError`, `DedupError`, `TrainerError`) in their errors.py.
"""

import errno

from queries.redact import redact


class UserError(Exception):
    """The command cannot continue; the message names the value and the fix, without secrets."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))


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


_MAX_CHARS = 500


def one_line(error: Exception | str) -> str:
    """Return a message, or that of an exception, as one non-empty line of at most 500 characters, without secrets."""
    line = " ".join(redact(str(error)).split()) or (type(error).__name__ if isinstance(error, Exception) else "")
    return line if len(line) <= _MAX_CHARS else line[: _MAX_CHARS - 1] + "…"


def system_error(error: OSError) -> str:
    """Return the message of a system error in one line; for a full disk, also what to do."""
    line = one_line(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{line}: free space and run again; finished work is kept"
    return line
