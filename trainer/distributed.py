"""The processes of one run, as `torchrun` starts them; one process without it is a world of one."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from trainer.errors import PeerError, TrainerError

START_TIMEOUT = timedelta(minutes=30)  # a rank may wait while another counts or fetches shards


@dataclass(frozen=True)
class World:
    """This process's rank and device, and the number of processes of the run."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files of which a run has only one."""
        return self.rank == 0

    def any(self, *flags: bool) -> list[bool]:
        """Return for each flag whether it is set in any process."""
        if self.size == 1:
            return list(flags)
        values = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return [bool(value) for value in values]

    def in_first(self, work: Callable[[], Any]) -> None:
        """Run `work` in the first process; the others wait for it.

        Raises:
            TrainerError: raised by `work` in the first process; a `PeerError` in the others.
        """
        failure = None
        if self.is_first:
            try:
                work()
            except TrainerError as error:
                failure = error
        if any(self.any(failure is not None)):
            raise failure or PeerError()

    def mean(self, value: torch.Tensor) -> float:
        """Return the mean of a scalar over the processes."""
        total = value.detach().clone()
        if self.size > 1:
            dist.all_reduce(total)
        return total.item() / self.size

    def sum_counts(self, counts: Counter[str]) -> Counter[str]:
        """Return the sum of all processes' counts."""
        if self.size == 1:
            return counts.copy()
        gathered: list[Counter[str]] = [Counter() for _ in range(self.size)]
        dist.all_gather_object(gathered, counts)
        return sum(gathered, Counter())


def pick_device(wanted: str, local_rank: int = 0) -> torch.device:
    """Return the GPU of this process, or the CPU where there is none and "auto" allows it.

    Raises:
        TrainerError: a GPU is required and there is none for this process.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cpu" or (wanted == "auto" and not gpus):
        return torch.device("cpu")
    if local_rank >= gpus:
        raise TrainerError(
            f"no GPU for process {local_rank} of this machine, which has {gpus}: start at most {gpus} processes here"
            if gpus
            else 'no GPU found: install a CUDA build of torch, or set train.device = "cpu"'
        )
    return torch.device("cuda", local_rank)


@contextmanager
def open_world(device: str) -> Iterator[World]:
    """Join the processes that torchrun started, and leave them at the end.

    Raises:
        PeerError: the connection to another process broke.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local_device = pick_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if local_device.type == "cuda":
        torch.cuda.set_device(local_device)
    if size == 1:
        yield World(0, 1, local_device)
        return
    try:
        # Flags and counts are reduced on CPUs, so that checking whether any rank stops never waits for a GPU.
        dist.init_process_group("cpu:gloo,cuda:nccl" if local_device.type == "cuda" else "gloo", timeout=START_TIMEOUT)
        yield World(dist.get_rank(), size, local_device)
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise PeerError from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
