"""Progress and metrics of a run: a progress bar or log lines, `metrics.jsonl`, TensorBoard and Weights & Biases.

A run that resumes from step n drops what an interrupted one recorded after n, so every curve has each step once.
"""

import json
import logging
import os
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trainer.config import TrainConfig
from trainer.errors import TrainerConfigError, TrainerError, one_line

log = logging.getLogger(__name__)
MUCH_WAITING = 0.05
"""A fraction of the time spent waiting for data above which the log says what to do."""


class _Writer(Protocol):
    def write(self, values: dict[str, float], step: int) -> None:
        """Record the values of a step, by full names such as `train/loss`."""

    def close(self) -> None:
        """Flush and close the open files."""


class _JsonLines:
    """One object per line: `{"step": 10, "train/loss": 4.2, ...}`."""

    def __init__(self, path: Path, start: int) -> None:
        kept = [line for line in _lines(path) if _step_of(line) <= start]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(kept))
        os.replace(partial, path)
        self._file = path.open("a")

    def write(self, values: dict[str, float], step: int) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines(keepends=True) if path.exists() else []


def _step_of(line: str) -> float:
    """Return the step of a line; infinity for one that a killed run left unfinished."""
    with suppress(ValueError, KeyError, TypeError):
        return int(json.loads(line)["step"]) if line.endswith("\n") else float("inf")
    return float("inf")


class _TensorBoard:
    def __init__(self, folder: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=start + 1)  # hides what was recorded after `start`

    def write(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    """One run over all restarts: its id is in `wandb_id` in the output folder."""

    def __init__(self, project: str, settings: dict[str, Any], folder: Path) -> None:
        try:
            import wandb
        except ImportError as error:
            raise TrainerConfigError(
                "train.wandb_project needs wandb: run pip install '.[wandb]' in the project's folder"
            ) from error
        try:
            self._run = wandb.init(
                project=project, config=settings, dir=str(folder), id=_run_id(folder / "wandb_id"), resume="allow"
            )
        except wandb.Error as error:  # no key, or no connection
            raise TrainerError(
                f"train.wandb_project = {project!r}: {one_line(error)} Or set WANDB_MODE=offline"
            ) from error
        # wandb drops values of steps before its own counter, such as those done again after a crash; ours are x values
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, values: dict[str, float], step: int) -> None:
        self._run.log({**values, "step": step})

    def close(self) -> None:
        self._run.finish()


def _run_id(path: Path) -> str:
    if not path.exists():
        path.write_text(uuid.uuid4().hex)
    return path.read_text().strip()


class Stopwatch:
    """Measures how long steps take, and the fraction of it spent waiting for data."""

    def __init__(self) -> None:
        self._start = self._mark = time.perf_counter()
        self._waited_s = 0.0

    def data_arrived(self) -> None:
        """Count the time since the last step ended as waiting."""
        self._waited_s += time.perf_counter() - self._mark

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Leave out the time of the context: saving and evaluating are not training."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

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
        self._shown, self._reports, self._advised = shown, 0, False
        self._total = total
        if not shown:
            return
        if config.wandb_project is not None:  # first: its package may be missing
            self._writers.append(_WeightsAndBiases(config.wandb_project, config.model_dump(), folder))
        self._writers.append(_JsonLines(folder / "metrics.jsonl", start))
        if config.tensorboard:
            self._writers.append(_TensorBoard(folder / "tensorboard", start))
        if sys.stderr.isatty():
            columns = (TextColumn("train"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[metrics]}"), console=Console(stderr=True))
            self._task = self._bar.add_task("train", total=total, completed=start, metrics="")
            self._bar.start()

    def update(self, step: int, values: dict[str, float]) -> None:
        """Show and record the metrics after `step` steps."""
        if not self._shown:
            return
        self._write(step, "train", values)
        self._advise(values["data_wait"])
        line = _line(values)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, metrics=line)
        else:
            log.info("step %d/%d  %s", step, self._total, line)

    def _advise(self, data_wait: float) -> None:
        """Name the remedies once, where the loader is too slow after the first report."""
        self._reports += 1
        if data_wait > MUCH_WAITING and self._reports > 1 and not self._advised:
            self._advised = True
            log.warning(
                "the steps wait for data %.0f %% of the time: raise train.workers if CPUs are idle; write the shards "
                "with a shorter side near the model's image size; raise train.cache_gib or train.lanes if the shards "
                "are remote", 100 * data_wait,
            )  # fmt: skip

    def evaluated(self, step: int, values: dict[str, float]) -> None:
        """Show and record what the model scored after `step` steps."""
        if not self._shown:
            return
        self._write(step, "val", values)
        line = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        if self._bar is not None:
            self._bar.console.print(f"step {step}  {line}")
        else:
            log.info("step %d/%d  evaluated: %s", step, self._total, line)

    def _write(self, step: int, group: str, values: dict[str, float]) -> None:
        for writer in self._writers:
            writer.write({f"{group}/{name}": value for name, value in values.items()}, step)

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
        f"{values['step_ms']:,.0f} ms/step",
        f"waiting {values['data_wait']:.0%}",
    ]
    if "mfu" in values:
        parts.append(f"MFU {values['mfu']:.0%}")
    if "gpu_gib" in values:
        parts.append(f"{values['gpu_gib']:.1f} GiB")
    if values.get("broken"):
        parts.append(f"{values['broken']:,.0f} broken")
    if values.get("no_caption"):
        parts.append(f"{values['no_caption']:,.0f} without caption")
    return "  ".join(parts)
