"""The entry point of `wit`. Importing Beam warns of optional Google packages, which is nothing to a user."""

import logging
import sys

from pipeline.cli import main as run


def main() -> int:
    """Run the command line without that warning."""
    logging.getLogger().addFilter(_is_not_about_apitools)
    return run()


def _is_not_about_apitools(record: logging.LogRecord) -> bool:
    return "apitools" not in record.getMessage()


if __name__ == "__main__":
    sys.exit(main())
