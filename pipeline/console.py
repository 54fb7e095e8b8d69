"""The entry point of `wit`. Importing Beam logs a warning about optional Google packages, which is nothing to a user."""

import logging
import sys


def main() -> int:
    """Import the command line quietly, and run it."""
    root = logging.getLogger()
    root.addFilter(_is_not_about_apitools)
    from pipeline.cli import main as run

    root.removeFilter(_is_not_about_apitools)
    return run()


def _is_not_about_apitools(record: logging.LogRecord) -> bool:
    return "apitools" not in record.getMessage()


if __name__ == "__main__":
    sys.exit(main())
