"""What a user types: `main` is the console script `wit`; one file for each group of commands."""

from pipeline.cli.main import main

__all__ = ["main"]
