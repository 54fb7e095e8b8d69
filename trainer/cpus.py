"""How many CPUs this process of a run may use."""

import os
from pathlib import Path

MAX_WORKERS = 16
"""Loader processes by default: at 1 ms of CPU per sample, as many as feed the fastest GPUs at ViT-B/32."""


def default_workers(local_size: int) -> int:
    """Return this rank's CPUs less one for the training process itself, at least 1."""
    return max(1, min(MAX_WORKERS, rank_cpus(local_size) - 1))


def rank_cpus(local_size: int) -> int:
    """Return the CPUs of one of `local_size` processes on this machine.

    A batch system that binds every process to CPUs of its own has divided them already.
    """
    usable = min(len(os.sched_getaffinity(0)), _quota())
    bound = int(os.environ.get("SLURM_CPUS_PER_TASK", "0"))
    return usable if bound and usable <= bound else max(1, usable // local_size)


def _quota() -> int:
    """Return the CPUs that a container may use at a time."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, int(limit) // int(period))
    except (OSError, ValueError):  # no limit ("max"), or another version of cgroups
        return 1 << 20
