"""Progress and metrics of a run: a progress bar or log lines, TensorBoard by default, Weights & Biases on request."""

import logging
import sys
import time
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trainer.config import TrainConfig
from trainer.errors import TrainerConfigError

log = logging.getLogger(__name__)


class _Writer(Protocol):
    def write(self, values: dict[str, float], step: int) -> None:
        """Record the values of a step."""

    def close(self) -> None:
        """Flush and close the open files."""


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def write(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"train/{name}", value, step)

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    def __init__(self, project: str, settings: dict[str, Any], folder: Path) -> None:
        try:
            import wandb
        except ImportError as error:
            raise TrainerConfigError("train.wandb_project needs the wandb package: pip install wandb") from error
        self._run = wandb.init(project=project, config=settings, dir=str(folder), resume="allow")

    def write(self, values: dict[str, float], step: int) -> None:
        self._run.log({f"train/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        self._run.finish()


class Stopwatch:
    """Measures how long steps take, and the fraction of it spent waiting for data."""

    def __init__(self) -> None:
        self._start = self._mark = time.perf_counter()
        self._waited_s = 0.0

    def data_arrived(self) -> None:
        """Count the time since the last step ended as waiting."""
        self._waited_s += time.perf_counter() - self._mark

    def step_ended(self) -> None:
        """Start to wait for data."""
        self._mark = time.perf_counter()

    def lap(self, samples: int) -> dict[str, float]:
        """Return samples per second and the fraction of waiting since the last lap, and start a new one."""
        elapsed_s = max(time.perf_counter() - self._start, 1e-9)
        metrics = {"samples_per_s": samples / elapsed_s, "data_wait": self._waited_s / elapsed_s}
        self._start, self._waited_s = time.perf_counter(), 0.0
        return metrics


class RunProgress:
    """The display and metric writers of one run; does nothing in every process but the first."""

    def __init__(self, config: TrainConfig, folder: Path, *, start: int, total: int, shown: bool) -> None:
        self._writers: list[_Writer] = []
        self._bar: Progress | None = None
        self._shown = shown
        self._total = total
        if not shown:
            return
        if config.tensorboard:
            self._writers.append(_TensorBoard(folder / "tensorboard"))
        if config.wandb_project is not None:
            self._writers.append(_WeightsAndBiases(config.wandb_project, config.model_dump(), folder))
        if sys.stderr.isatty():
            columns = (TextColumn("train"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[metrics]}"), console=Console(stderr=True))
            self._task = self._bar.add_task("train", total=total, completed=start, metrics="")
            self._bar.start()

    def update(self, step: int, values: dict[str, float]) -> None:
        """Show and record the metrics after `step` steps."""
        if not self._shown:
            return
        for writer in self._writers:
            writer.write(values, step)
        line = _line(values)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, metrics=line)
        else:
            log.info("step %d/%d  %s", step, self._total, line)

    def close(self) -> None:
        """Stop the display and close the writers."""
        if self._bar is not None:
            self._bar.stop()
        for writer in self._writers:
            writer.close()


def _line(values: dict[str, float]) -> str:
    parts = [
        f"loss {values['loss']:.4f}",
        f"scale {values['logit_scale']:.2f}",
        f"{values['samples_per_s']:,.0f} samples/s",
        f"waiting {values['data_wait']:.0%}",
    ]
    if "gpu_gib" in values:
        parts.append(f"{values['gpu_gib']:.1f} GiB")
    if values.get("broken"):
        parts.append(f"{values['broken']:,.0f} broken")
    return "  ".join(parts)
