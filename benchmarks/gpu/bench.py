"""What the phases share: the place of the results, the device, the model, fixed batches and the clock."""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.config import TrainConfig, settings_from
from trainer.distributed import World, pick_device
from trainer.model import build_model
from trainer.optimizer import build_optimizer
from trainer.parallel import wrap
from trainer.precision import autocast, pick_precision
from trainer.step import Stepper


@dataclass(frozen=True)
class Bench:
    """A folder for the results, one with shards, and whether sizes are tiny."""

    out: Path
    data: Path
    small: bool

    @property
    def model(self) -> str:
        return "tiny" if self.small else "ViT-B/32"

    @property
    def batch(self) -> int:
        return 32 if self.small else 1_024

    @cached_property
    def device(self) -> torch.device:
        """The device of the process that runs phases; the one that starts it uses none."""
        return pick_device("auto")

    def say(self, phase: str, **figures: Any) -> None:
        """Print a result and add it to results.jsonl."""
        line = json.dumps({"phase": phase, **figures}, default=str)
        print(line, flush=True)
        with (self.out / "results.jsonl").open("a") as file:
            file.write(line + "\n")

    def config(self, **train: Any) -> TrainConfig:
        """Return the config of a run of the benchmark's model."""
        table = {"model": self.model, "batch": self.batch, "precision": "bf16", **train}
        return settings_from({"workspace": str(self.data / "work"), "train": table}, Path()).train

    def wait(self) -> None:
        """Wait until the device has done everything."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def stepper_of(config: TrainConfig, device: torch.device, world: World | None = None) -> Stepper:
    torch.manual_seed(0)
    world = world or World(0, 1, device)
    model = build_model(config.architecture, flat_logit_scale=config.parallel != "ddp" and world.size > 1)
    wrapped, precision = wrap(model, config, world), pick_precision(config.precision, device)
    model.train()
    optimizer = build_optimizer(
        model, learning_rate=1e-4, weight_decay=config.weight_decay, beta1=config.beta1, beta2=config.beta2,
        eps=config.eps,
    )  # fmt: skip
    scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
    return Stepper(model, wrapped, optimizer, scaler, config, lambda: autocast(device, precision))


def fixed_batch(config: TrainConfig) -> tuple[Tensor, Tensor]:
    size, context = config.architecture["vision_cfg"]["image_size"], config.architecture["text_cfg"]["context_length"]
    images = torch.randint(0, 256, (config.batch, size, size, 3), dtype=torch.uint8)
    tokens = torch.randint(1, 49_000, (config.batch, context))
    tokens[:, -1] = 49_407
    return images, tokens


def pinned(tensor: Tensor) -> Tensor:
    return tensor.pin_memory() if torch.cuda.is_available() else tensor


def timed(bench: Bench, work: Callable[[], Any], repeat: int = 5) -> float:
    """Return the median seconds of some work on the device, after one run."""
    seconds = []
    for _ in range(repeat + 1):
        bench.wait()
        start = time.perf_counter()
        work()
        bench.wait()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def memory_gib(bench: Bench) -> float | None:
    """Return the peak of the GPU's memory."""
    return round(torch.cuda.max_memory_allocated() / 2**30, 2) if bench.device.type == "cuda" else None
