"""The error a user's input can cause here."""


class DedupError(ValueError):
    """An evaluation set is missing or unusable; the message is one line: which, and the way out."""

    exit_code = 1
