"""Loader processes by default: the CPUs of this rank, however they were divided."""

import os

import pytest

from trainer import cpus


@pytest.mark.parametrize(
    ("usable", "quota", "slurm", "local", "workers"),
    [
        (96, None, None, 8, 11),  # torchrun: all processes see the whole machine
        (12, None, "12", 8, 11),  # Slurm binds each to its own
        (96, None, "12", 8, 11),  # Slurm without binding
        (96, 16, None, 2, 7),  # a container with a quota
        (128, None, None, 1, 16),
        (1, None, None, 1, 1),
        (4, None, None, 8, 1),
    ],
)
def test_workers(
    monkeypatch: pytest.MonkeyPatch, usable: int, quota: int | None, slurm: str | None, local: int, workers: int
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(usable)))
    monkeypatch.setattr(cpus, "_quota", lambda: quota or 1 << 20)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    if slurm is not None:
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", slurm)
    assert cpus.default_workers(local) == workers
