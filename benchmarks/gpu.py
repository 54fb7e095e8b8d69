"""What one GPU makes of the trainer, in 15 minutes: correctness against the CPU, then speed, beside open_clip's loop.

    python -m benchmarks.gpu --out gpu-results                 # on a machine with a GPU
    python -m benchmarks.gpu --out dry-run --small             # every phase at tiny size, also on a CPU

Phases run in the order of their importance until `--minutes` are over; one that fails leaves the others alone. Each
result is a line of JSON in `results.jsonl`. Needs `open_clip_torch[training]` for the comparisons, which are left out
without it.
"""

import argparse
import gc
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from torch.profiler import ProfilerActivity, profile

from benchmarks.photos import make_shards
from trainer.config import TrainConfig, settings_from
from trainer.data import MAX_CHUNK, Batch, PairDataset, Preprocessing, RankSampler, concatenated, load_steps
from trainer.data import to_model_input as to_input
from trainer.distributed import World, pick_device
from trainer.flops import flops_per_pair, peak_flops
from trainer.loss import Objective, contrastive_loss
from trainer.model import build_model
from trainer.optimizer import build_optimizer
from trainer.order import SampleOrder
from trainer.parallel import wrap
from trainer.precision import autocast, pick_precision
from trainer.resize import cut, packed, resize, resized
from trainer.shard_cache import ShardCache
from trainer.shards import ShardSet, find_shards
from trainer.step import Stepper


@dataclass
class Bench:
    """The place of the results, the device, and the time that is left."""

    out: Path
    data: Path
    device: torch.device
    small: bool
    deadline: float
    model: str
    batch: int

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


