"""Errors that stop a training or evaluation run, each with one line that names the value and the way out.

TrainerError          exit 1: the run cannot continue (no shards, a corrupt checkpoint, a loss that is not finite)
  PeerError           exit 1: another process of the run failed; that process prints the reason
  TrainerConfigError  exit 2: a key of `[train]` or `[evaluate]`, or a flag, is wrong
"""

from queries.redact import redact


class TrainerError(Exception):
    """The run cannot continue; the message is without secrets."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))


class PeerError(TrainerError):
    """Another process of the run has failed or ended."""

    def __init__(self) -> None:
        super().__init__("another process of this run failed or ended; see its error message")


class TrainerConfigError(TrainerError):
    """The config or an argument is wrong; nothing was started."""

    exit_code = 2


def one_line(error: BaseException) -> str:
    """Return why an operation failed, in one line: the system's reason if that is behind the error, or its cause's."""
    last, chained = error, [error]
    while (before := last.__cause__ or last.__context__) is not None:
        chained.append(last := before)
    for cause in chained:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).partition("\n")[0] or type(error).__name__
