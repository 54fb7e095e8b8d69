"""`wit train`, `evaluate`, `dedup train`, `shards count`: start the trainer, which is installed with its own extra."""

import argparse
import importlib.util
import os
import sys

from pipeline.errors import UserError


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands; the trainer parses their arguments."""
    for name, module, help_text in (
        ("train", "trainer", "train on the shards in one process (see also `torchrun -m trainer`)"),
        ("evaluate", "trainer.evaluation", "evaluate a checkpoint: zero-shot, retrieval, linear probe"),
    ):
        parser = commands.add_parser(name, help=help_text, add_help=False, prefix_chars="\0")
        parser.add_argument("arguments", nargs="*")
        parser.set_defaults(func=_launch, module=module)
    dedup = commands.add_parser("dedup", help="train a detector of edited copies")
    steps = dedup.add_subparsers(required=True, metavar="command")
    train = steps.add_parser("train", help="train on tars of photos, without labels", add_help=False, prefix_chars="\0")
    train.add_argument("arguments", nargs="*")
    train.set_defaults(func=_launch, module="trainer.copies")
    shards = commands.add_parser("shards", help="count the samples of tars, and keep the counts beside them")
    actions = shards.add_subparsers(required=True, metavar="command")
    count = actions.add_parser("count", help="count the samples of tars", add_help=False, prefix_chars="\0")
    count.add_argument("arguments", nargs="*")
    count.set_defaults(func=_launch, module="trainer.counting")


def _launch(args: argparse.Namespace) -> int:
    """Replace this process by the trainer, so that it gets signals (SIGTERM on preemptible nodes) directly."""
    missing = [name for name in ("torch", "open_clip", "onnx") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"training needs {', '.join(missing)}: run pip install '.[train]' in the project's folder")
    os.execv(sys.executable, [sys.executable, "-m", args.module, *args.arguments])
