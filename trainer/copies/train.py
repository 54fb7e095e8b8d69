"""Train the descriptor as SSCD does (Pizzi et al., CVPR 2022): InfoNCE over two views of each photo, and entropy.

The entropy term pushes every vector away from its nearest stranger, so that one threshold fits all images. Every
batch is drawn from (seed, step): worker processes, restarts and devices see the same edits.
"""

import json
import os
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as functional
from torch.utils.data import DataLoader, Dataset

from trainer.copies.edits import Editor
from trainer.copies.network import CopyNetwork
from trainer.copies.photos import Photos, draw_rows
from trainer.errors import TrainerError

TEMPERATURE = 0.05  # SSCD section 4.2
ENTROPY_WEIGHT = 5.0
WARMUP_SHARE = 0.02
DECAY_SHARE = 0.3
_RAMP_SHARE = 0.1  # of the pairs, in which the entropy term grows to its full weight
_LOG_STEPS = 20


@dataclass(frozen=True)
class Recipe:
    """The settings that, with the photos, determine the weights."""

    pairs: int
    batch_pairs: int = 192
    side: int = 96
    learning_rate: float = 2.5e-3
    weight_decay: float = 0.01
    seed: int = 0
    large_share: float = 0.2  # of the pairs, at the end, are trained at the full size; the others at two thirds of it

    @property
    def steps(self) -> int:
        return self.pairs // self.batch_pairs

    def side_at(self, step: int) -> int:
        """Return the side of the squares of a step, in pixels."""
        small = max(32, round(self.side * 2 / 3 / 16) * 16)
        return self.side if step >= self.steps * (1 - self.large_share) else small

    def learning_rate_at(self, step: int) -> float:
        """Warm up, stay constant, and decay to 0."""
        done = step / self.steps
        return self.learning_rate * max(
            0.001, min(1.0, (step + 1) / self.steps / WARMUP_SHARE, (1 - done) / DECAY_SHARE)
        )


class Batches(Dataset[torch.Tensor]):
    """Batch `step`: the weak views of its photos, then their strong views in the same order, uint8 NHWC."""

    def __init__(self, photos: Photos, recipe: Recipe, first_step: int) -> None:
        self.photos, self.recipe, self.first_step = photos, recipe, first_step
        self._editor = Editor(recipe.side)

    def __len__(self) -> int:
        return self.recipe.steps - self.first_step

    def __getitem__(self, place: int) -> torch.Tensor:
        cv2.setNumThreads(1)
        step = self.first_step + place
        chance = random.Random(f"{self.recipe.seed}:{step}")
        editor = Editor(self.recipe.side_at(step), self._editor.overlays)
        photos = [self.photos[row] for row in draw_rows(self.photos, self.recipe.batch_pairs, chance)]
        chance.shuffle(photos)
        weak = [editor.weak(photo, chance) for photo in photos]
        strong = [editor.strong(photo, photos[place - 1], chance) for place, photo in enumerate(photos)]
        return torch.from_numpy(np.stack(weak + strong))


