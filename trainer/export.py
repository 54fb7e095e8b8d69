"""Turn a checkpoint into a folder that open_clip opens: `create_model_and_transforms("local-dir:FOLDER")`."""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from safetensors import SafetensorError
from safetensors.torch import save_file

from trainer import checkpoint
from trainer.errors import TrainerError, one_line
from trainer.model import open_clip_config
from trainer.sharded import read_checkpoint

PREPROCESSING = {
    "mean": list(OPENAI_DATASET_MEAN),
    "std": list(OPENAI_DATASET_STD),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


def export_model(source: Path, folder: Path, *, averaged: bool = False) -> Path:
    """Write `open_clip_config.json` and `open_clip_model.safetensors` to `folder`, each atomically.

    `averaged`: with the moving average of the weights instead of the last ones.

    Raises:
        TrainerError: `source` is not a checkpoint of this trainer or not finite, or the folder cannot be written.
    """
    content = read_checkpoint(source)
    if averaged:
        if "ema" not in content:
            raise TrainerError(f"{source} has no average of the weights: it was trained without train.ema")
        content["model"] = content["model"] | content["ema"]
    identity = content["identity"]
    config = {
        "model_cfg": open_clip_config(identity["train.architecture"], identity["train.objective"]),
        "preprocess_cfg": PREPROCESSING,
    }
    weights = {name: tensor.contiguous() for name, tensor in content["model"].items() if torch.is_tensor(tensor)}
    if not checkpoint.is_finite(weights.values()):
        raise TrainerError(f"the weights of {source} are not finite: export an earlier checkpoint")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as partial:
            save_file(weights, Path(partial) / "open_clip_model.safetensors", metadata={"format": "pt"})
            (Path(partial) / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
            for name in ("open_clip_model.safetensors", "open_clip_config.json"):
                _let_others_read(Path(partial) / name)
                os.replace(Path(partial) / name, folder / name)
    except (OSError, SafetensorError) as error:
        raise TrainerError(
            f"cannot write the model to {folder}: {one_line(error)}; its checkpoint {source} is complete: free space "
            "or choose another folder, and export it again"
        ) from error
    return folder


def _let_others_read(path: Path) -> None:
    """Give a file the mode of any new one: safetensors keeps its files to their owner."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def main(arguments: list[str] | None = None) -> int:
    """Run `python -m trainer.export`."""
    parser = argparse.ArgumentParser(prog="python -m trainer.export", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="a step-* file or folder of a run")
    parser.add_argument("--averaged", action="store_true", help="export the average of the weights (train.ema)")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    options = parser.parse_args(arguments)
    try:
        print(export_model(options.checkpoint, options.out, averaged=options.averaged))
    except TrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
