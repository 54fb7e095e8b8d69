"""Runs of the trainer in processes of their own, forked so that torch need not load again."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.config import Settings, settings_from
from trainer.errors import TrainerError
from trainer.tokenizer import tokenize
from trainer.train import train

TINY = {
    "model": "tiny",
    "batch": 24,
    "steps": 20,
    "warmup_steps": 5,
    "log_steps": 5,
    "checkpoint_steps": 10,
    "workers": 0,
    "device": "cpu",
    "threads": 1,
    "tensorboard": False,
    "lanes": 4,
    "window": 32,
    "architecture": {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    },
}
Hook = Callable[[int, Any], None]

tokenize([], 16)  # loads the vocabulary once, for all forks


def tiny_settings(workspace: Path, output: Path, **train: Any) -> Settings:
    """Return settings of a minuscule run."""
    document = {"workspace": str(workspace), "seed": 7, "train": {**TINY, "output": str(output), **train}}
    return settings_from(document, workspace)


def start(settings: Settings, hook: Hook | None = None, rank: int = 0, size: int = 1, port: int = 0) -> Any:
    """Start one process of a run; its exit code is the command's."""
    process = multiprocessing.get_context("fork").Process(target=_run, args=(settings, hook, rank, size, port))
    process.start()
    return process


def run(settings: Settings, hook: Hook | None = None, processes: int = 1) -> list[int]:
    """Run to the end; return the exit codes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = [start(settings, hook, rank, processes, port) for rank in range(processes)]
    for process in started:
        process.join(120)
    return [process.exitcode for process in started]


def _run(settings: Settings, hook: Hook | None, rank: int, size: int, port: int) -> None:
    if size > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
    try:
        train(settings, on_step=hook)
    except TrainerError as error:
        os.write(1, f"error: {error}\n".encode())  # at once: `print` lets another process's line in before the end
        os._exit(error.exit_code)
    except BaseException:
        traceback.print_exc()
        os._exit(99)
    os._exit(0)
