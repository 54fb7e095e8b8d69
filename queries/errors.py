"""The error a user's input can cause here."""

from queries.redact import redact


class InputError(ValueError):
    """A file or value of the user is missing or unusable; one line without secrets names it and the fix."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))
