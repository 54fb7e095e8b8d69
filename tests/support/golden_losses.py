"""The loss curve of two tiny models on fixed shards: made again by the tests and compared with
`tests/trainer/golden_losses.json`.

A change that should not change numbers shows the same curve; `make golden` rewrites it where a change is intended.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from support.processes import TINY, tiny_settings
from support.scene_shards import write_scene_shards

from trainer.train import train

PATH = Path(__file__).parent.parent / "trainer" / "golden_losses.json"
RESNET = {
    **TINY["architecture"],
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32},
}
RUNS: dict[str, dict[str, Any]] = {
    "ViT": {},
    "ViT, SigLIP in parts": {"objective": "siglip", "micro_batch": 8},
    "ResNet, any caption": {"model": "tiny-resnet", "architecture": RESNET, "captions": "any"},
}


def losses(folder: Path, **keys: Any) -> list[float]:
    """Train 20 steps on 200 generated scenes with one thread; return the loss of each step."""
    torch.set_num_threads(1)
    write_scene_shards(folder / "shards", (60, 13, 47, 50, 30))
    train(tiny_settings(folder, folder / "train", log_steps=1, precision="fp32", learning_rate=1e-3, **keys))
    lines = [json.loads(line) for line in (folder / "train" / "metrics.jsonl").read_text().splitlines()]
    return [line["train/loss"] for line in lines]


def make() -> dict[str, list[float]]:
    """Return the curve of each run."""
    curves = {}
    for name, keys in RUNS.items():
        with tempfile.TemporaryDirectory() as folder:
            curves[name] = losses(Path(folder), **keys)
    return curves


if __name__ == "__main__":
    PATH.write_text(json.dumps(make(), indent=1) + "\n")
