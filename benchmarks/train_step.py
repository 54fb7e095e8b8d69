"""Time training steps: our step against open_clip's own loop, same model, precision and batch, data in memory.

    python -m benchmarks.train_step                      # ViT-B/32, bf16, batch 256: for a GPU
    python -m benchmarks.train_step --device cpu --model tiny --precision fp32 --batch 32 --steps 20

Images are in the form that the loaders return, pinned: for ours uint8 in chunks, for open_clip's a batch of normalised
float32. Runs alternate; the median counts. On a CPU, its time is given too: on a busy machine only that compares.
Needs `open_clip_torch[training]` (see benchmarks/loader.py).
"""

import argparse
import json
import logging
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from open_clip.loss import ClipLoss
from open_clip.model import CLIP
from open_clip_train.train import train_one_epoch
from rich.console import Console
from rich.table import Table

from trainer.config import TrainConfig, settings_from
from trainer.data import MAX_CHUNK, Batch, concatenated, to_model_input
from trainer.distributed import World, pick_device
from trainer.model import build_model
from trainer.optimizer import build_optimizer
from trainer.parallel import wrap
from trainer.precision import autocast, pick_precision
from trainer.step import Stepper

OPEN_CLIP_PRECISION = {"bf16": "amp_bf16", "fp16": "amp", "fp32": "fp32"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-B/32")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--precision", choices=OPEN_CLIP_PRECISION, default="bf16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="ours only")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    table = {"model": options.model, "batch": options.batch, "precision": options.precision, "compile": options.compile}
    config = settings_from({"workspace": ".", "train": table}, Path()).train
    device = pick_device(options.device)
    print_figures(measure(config, device, options.steps, options.runs), device)


def measure(config: TrainConfig, device: torch.device, steps: int, runs: int) -> dict[str, Any]:
    """Return samples per second of both loops, and the ratio; on a CPU also its milliseconds per sample."""
    size, context = config.architecture["vision_cfg"]["image_size"], config.architecture["text_cfg"]["context_length"]
    images = torch.randint(0, 256, (config.batch, size, size, 3), dtype=torch.uint8)
    tokens = torch.randint(1, 49_000, (config.batch, context))
    tokens[:, -1] = 49_407
    loops = {"ours": ours(config, device, images, tokens), "open_clip": theirs(config, device, images, tokens)}
    rates: dict[str, list[float]] = {name: [] for name in loops}
    cpu_ms: dict[str, list[float]] = {name: [] for name in loops}
    for loop in loops.values():
        loop(3)
    for _ in range(runs):
        for name, loop in loops.items():
            synchronise(device)
            start, cpu_start = time.perf_counter(), time.process_time()
            loop(steps)
            synchronise(device)
            rates[name].append(steps * config.batch / (time.perf_counter() - start))
            cpu_ms[name].append(1_000 * (time.process_time() - cpu_start) / (steps * config.batch))
    figures = {f"{name}_samples_per_s": statistics.median(values) for name, values in rates.items()}
    if device.type == "cpu":
        figures |= {f"{name}_cpu_ms_per_sample": statistics.median(values) for name, values in cpu_ms.items()}
    ratio = figures["ours_samples_per_s"] / figures["open_clip_samples_per_s"]
    return {"model": config.model, "batch": config.batch, **figures, "ratio_samples_per_s": ratio}


def ours(
    config: TrainConfig, device: torch.device, images: torch.Tensor, tokens: torch.Tensor
) -> Callable[[int], None]:
    model = build_model(config.architecture)
    precision = pick_precision(config.precision, device)
    stepper = Stepper(
        model, wrap(model, config, World(0, 1, device)), optimizer(model, config),
        torch.amp.GradScaler(device.type, enabled=precision == torch.float16), config,
        lambda: autocast(device, precision),
    )  # fmt: skip
    model.train()
    chunks = [
        Batch(pinned(image), pinned(text), torch.empty(0), torch.empty(0), {})
        for image, text in zip(images.split(MAX_CHUNK), tokens.split(MAX_CHUNK), strict=True)
    ]

    def loop(steps: int) -> None:
        for _ in range(steps):
            batch = concatenated(chunks, device)
            pixels = to_model_input(batch.images, channels_last=config.channels_last)
            stepper.step(pixels, batch.tokens, learning_rate=1e-4, seed=0)

    return loop


def theirs(
    config: TrainConfig, device: torch.device, images: torch.Tensor, tokens: torch.Tensor, *, compiled: bool = False
) -> Callable[[int], None]:
    model = CLIP(**config.architecture, output_dict=True).to(device)
    pixels, tokens = pinned(to_model_input(images)), pinned(tokens)
    precision = OPEN_CLIP_PRECISION[config.precision]
    arguments = SimpleNamespace(
        device=str(device), precision=precision, distill=False, accum_freq=1, skip_scheduler=True, horovod=False,
        grad_clip_norm=None, rank=0, world_size=1, log_every_n_steps=1_000, batch_size=config.batch, wandb=False,
        log_local=False, local_rank=0,
    )  # fmt: skip
    scaler = torch.amp.GradScaler(device.type) if precision == "amp" else None
    called = torch.compile(model) if compiled else model
    own = optimizer(model, config)

    def loop(steps: int) -> None:
        loader = _Repeated((pixels, tokens), steps, config.batch)
        data = {"train": SimpleNamespace(set_epoch=lambda epoch: None, dataloader=loader)}
        train_one_epoch(called, data, ClipLoss(), 0, own, scaler, None, None, arguments)

    return loop


class _Repeated:
    """A loader that gives one batch again and again."""

    def __init__(self, batch: Any, count: int, size: int) -> None:
        self._batch, self.num_batches, self.num_samples = batch, count, count * size

    def __iter__(self) -> Any:
        return iter([self._batch] * self.num_batches)


def optimizer(model: torch.nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    return build_optimizer(
        model, learning_rate=1e-4, weight_decay=config.weight_decay,
        beta1=config.beta1, beta2=config.beta2, eps=config.eps,
    )  # fmt: skip


def pinned(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.pin_memory() if torch.cuda.is_available() else tensor


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def print_figures(figures: dict[str, Any], device: torch.device) -> None:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    table = Table("loop", "samples/s", "CPU ms/sample", title=f"{figures['model']}, batch {figures['batch']}, {name}")
    for loop in ("ours", "open_clip"):
        cpu_ms = figures.get(f"{loop}_cpu_ms_per_sample")
        table.add_row(loop, f"{figures[f'{loop}_samples_per_s']:,.1f}", "" if cpu_ms is None else f"{cpu_ms:.2f}")
    Console().print(table)
    print(json.dumps({key: round(value, 3) if isinstance(value, float) else value for key, value in figures.items()}))


if __name__ == "__main__":
    main()
