"""Errors that stop a training or evaluation run, each with one line that names the value and the way out.

TrainerError          exit 1: the run cannot go on (no shards, a broken checkpoint, a loss that is not finite)
  TrainerConfigError  exit 2: a key of `[train]` or `[evaluate]`, or a flag, is wrong
"""


class TrainerError(Exception):
    """The run cannot go on."""

    exit_code = 1


class TrainerConfigError(TrainerError):
    """The request itself is wrong; nothing was started."""

    exit_code = 2
