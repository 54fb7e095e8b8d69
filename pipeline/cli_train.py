"""`wit train` and `wit evaluate`: thin launchers of the trainer, which lives in a package of its own with its own
extra."""

import argparse
import subprocess
import sys

from pipeline.errors import UserError


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add both commands; what follows them is the trainer's to understand."""
    for name, module, help_text in (
        ("train", "trainer", "train on the shards, one process (see also `torchrun -m trainer`)"),
        ("evaluate", "trainer.evaluation", "zero-shot, retrieval and linear-probe evaluation of a checkpoint"),
    ):
        parser = commands.add_parser(name, help=help_text, add_help=False, prefix_chars="\0")
        parser.add_argument("arguments", nargs="*")
        parser.set_defaults(func=_launch, module=module)


def _launch(args: argparse.Namespace) -> int:
    found = subprocess.run([sys.executable, "-c", "import torch, open_clip"], capture_output=True, check=False)
    if found.returncode:
        raise UserError("training needs PyTorch and open_clip: pip install 'wit-pipeline[train]'")
    return subprocess.run([sys.executable, "-m", args.module, *args.arguments], check=False).returncode
