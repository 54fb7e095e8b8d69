"""Time the training input: this trainer's loader against open_clip's webdataset loader, same shards, same transform.

    python -m benchmarks.loader [--shards GLOB] [--workers 2] [--samples 4000]

`ours` resizes in its workers, as for a CPU; `ours_for_gpu` sends crops that the device resizes, whose time is given
apart, as this machine's CPU needs it. All cut a random square of 90 to 100 % of the area, resize it to the model's size
with the bicubic filter, tokenise the caption and give normalised float32 batches. Runs alternate; the median counts.
CPU time includes all workers. Without `--shards` it creates some from noise, in the size that the pipeline stores.
open_clip's loader is called as in its own trainer (`open_clip_train.data`); that needs `open_clip_torch[training]`,
which requires an older webdataset than our tests, so use a separate environment.
"""

import argparse
import gc
import json
import logging
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from open_clip import get_tokenizer
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip_train.data import get_wds_dataset
from rich.console import Console
from rich.table import Table
from torchvision.transforms import Compose, InterpolationMode, Normalize, RandomResizedCrop, ToTensor

from benchmarks.photos import make_shards
from trainer.data import PairDataset, Preprocessing, RankSampler, load_steps, to_model_input
from trainer.order import SampleOrder
from trainer.resize import cut, packed, resize
from trainer.shard_cache import ShardCache
from trainer.shards import find_shards

BATCH = 64
Loader = Callable[[int], Iterator[tuple[torch.Tensor, torch.Tensor]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", help="a glob of tars (default: temporary ones)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--samples", type=int, default=4_000, help="timed samples per run")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--runs", type=int, default=3, help="runs of each; the median counts")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        glob = arguments.shards or make_shards(Path(folder) / "shards")
        loaders = {
            "ours": ours(glob, Path(folder), arguments.workers, arguments.size),
            "ours_for_gpu": ours(glob, Path(folder), arguments.workers, arguments.size, for_gpu=True),
            "open_clip": theirs(glob, arguments.workers, arguments.size),
        }
        steps = arguments.samples // BATCH // arguments.workers * arguments.workers  # open_clip gives each as many
        figures = measure(loaders, steps, arguments.runs, arguments.workers)
        print_figures(figures | {"resize_cpu_ms_per_sample": time_resize(arguments.size)})


def ours(glob: str, folder: Path, workers: int, size: int, *, for_gpu: bool = False) -> Loader:
    """Return our loader; `for_gpu`: to a device of shapes without numbers, so that only the CPU's work counts."""
    device = torch.device("meta" if for_gpu else "cpu")

    def load(steps: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        shards = find_shards((glob,), ShardCache(folder / "cache", 2**34))
        share = RankSampler(SampleOrder(shards.counts, seed=0), BATCH, 8, 0, steps)
        view = Preprocessing(size, 77, seed=0, resizes_on_device=for_gpu)
        for batch in load_steps(PairDataset(shards, view), share, workers=workers, prefetch=4, device=device):
            yield to_model_input(batch.images), batch.tokens

    return load


def theirs(glob: str, workers: int, size: int) -> Loader:
    paths = sorted(str(path) for path in Path(glob).parent.glob(Path(glob).name))
    arguments = SimpleNamespace(
        train_data="::".join(paths), train_num_samples=None, dataset_resampled=False,
        train_data_upsampling_factors=None, seed=0, batch_size=BATCH, workers=workers, world_size=1,
    )  # fmt: skip
    bicubic = InterpolationMode.BICUBIC
    crop = RandomResizedCrop(size, scale=(0.9, 1.0), ratio=(1.0, 1.0), interpolation=bicubic)
    transform = Compose([crop, ToTensor(), Normalize(OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)])

    def load(steps: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        arguments.train_num_samples = steps * BATCH
        data = get_wds_dataset(arguments, transform, is_train=True, tokenizer=get_tokenizer("ViT-B-32"))
        yield from data.dataloader

    return load


def measure(loaders: dict[str, Loader], steps: int, runs: int, workers: int) -> dict[str, float]:
    """Return samples per second and CPU milliseconds per sample of each loader, and the ratios."""
    timed: dict[str, list[tuple[float, float]]] = {name: [] for name in loaders}
    for _ in range(runs):
        for name, load in loaders.items():
            timed[name].append(time_run(load, steps))
    figures: dict[str, float] = {"workers": workers, "samples": steps * BATCH}
    for name, values in timed.items():
        figures[f"{name}_samples_per_s"] = statistics.median(value[0] for value in values)
        figures[f"{name}_cpu_ms_per_sample"] = statistics.median(value[1] for value in values)
    figures["ratio_samples_per_s"] = figures["ours_samples_per_s"] / figures["open_clip_samples_per_s"]
    figures["ratio_cpu_per_sample"] = figures["open_clip_cpu_ms_per_sample"] / figures["ours_cpu_ms_per_sample"]
    return figures


def time_run(load: Loader, steps: int) -> tuple[float, float]:
    """Return samples per second after the first batch, and CPU milliseconds per sample of the whole run."""
    cpu_start = cpu_seconds()
    batches = load(steps)
    first = len(next(batches)[0])
    start = time.perf_counter()
    count = sum(len(images) for images, _ in batches)  # to the end, so that no prepared batch is discarded
    elapsed_s = time.perf_counter() - start
    del batches  # ends the workers, whose time counts from then on
    gc.collect()
    return count / elapsed_s, 1_000 * (cpu_seconds() - cpu_start) / (count + first)


def cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def time_resize(size: int) -> float:
    """Return the CPU milliseconds that the device's resize takes per sample on this machine, in one thread."""
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (256, 340, 3), dtype=np.uint8)
    images, boxes = packed([cut(image, 40.0, 4.0, 248.0, size)] * BATCH)
    start = time.process_time()
    resize(images, boxes, size)
    return 1_000 * (time.process_time() - start) / BATCH


def print_figures(figures: dict[str, float]) -> None:
    table = Table("loader", "samples/s", "CPU ms/sample", title=f"{platform.machine()}, {os.cpu_count()} CPUs")
    for name in ("ours", "ours_for_gpu", "open_clip"):
        table.add_row(name, f"{figures[f'{name}_samples_per_s']:,.0f}", f"{figures[f'{name}_cpu_ms_per_sample']:.2f}")
    Console().print(table)
    print(f"resize on this CPU, if it were the device: {figures['resize_cpu_ms_per_sample']:.2f} ms/sample")
    print(json.dumps({key: round(value, 3) for key, value in figures.items()}))


if __name__ == "__main__":
    main()