def main() -> int:
    """Run the phases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a folder for the results")
    parser.add_argument("--minutes", type=float, default=14.0)
    parser.add_argument("--small", action="store_true", help="tiny sizes: a dry run")
    parser.add_argument("--only", nargs="+", choices=PHASES, help="only these phases")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        make_shards(data, *((4, 40) if options.small else (32, 768)))  # forks before CUDA is started
        bench = Bench(
            options.out, data, pick_device("auto"), options.small, time.monotonic() + 60 * options.minutes,
            "tiny" if options.small else "ViT-B/32", 32 if options.small else 1_024,
        )  # fmt: skip
        name = torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else "CPU"
        bench.say(
            "setup", device=name, torch=torch.__version__, cpus=os.cpu_count(), model=bench.model, batch=bench.batch,
            gflop_per_pair=round(flops_per_pair(bench.config()) / 1e9, 2),
        )  # fmt: skip
        failed = [
            phase for phase in PHASES if (not options.only or phase in options.only) and not attempt(bench, phase)
        ]
        bench.say("end", failed=failed)
    return 1 if failed else 0


def attempt(bench: Bench, name: str) -> bool:
    """Run a phase if there is time; report instead of raising, because the next must run."""
    left_s = bench.deadline - time.monotonic()
    work, needed_s = PHASES[name]
    if left_s < needed_s and not bench.small:
        bench.say(name, skipped=f"{left_s:.0f} s are left, it needs {needed_s}")
        return True
    start = time.monotonic()
    try:
        work(bench)
        bench.say(name, done_s=round(time.monotonic() - start, 1))
        return True
    except ImportError as error:
        bench.say(name, skipped=f"{error}")
        return True
    except Exception as error:
        bench.say(name, error=f"{type(error).__name__}: {error}"[:500])
        traceback.print_exc()
        return False
    finally:
        gc.collect()
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()


# ---- correctness


def loss_against_cpu(bench: Bench) -> None:
    """Loss and gradients in float32 and TF32 against float64 on the CPU, in several slices."""
    for objective in ("infonce", "siglip"):
        expected = loss_and_gradients(torch.device("cpu"), torch.float64, objective, tf32=False)
        for tf32 in (False, True):
            found = loss_and_gradients(bench.device, torch.float32, objective, tf32=tf32)
            errors = [float((a - b).norm() / a.norm()) for a, b in zip(expected, found, strict=True)]
            bench.say(
                "loss_against_cpu", objective=objective, tf32=tf32,
                relative_errors=dict(zip(("loss", "image", "text", "scale"), errors, strict=True)),
            )  # fmt: skip
            assert max(errors) < (5e-3 if tf32 else 1e-4), errors


def loss_and_gradients(device: torch.device, dtype: torch.dtype, objective: Objective, *, tf32: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    image, text = (normalize(torch.randn(512, 64, generator=generator), dim=1) for _ in range(2))
    image, text = (side.to(device, dtype).requires_grad_() for side in (image, text))
    scale = torch.tensor(50.0, dtype=dtype, device=device, requires_grad=True)
    bias = torch.tensor(-5.0, dtype=dtype, device=device, requires_grad=True) if objective == "siglip" else None
    loss = contrastive_loss(image, text, scale, bias, objective=objective, max_logits=70_000, tf32=tf32)
    loss.backward()
    found = [loss.detach(), image.grad, text.grad, scale.grad]
    return [value.double().cpu() for value in found if value is not None]


def curves(bench: Bench) -> None:
    """Twelve steps of the small model on fixed batches: every precision on the device against float32 on the CPU."""
    steps, reference = 12, losses_of(bench, torch.device("cpu"), precision="fp32")
    kinds: dict[str, dict[str, Any]] = {
        "fp32": {"precision": "fp32"}, "bf16": {"precision": "bf16"}, "bf16 in parts": {"micro_batch": 32},
        "bf16 compiled": {"compile": True}, "fp16": {"precision": "fp16"},
    }  # fmt: skip
    for name, keys in kinds.items():
        if bench.device.type == "cpu" and name in ("bf16 compiled", "fp16"):
            continue  # a CPU needs a C++ compiler for the one, and minutes for the other
        found = losses_of(bench, bench.device, **keys)
        worst = max(abs(a - b) for a, b in zip(found, reference, strict=True))
        bench.say("curves", kind=name, steps=steps, first=found[0], last=found[-1], worst_from_cpu_fp32=worst)
        assert worst < (1e-2 if name == "fp32" else 0.1), (name, worst)


def losses_of(bench: Bench, device: torch.device, **keys: Any) -> list[float]:
    config = bench.config(model="tiny", batch=128, **keys)
    stepper, generator = stepper_of(config, device), torch.Generator().manual_seed(5)
    losses = []
    for step in range(12):
        images = torch.randint(0, 256, (128, 64, 64, 3), dtype=torch.uint8, generator=generator)
        tokens = torch.randint(1, 49_000, (128, 16), generator=generator)
        tokens[:, -1] = 49_407
        pixels = to_input(images.to(device))
        losses.append(stepper.step(pixels, tokens.to(device), learning_rate=1e-3, seed=step).item())
    return losses


def resize_against_cpu(bench: Bench) -> None:
    """The device's resize against Pillow's, and its speed."""
    random, size = np.random.default_rng(0), 32 if bench.small else 224
    images = [random.integers(0, 256, (256, 256 + 20 * n, 3), dtype=np.uint8) for n in range(8)]
    crops = [cut(image, 3.7 + n, 2.2, 245.3, size) for n, image in enumerate(images)]
    pixels, boxes = (tensor.to(bench.device) for tensor in packed(crops))
    found = resize(pixels, boxes, size).cpu().numpy().astype(int)
    expected = [resized(Image.fromarray(image), 3.7 + n, 2.2, 245.3, size) for n, image in enumerate(images)]
    difference = np.abs(found - np.stack(expected).astype(int))
    many, many_boxes = pixels.repeat(MAX_CHUNK // 8, 1, 1, 1), boxes.repeat(MAX_CHUNK // 8, 1)
    seconds = timed(bench, lambda: resize(many, many_boxes, size))
    bench.say(
        "resize", worst_levels=int(difference.max()), share_that_differs=float((difference > 0).mean()),
        samples_per_s=round(MAX_CHUNK / seconds),
    )  # fmt: skip
    assert difference.max() <= 1


def collectives(bench: Bench) -> None:
    """The collectives of a step in a group of one process, and DDP and FSDP beside the plain model."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "0", "WORLD_SIZE": "1"}
    os.environ |= variables
    dist.init_process_group("cpu:gloo,cuda:nccl" if bench.device.type == "cuda" else "gloo")
    try:
        rows = torch.arange(6.0, device=bench.device).reshape(3, 2)
        gathered, scattered = torch.empty_like(rows), torch.empty_like(rows)
        dist.all_gather_into_tensor(gathered, rows)
        dist.reduce_scatter_tensor(scattered, gathered)
        assert bool((scattered == rows).all())
        plain = losses_of(bench, bench.device, precision="fp32")[:3]
        for parallel in ("ddp", "fsdp", "hsdp"):
            found = parallel_losses(bench, parallel)
            bench.say("collectives", parallel=parallel, worst_from_plain=max(map(abs, np.subtract(found, plain))))
            np.testing.assert_allclose(found, plain, rtol=1e-4)
    finally:
        dist.destroy_process_group()
        for name in variables:
            del os.environ[name]