def train(
    photos: Photos, recipe: Recipe, folder: Path, *, device: str, workers: int, checkpoint_minutes: float
) -> Path:
    """Train, or resume from the last checkpoint in `folder`; return the last checkpoint.

    Raises:
        TrainerError: the loss is not finite, or the checkpoint was made with other photos.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    network = CopyNetwork().to(device)
    network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    run = _Run(network, optimizer, photos, recipe, folder)
    step, run.spent_s = run.restore()
    saved = time.monotonic()
    for batch in _batches(photos, recipe, step, workers):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(step)
        ramp = min(1.0, step / recipe.steps / _RAMP_SHARE)
        scores = _learn(network, optimizer, batch.to(device, non_blocking=True), ramp)
        step += 1
        if step % _LOG_STEPS == 0 or step == recipe.steps:
            run.log(step, {name: round(float(value), 4) for name, value in scores.items()})
        if time.monotonic() - saved > 60 * checkpoint_minutes or step == recipe.steps:
            run.save(step)
            saved = time.monotonic()
    return newest_checkpoint(folder)


@dataclass
class _Run:
    """The folder of a training: its log and checkpoints."""

    network: CopyNetwork
    optimizer: torch.optim.Optimizer
    photos: Photos
    recipe: Recipe
    folder: Path
    began: float = field(default_factory=time.monotonic)
    spent_s: float = 0.0  # by earlier processes

    @property
    def wall_s(self) -> float:
        return self.spent_s + time.monotonic() - self.began

    def log(self, step: int, scores: dict[str, float]) -> None:
        if not np.isfinite(scores["infonce"]):
            raise TrainerError(f"the loss at step {step} is not finite: lower --learning-rate")
        times = {"wall_s": round(self.wall_s), "cpu_s": round(time.process_time())}
        line = {"step": step, "pairs": step * self.recipe.batch_pairs, **times, **scores}
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")

    def save(self, step: int) -> None:
        pairs = step * self.recipe.batch_pairs
        path = self.folder / f"pairs-{pairs:010d}.pt"
        content = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": step,
            "pairs": pairs,
            "wall_s": self.wall_s,
            "recipe": asdict(self.recipe),
            "photos": self.photos.sha256,
        }
        torch.save(content, path.with_suffix(".partial"))
        os.replace(path.with_suffix(".partial"), path)

    def restore(self) -> tuple[int, float]:
        """Return the step to resume from, and the seconds spent before."""
        if not any(self.folder.glob("pairs-*.pt")):
            return 0, 0.0
        path = newest_checkpoint(self.folder)
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["photos"] != self.photos.sha256:
            raise TrainerError(f"{path} was trained on other photos: choose another --out, or delete the folder")
        self.network.load_state_dict(content["network"])
        self.optimizer.load_state_dict(content["optimizer"])
        return content["step"], content["wall_s"]


def _batches(photos: Photos, recipe: Recipe, step: int, workers: int) -> Iterator[torch.Tensor]:
    return iter(DataLoader(Batches(photos, recipe, step), batch_size=None, num_workers=workers, shuffle=False))


def _learn(
    network: CopyNetwork, optimizer: torch.optim.Optimizer, batch: torch.Tensor, ramp: float
) -> dict[str, torch.Tensor]:
    with torch.autocast(batch.device.type, torch.bfloat16):
        vectors = network(batch)
    infonce, entropy, found = copy_loss(vectors)
    optimizer.zero_grad(set_to_none=True)
    (infonce + ramp * ENTROPY_WEIGHT * entropy).backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
    optimizer.step()
    return {"infonce": infonce.detach(), "entropy": entropy.detach(), "top1": found}


def copy_loss(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return InfoNCE, the entropy term and the fraction of views whose nearest other view is of the same photo.

    `vectors` are unit, `(2 n, dimensions)`: row i and row i + n are of one photo. The entropy term is minus the mean
    log distance to the nearest stranger (Kozachenko-Leonenko; SSCD equation 4).
    """
    vectors = vectors.float()
    count = len(vectors)
    partner = (torch.arange(count, device=vectors.device) + count // 2) % count
    cosines = (vectors @ vectors.T).masked_fill(torch.eye(count, dtype=torch.bool, device=vectors.device), -1.0)
    infonce = functional.cross_entropy(cosines / TEMPERATURE, partner)
    strangers = cosines.scatter(1, partner[:, None], -1.0)
    nearest = (2 - 2 * strangers.max(1).values).clamp(min=1e-6).sqrt()
    return infonce, -nearest.log().mean(), (cosines.argmax(1) == partner).float().mean().detach()


def newest_checkpoint(folder: Path) -> Path:
    """Return the checkpoint that has seen most pairs."""
    found = sorted(folder.glob("pairs-*.pt"))
    if not found:
        raise TrainerError(f"{folder} holds no checkpoint")
    return found[-1]
