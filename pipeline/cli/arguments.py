"""Arguments that many commands have."""

import argparse
from pathlib import Path


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add `-c`: the path of the config."""
    parser.add_argument(
        "-c", "--config", type=Path, default=Path("wit.toml"), help="the config file (default: wit.toml)"
    )


def add_reviews(parser: argparse.ArgumentParser) -> None:
    """Add `--reviews`: files that the report's page saved."""
    parser.add_argument(
        "--reviews",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="reviews that the page saved, to report the precision",
    )
