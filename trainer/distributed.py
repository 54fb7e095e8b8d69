"""The processes of one run, as `torchrun` starts them; one process without it is a world of one."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from trainer.errors import PeerError, TrainerError

T = TypeVar("T")
WAIT_TIMEOUT = timedelta(minutes=30)
"""How long processes wait where one counts, fetches or saves; collectives of the step have a limit of their own."""


@dataclass(frozen=True)
class World:
    """This process's rank and device, and the number of processes of the run."""

    rank: int
    size: int
    device: torch.device
    waiting: Any = None  # the group, on CPUs, in which processes wait for each other; None: the default group
    local_size: int = 1  # processes of this machine

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files of which a run has only one."""
        return self.rank == 0

    def any(self, *flags: bool) -> list[bool]:
        """Return for each flag whether it is set in any process."""
        if self.size == 1:
            return list(flags)
        values = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self.waiting)
        return [bool(value) for value in values]

    def in_first(self, work: Callable[[], Any]) -> None:
        """Run `work` in the first process; the others wait for it.

        Raises:
            TrainerError: raised by `work` in the first process; a `PeerError` in the others.
        """
        self._in_some(self.is_first, work)

    def in_first_of_machine(self, work: Callable[[], Any]) -> None:
        """Run `work` in the first process of each machine; the others wait for all of them.

        Raises:
            TrainerError: raised by `work` here; a `PeerError` where it was raised elsewhere.
        """
        self._in_some(self.rank % self.local_size == 0, work)

    def _in_some(self, is_one: bool, work: Callable[[], Any]) -> None:
        failure = None
        if is_one:
            try:
                work()
            except TrainerError as error:
                failure = error
        if any(self.any(failure is not None)):
            raise failure or PeerError()

    def from_first(self, work: Callable[[], T]) -> T:
        """Run `work` in the first process and return its result in all of them.

        Raises:
            TrainerError: raised by `work` in the first process; a `PeerError` in the others.
        """
        results: list[Any] = [None]
        self.in_first(lambda: results.__setitem__(0, work()))
        if self.size > 1:
            dist.broadcast_object_list(results, src=0, group=self.waiting, device=torch.device("cpu"))
        result: T = results[0]
        return result

    def gather(self, value: T) -> list[T]:
        """Return every process's value, in rank order."""
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value, group=self.waiting)
        return gathered

    def mean(self, value: torch.Tensor) -> float:
        """Return the mean of a scalar over the processes."""
        total = value.detach().clone()
        if self.size > 1:
            dist.all_reduce(total)
        return total.item() / self.size

    def sum_counts(self, counts: Counter[str]) -> Counter[str]:
        """Return the sum of all processes' counts."""
        return sum(self.gather(counts), Counter())


def pick_device(wanted: str, local_rank: int = 0, key: str = "train.device") -> torch.device:
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
            else f'no GPU found: install a CUDA build of torch, or set {key} = "cpu"'
        )
    return torch.device("cuda", local_rank)


def _join(backend: str, timeout: timedelta) -> None:
    """Join the other processes, through keys that those of an earlier attempt have not written.

    torchrun keeps one store over its restarts, so a process could read the address of one that has died. Attempts are
    numbered by machine; on several machines the numbers may differ, and torchrun needs an option (docs/training.md).
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or os.environ.get("GROUP_WORLD_SIZE") != "1":
        dist.init_process_group(backend, timeout=timeout)
        return
    store, rank, size = next(dist.rendezvous("env://", timeout=timeout))  # type: ignore[attr-defined]
    number = os.environ["TORCHELASTIC_RESTART_COUNT"]
    attempt = dist.PrefixStore(f"attempt-{number}", store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=attempt, rank=rank, world_size=size, timeout=timeout)


@contextmanager
def open_world(device: str, collective_timeout_s: int = 600) -> Iterator[World]:
    """Join the processes that torchrun started, and leave them at the end.

    A collective operation of a step that takes longer than `collective_timeout_s` ends the run: a process hangs.

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
        backend = "cpu:gloo,cuda:nccl" if local_device.type == "cuda" else "gloo"
        _join(backend, timedelta(seconds=collective_timeout_s))
        waiting = dist.new_group(backend="gloo", timeout=WAIT_TIMEOUT)
        yield World(dist.get_rank(), size, local_device, waiting, int(os.environ.get("LOCAL_WORLD_SIZE", size)))
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise PeerError from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