def parallel_losses(bench: Bench, parallel: str) -> list[float]:
    """Three steps of a model that is wrapped as for two processes, in a mesh of one."""
    config = bench.config(model="tiny", batch=128, precision="fp32", parallel=parallel)
    stepper = stepper_of(config, bench.device, World(0, 2, bench.device, local_size=2), mesh_size=1)
    generator = torch.Generator().manual_seed(5)
    losses = []
    for step in range(3):
        images = torch.randint(0, 256, (128, 64, 64, 3), dtype=torch.uint8, generator=generator)
        tokens = torch.randint(1, 49_000, (128, 16), generator=generator)
        tokens[:, -1] = 49_407
        pixels = to_input(images.to(bench.device))
        losses.append(stepper.step(pixels, tokens.to(bench.device), learning_rate=1e-3, seed=step).item())
    return losses


# ---- speed


def stepper_of(config: TrainConfig, device: torch.device, world: World | None = None, mesh_size: int = 0) -> Stepper:
    torch.manual_seed(0)
    world = world or World(0, 1, device)
    model = build_model(config.architecture, flat_logit_scale=config.parallel != "ddp" and world.size > 1)
    if mesh_size:  # `wrap` takes the world's size for that of the group, which has one process only
        from trainer import parallel

        parallel._mesh = lambda config, world: parallel.init_device_mesh(device.type, (mesh_size,))
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


def our_loop(bench: Bench, config: TrainConfig) -> Callable[[int], None]:
    stepper, (images, tokens) = stepper_of(config, bench.device), fixed_batch(config)
    parts = zip(images.split(MAX_CHUNK), tokens.split(MAX_CHUNK), strict=True)
    chunks = [Batch(pinned(i), pinned(t), torch.empty(0), torch.empty(0), {}) for i, t in parts]

    def loop(steps: int) -> None:
        for _ in range(steps):
            batch = concatenated(chunks, bench.device)
            pixels = to_input(batch.images, channels_last=config.channels_last)
            stepper.step(pixels, batch.tokens, learning_rate=1e-4, seed=0)

    return loop


def their_loop(bench: Bench, config: TrainConfig, *, compiled: bool = False) -> Callable[[int], None]:
    from benchmarks.train_step import theirs

    images, tokens = fixed_batch(config)
    return theirs(config, bench.device, images, tokens, compiled=compiled)


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


def time_loop(bench: Bench, name: str, config: TrainConfig, make: Callable[[], Callable[[int], None]]) -> None:
    """Report samples per second, MFU and memory of a training loop on a fixed batch."""
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    loop, steps = make(), 2 if bench.small else 10
    loop(2 if bench.small else 4)
    bench.wait()
    warm_s = time.perf_counter() - start
    rate = steps * config.batch / timed(bench, partial(loop, steps), repeat=1 if bench.small else 3)
    peak = peak_flops(bench.device)
    bench.say(
        "steps", name=name, batch=config.batch, samples_per_s=round(rate), warm_s=round(warm_s, 1),
        mfu=peak and round(rate * flops_per_pair(config) / peak, 3), gpu_gib=memory_gib(bench),
    )  # fmt: skip


def memory_gib(bench: Bench) -> float | None:
    return round(torch.cuda.max_memory_allocated() / 2**30, 2) if bench.device.type == "cuda" else None


def eager_steps(bench: Bench) -> None:
    """Our step and open_clip's loop, on the same batch."""
    config = bench.config()
    time_loop(bench, "ours", config, partial(our_loop, bench, config))
    time_loop(bench, "open_clip", config, partial(their_loop, bench, config))


def compiled_steps(bench: Bench) -> None:
    """The same, compiled."""
    if bench.small:
        torch.compile = partial(torch.compile, backend="aot_eager")  # without a C++ compiler
    config = bench.config(compile=True)
    time_loop(bench, "ours, compiled", config, partial(our_loop, bench, config))
    time_loop(bench, "open_clip, compiled", config, partial(their_loop, bench, config, compiled=True))


def largest_batch(bench: Bench) -> None:
    """What one device holds with GradCache and with recomputed activations."""
    batch = bench.batch
    kinds: dict[str, dict[str, Any]] = {
        f"in parts of {batch}": {"batch": 32 * batch, "micro_batch": batch},
        "4 times the batch": {"batch": 4 * batch},
        "8 times the batch, recomputed": {"batch": 8 * batch, "gradient_checkpointing": True},
    }
    for name, keys in kinds.items():
        config = bench.config(**keys)
        try:
            if bench.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            loop = our_loop(bench, config)
            seconds = timed(bench, partial(loop, 1), repeat=1)
            bench.say("largest_batch", name=name, batch=config.batch, samples_per_s=round(config.batch / seconds),
                      gpu_gib=memory_gib(bench))  # fmt: skip
        except torch.OutOfMemoryError:
            bench.say("largest_batch", name=name, batch=config.batch, out_of_memory=True)
        gc.collect()


