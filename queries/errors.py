"""The error a user's input can cause here."""


class InputError(ValueError):
    """A file or value of the user is missing or unusable; the message is one line that names it and the fix."""

    exit_code = 1
