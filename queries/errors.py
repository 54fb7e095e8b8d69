"""The error a user's input can cause here."""


class InputError(ValueError):
    """A file or value of the user's is missing or unusable; the message is one line: which, and the way out."""

    exit_code = 1
