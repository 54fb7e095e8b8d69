"""`wit demo`: run the whole pipeline offline, on a simulated web served from this machine."""

import argparse
from pathlib import Path
from typing import TypeAlias

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_PICTURES = 4_500
_TRAIN_PICTURES = 15_000


def add_parser(subparsers: Subparsers) -> None:
    """Add `wit demo`."""
    demo = subparsers.add_parser(
        "demo",
        help="run the whole pipeline offline, on a simulated web",
        description="Generate a small web with planted faults, copies and evaluation images, serve it on this machine, "
        "build a dataset from it, and compare the result with what was planted. Exit 1 if they differ.",
        allow_abbrev=False,
    )
    demo.add_argument(
        "--dir", type=Path, default=Path("demo"), help="folder to write; a demo in it is replaced (default: demo)"
    )
    demo.add_argument("--seed", type=int, default=7, help="seed of the simulated web (default: 7)")
    pictures = f"number of ordinary images (default: {_PICTURES}; with --train {_TRAIN_PICTURES})"
    demo.add_argument("--pictures", type=_pictures, help=pictures)
    demo.add_argument("--train", action="store_true", help="also train a tiny model on the result (some minutes more)")
    demo.add_argument("--quiet", action="store_true", help="do not show progress")
    demo.set_defaults(func=_demo)


def _pictures(text: str) -> int:
    pictures = int(text)
    if not 150 <= pictures <= 100_000:
        raise argparse.ArgumentTypeError(f"{text}: must be 150 to 100000")
    return pictures


def _demo(args: argparse.Namespace) -> int:
    from pipeline.demo.run import run_demo  # slow to import: Beam, a web server
    from pipeline.demo.train import train_demo

    pictures = args.pictures or (_TRAIN_PICTURES if args.train else _PICTURES)
    code = run_demo(args.dir, seed=args.seed, pictures=pictures, quiet=args.quiet)
    if args.train and code == 0:
        train_demo(args.dir)
    return code