def loaders(bench: Bench) -> None:
    """Our loader to the device, with the resize there and in the workers."""
    shards = our_shards(bench)
    for workers in (2,) if bench.small else (4, 8, 14):
        for on_device in (True, False):
            steps = max(2, int(shards.counts.sum()) // bench.batch - 1)
            batches = our_batches(bench, shards, workers, steps, on_device=on_device)
            next(batches)
            start, count = time.perf_counter(), sum(len(batch.images) for batch in batches)
            bench.wait()
            rate = count / (time.perf_counter() - start)
            bench.say("loader", workers=workers, resizes_on_device=on_device, samples_per_s=round(rate))


def our_shards(bench: Bench) -> ShardSet:
    return find_shards((f"{bench.data}/*.tar",), ShardCache(bench.data / "cache", 1 << 34))


def our_batches(bench: Bench, shards: ShardSet, workers: int, steps: int, *, on_device: bool) -> Iterator[Batch]:
    architecture = bench.config().architecture
    view = Preprocessing(
        architecture["vision_cfg"]["image_size"], architecture["text_cfg"]["context_length"], 0,
        resizes_on_device=on_device,
    )  # fmt: skip
    sampler = RankSampler(SampleOrder(shards.counts, seed=0), bench.batch, 8, 0, steps)
    return load_steps(PairDataset(shards, view), sampler, workers=workers, prefetch=4, device=bench.device)


def whole_runs(bench: Bench) -> None:
    """The trainer itself, as a user starts it: the default workers, eager and compiled; what its log says."""
    kinds: dict[str, dict[str, Any]] = {"default": {}, "compiled": {"compile": True}}
    for name, keys in kinds.items():
        if bench.small and keys:
            continue
        table = {
            "model": bench.model, "shards": [f"{bench.data}/*.tar"], "output": f"{bench.data}/run-{name}",
            "batch": bench.batch, "steps": 8 if bench.small else 60, "log_steps": 4 if bench.small else 15,
            "precision": "bf16", "tensorboard": False, **keys,
        }  # fmt: skip
        lines = [f"{key} = {json.dumps(value)}" for key, value in table.items()]
        config = bench.data / f"{name}.toml"
        config.write_text("\n".join([f'workspace = "{bench.data}/work"', "[train]", *lines, ""]))
        command = [sys.executable, "-m", "trainer", "-c", str(config)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        lines = re.findall(r"step \d.*", done.stderr)[-4:]
        bench.say("whole_runs", name=name, exit_code=done.returncode, log=lines)
        assert done.returncode == 0, done.stderr[-2_000:]


def trace(bench: Bench) -> None:
    """Where the time of a step goes: profile.txt, and how much of it the device is busy."""
    config = bench.config()
    loop = our_loop(bench, config)
    loop(3)
    bench.wait()
    is_gpu = bench.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * is_gpu]) as recorded:
        start = time.perf_counter()
        loop(4)
        bench.wait()
        wall_s = time.perf_counter() - start
    rows = recorded.key_averages()
    key = "self_device_time_total" if is_gpu else "self_cpu_time_total"
    (bench.out / "profile.txt").write_text(rows.table(sort_by=key, row_limit=40))
    kernels = [row for row in rows if not is_gpu or row.device_type.name == "CUDA"]
    busy_s = sum(getattr(row, key) for row in kernels) / 1e6
    top = sorted(kernels, key=lambda row: -getattr(row, key))[:8]
    bench.say(
        "trace", step_ms=round(wall_s / 4 * 1e3, 1), device_busy=round(busy_s / wall_s, 3) if is_gpu else None,
        top_ms_per_step={row.key[:70]: round(getattr(row, key) / 4e3, 2) for row in top},
    )  # fmt: skip


PHASES: dict[str, tuple[Callable[[Bench], None], int]] = {
    "loss_against_cpu": (loss_against_cpu, 20),
    "curves": (curves, 60),
    "resize": (resize_against_cpu, 15),
    "eager_steps": (eager_steps, 60),
    "whole_runs": (whole_runs, 120),
    "compiled_steps": (compiled_steps, 120),
    "collectives": (collectives, 25),
    "loaders": (loaders, 60),
    "trace": (trace, 25),
    "largest_batch": (largest_batch, 60),
}
"""Name -> the phase, and the seconds that it needs at most, about."""


if __name__ == "__main__":
    sys.exit(main())
