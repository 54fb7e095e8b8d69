"""The error a user's input can cause here."""

from queries.redact import redact


class DedupError(ValueError):
    """An evaluation set is missing or unusable; the message is one line that names it and the fix, without secrets."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))
