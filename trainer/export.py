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

PREPROCESSING = {
    "mean": list(OPENAI_DATASET_MEAN),
    "std": list(OPENAI_DATASET_STD),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


def export_model(source: Path, folder: Path) -> Path:
    """Write `open_clip_config.json` and `open_clip_model.safetensors` to `folder`, each atomically.

    Raises:
        TrainerError: `source` is not a checkpoint of this trainer or not finite, or the folder cannot be written.
    """
    content = checkpoint.load(source)
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
                os.replace(Path(partial) / name, folder / name)
    except (OSError, SafetensorError) as error:
        raise TrainerError(
            f"cannot write the model to {folder}: {one_line(error)}; its checkpoint {source} is complete: free space "
            "or choose another folder, and export it again"
        ) from error
    return folder


def main(arguments: list[str] | None = None) -> int:
    """Run `python -m trainer.export`."""
    parser = argparse.ArgumentParser(prog="python -m trainer.export", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="a step-*.pt file of a run")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    options = parser.parse_args(arguments)
    try:
        print(export_model(options.checkpoint, options.out))
    except TrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
