"""The phases of the benchmark, in the order of their importance."""

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.gpu import correctness, speed
from benchmarks.gpu.bench import Bench
from trainer.flops import flops_per_pair


@dataclass(frozen=True)
class Phase:
    """What to do, and how long it may take at most, on a GPU."""

    work: Callable[[Bench], None]
    limit_s: int


def setup(bench: Bench) -> None:
    """Start the process, and say where it runs."""
    name = torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else "CPU"
    bench.say(
        "setup", device=name, torch=torch.__version__, cpus=os.cpu_count(), model=bench.model, batch=bench.batch,
        gflop_per_pair=round(flops_per_pair(bench.config()) / 1e9, 2),
    )  # fmt: skip


PHASES: dict[str, Phase] = {
    "setup": Phase(setup, 60),
    "loss_against_cpu": Phase(correctness.loss_against_cpu, 30),
    "curves": Phase(correctness.curves, 120),
    "resize": Phase(correctness.resize_against_cpu, 30),
    "eager_steps": Phase(speed.eager_steps, 90),
    "whole_runs": Phase(speed.whole_runs, 210),
    "compiled_steps": Phase(speed.compiled_steps, 150),
    "collectives": Phase(correctness.collectives, 60),
    "loaders": Phase(speed.loaders, 90),
    "trace": Phase(speed.trace, 45),
    "largest_batch": Phase(speed.largest_batch, 90),
}
