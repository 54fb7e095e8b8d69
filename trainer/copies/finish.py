"""Make the model file from the last checkpoint: export it, calibrate it on held-out photos, and record its recipe."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from dedup.copies.detector import Detector
from trainer.copies.calibrate import calibrate
from trainer.copies.export import export
from trainer.copies.network import CopyNetwork


def finish(checkpoint: Path, held_out: Sequence[np.ndarray], folder: Path, *, command: str) -> Path:
    """Write `copy.onnx` and `card.md` to `folder`; return the model's path. Equal checkpoints give equal models."""
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    network = CopyNetwork()
    network.load_state_dict(content["network"])
    recipe = content["recipe"]
    facts = {
        "wit.side": json.dumps(recipe["side"]),
        "wit.command": command,
        "wit.pairs": json.dumps(content["pairs"]),
        "wit.photos_sha256": content["photos"],
        "wit.seed": json.dumps(recipe["seed"]),
    }
    path = folder / "copy.onnx"
    export(network, recipe["side"], facts | {"wit.propose": "0.0", "wit.sure": "1.0"}, path)
    calibration = calibrate(Detector.load(path), held_out)
    thresholds = {f"wit.{name}": json.dumps(getattr(calibration, name)) for name in ("loose", "propose", "sure")}
    export(network, recipe["side"], facts | thresholds, path)
    (folder / "card.md").write_text(calibration.card())
    return path
