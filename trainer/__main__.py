"""`python -m trainer -c wit.toml`, also under torchrun: train on a workspace's shards, or resume from a checkpoint."""

import argparse
import logging
import os
import sys
from pathlib import Path

from trainer.config import load_settings
from trainer.errors import TrainerError
from trainer.train import train


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code: 0 done or stopped by SIGTERM, 1 failed, 2 wrong usage."""
    parser = argparse.ArgumentParser(
        prog="wit train",
        description="Train a CLIP model on the shards of a workspace; rerun to resume from the last checkpoint.",
        epilog="On several GPUs: torchrun --nproc-per-node=8 -m trainer -c wit.toml",
    )
    parser.add_argument("-c", "--config", type=Path, required=True, help="the TOML file with a [train] table")
    parser.add_argument("--profile", action="store_true", help="also write a trace of five steps to <output>/profile")
    options = parser.parse_args(arguments)
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    try:
        model = train(load_settings(options.config), profile=options.profile)
    except TrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    if os.environ.get("RANK", "0") == "0":
        print(f"model: {model}" if model else "stopped; run the same command again to resume")
    return 0


if __name__ == "__main__":
    sys.exit(main())
