"""What a step, the loaders, whole runs and the largest batches take on the device, beside open_clip's loop."""

import gc
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.bench import Bench, fixed_batch, memory_gib, pinned, stepper_of, timed
from trainer.config import TrainConfig
from trainer.data import MAX_CHUNK, Batch, PairDataset, Preprocessing, RankSampler, concatenated, load_steps
from trainer.data import to_model_input as to_input
from trainer.flops import flops_per_pair, peak_flops
from trainer.order import SampleOrder
from trainer.shard_cache import ShardCache
from trainer.shards import ShardSet, find_shards


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


def time_loop(
    bench: Bench, phase: str, name: str, config: TrainConfig, make: Callable[[], Callable[[int], None]]
) -> None:
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
        phase, name=name, batch=config.batch, samples_per_s=round(rate), warm_s=round(warm_s, 1),
        mfu=peak and round(rate * flops_per_pair(config) / peak, 3), gpu_gib=memory_gib(bench),
    )  # fmt: skip


def eager_steps(bench: Bench) -> None:
    """Our step and open_clip's loop, on the same batch."""
    config = bench.config()
    time_loop(bench, "eager_steps", "ours", config, partial(our_loop, bench, config))
    time_loop(bench, "eager_steps", "open_clip", config, partial(their_loop, bench, config))


def compiled_steps(bench: Bench) -> None:
    """The same, compiled."""
    if bench.small:
        torch.compile = partial(torch.compile, backend="aot_eager")  # without a C++ compiler
    config = bench.config(compile=True)
    time_loop(bench, "compiled_steps", "ours", config, partial(our_loop, bench, config))
    time_loop(bench, "compiled_steps", "open_clip", config, partial(their_loop, bench, config, compiled=True))


def largest_batch(bench: Bench) -> None:
    """What one device holds with GradCache and with recomputed activations."""
    batch = bench.batch
    parts, plain, recomputed = (2, 2, 2) if bench.small else (32, 4, 8)
    kinds: dict[str, dict[str, Any]] = {
        f"in parts of {batch}": {"batch": parts * batch, "micro_batch": batch},
        f"{plain} times the batch": {"batch": plain * batch},
        f"{recomputed} times the batch, recomputed": {"batch": recomputed * batch, "gradient_checkpointing": True},
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
    for workers in worker_counts(bench):
        for on_device in (True, False):
            steps = max(2, int(shards.counts.sum()) // bench.batch - 1)
            batches = our_batches(bench, shards, workers, steps, on_device=on_device)
            next(batches)
            start, count = time.perf_counter(), sum(len(batch.images) for batch in batches)
            bench.wait()
            rate = count / (time.perf_counter() - start)
            bench.say("loaders", workers=workers, resizes_on_device=on_device, samples_per_s=round(rate))


def worker_counts(bench: Bench) -> list[int]:
    cpus = len(os.sched_getaffinity(0))
    return [2] if bench.small else sorted({min(count, cpus) for count in (4, 8, 14)})


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
        done = subprocess.run(command, capture_output=True, text=True, check=False)
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
