"""`python -m trainer --profile`: a trace of a few steps, for chrome://tracing or ui.perfetto.dev, and a table."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

FIRST, STEPS = 10, 5
"""Steps after the start of the run that are left out, and that are traced."""


class Profiler:
    """Traces the steps of this process that follow the first ones, once."""

    def __init__(self, folder: Path, start: int) -> None:
        self._folder, self._first = folder, start + FIRST
        activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * torch.cuda.is_available()]
        self._profile = profile(activities=activities, record_shapes=True, profile_memory=True)

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Trace a step if it is one of those, and write the files after the last."""
        if number == self._first:
            self._profile.start()
        yield
        if number == self._first + STEPS - 1:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self._profile.stop()
            self._write()

    def _write(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._profile.export_chrome_trace(str(self._folder / "trace.json.gz"))
        by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = self._profile.key_averages().table(sort_by=by, row_limit=50)
        (self._folder / "table.txt").write_text(table)
