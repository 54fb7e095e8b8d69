"""`wit dedup train SHARDS`: train a copy detector on photos, without labels; rerun to resume.

The folder --out gets checkpoints, log.jsonl, and in the end copy.onnx and its card.md.
"""

import argparse
import shlex
import sys
from pathlib import Path

import torch

from trainer.copies.finish import finish
from trainer.copies.photos import read_held_out, read_photos
from trainer.copies.train import Recipe, train
from trainer.errors import TrainerError

_DECIDING = ("pairs", "batch", "side", "large_share", "learning_rate", "seed")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code: 0 done, 1 failed, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="wit dedup train", description=__doc__.partition("\n\n")[0])
    parser.add_argument("shards", nargs="+", type=Path, help="tars of images; each top-level folder is a set")
    parser.add_argument("--out", type=Path, required=True, help="the folder for checkpoints, the log and the model")
    parser.add_argument(
        "--pairs",
        type=int,
        default=2_000_000,
        help="number of (photo, edited photo) pairs to train on (default: 2000000)",
    )
    parser.add_argument(
        "--hold-out", nargs="*", default=[], metavar="SET", help="sets to calibrate on (default: every 20th photo)"
    )
    parser.add_argument("--batch", type=int, default=192, help="pairs per step (default: 192)")
    parser.add_argument(
        "--side", type=int, default=96, help="side of the model's input in pixels, a multiple of 16 (default: 96)"
    )
    parser.add_argument(
        "--large-share",
        type=float,
        default=0.2,
        help="fraction of the pairs, at the end, that is trained at the full --side (default: 0.2)",
    )
    parser.add_argument("--learning-rate", type=float, default=2.5e-3, help="the peak (default: 0.0025)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the edits (default: 0)")
    parser.add_argument(
        "--workers", type=int, default=0, help="processes that edit the images (default: 0, the training process)"
    )
    parser.add_argument(
        "--threads", type=int, default=0, help="CPU threads of the training (default: 0, torch's choice)"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    parser.add_argument("--checkpoint-minutes", type=float, default=10.0, help="time between checkpoints (default: 10)")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    recipe = Recipe(
        options.pairs,
        options.batch,
        options.side,
        options.learning_rate,
        seed=options.seed,
        large_share=options.large_share,
    )
    try:
        photos = read_photos(options.shards, options.out, tuple(options.hold_out))
        held_out = read_held_out(options.shards, tuple(options.hold_out))
        print(f"{len(photos)} photos in {len(photos.sets)} sets; {recipe.steps} steps of {recipe.batch_pairs} pairs")
        checkpoint = train(
            photos,
            recipe,
            options.out,
            device=options.device,
            workers=options.workers,
            checkpoint_minutes=options.checkpoint_minutes,
        )
        model = finish(checkpoint, held_out, options.out, command=_command(parser, options))
    except TrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"model: {model}")
    return 0


def _command(parser: argparse.ArgumentParser, options: argparse.Namespace) -> str:
    """Return the command for the model's metadata: only what decides the weights, and no folders of this machine."""
    words = ["wit", "dedup", "train", *(shard.name for shard in options.shards)]
    if options.hold_out:
        words += ["--hold-out", *options.hold_out]
    for name in _DECIDING:
        value = getattr(options, name)
        if value != parser.get_default(name):
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)


if __name__ == "__main__":
    sys.exit(main())
