"""Arguments that many commands have."""

import argparse
from pathlib import Path


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add `-c`: the path of the config."""
    parser.add_argument(
        "-c", "--config", type=Path, default=Path("wit.toml"), help="the config file (default: wit.toml)"
    )
