"""The metrics of training: loss, speed and what limits it, unusable samples."""

import math
from collections import Counter

import torch

from trainer.config import TrainConfig
from trainer.distributed import World
from trainer.errors import TrainerError
from trainer.flops import flops_per_pair, peak_flops
from trainer.progress import RunProgress, Stopwatch
from trainer.saving import STABILITY_ADVICE
from trainer.step import Stepper


class Reporter:
    """Sums what the steps since the last report had. Every process calls every method."""

    def __init__(self, config: TrainConfig, world: World, stepper: Stepper, broken: Counter[str], start: int) -> None:
        self.watch = Stopwatch()
        self.broken = broken
        self.unlogged_steps = 0
        self._config, self._world, self._stepper = config, world, stepper
        self._loss_sum = torch.zeros((), device=world.device)
        self._flops, self._peak = flops_per_pair(config), peak_flops(world.device)

    def note(self, loss: torch.Tensor, broken: dict[str, int]) -> None:
        """Count a finished step."""
        self._loss_sum += loss
        self.broken.update(broken)
        self.unlogged_steps += 1

    def report(self, progress: RunProgress, step: int, learning_rate: float) -> None:
        """Show and record the metrics of the steps up to `step` since the last report.

        Raises:
            TrainerError: the loss is NaN or infinite, or too many samples are unusable.
        """
        steps = self.unlogged_steps
        loss = self._world.mean(self._loss_sum / steps)  # waits for the device, so the time is that of finished steps
        speed = self._speed(self.watch.lap(steps * self._config.batch), steps)
        self._loss_sum, self.unlogged_steps = torch.zeros_like(self._loss_sum), 0
        if not math.isfinite(loss):
            raise TrainerError(
                f"the loss is {loss} between steps {step - steps + 1} and {step}; no checkpoint "
                f"of these steps is written: {STABILITY_ADVICE}"
            )
        metrics = {"loss": loss, "logit_scale": self._scale(), **self._broken(step), **speed}
        progress.update(step, metrics | {"learning_rate": learning_rate})

    def _scale(self) -> float:
        scale = self._stepper.core.logit_scale.detach()
        return float((scale.full_tensor() if hasattr(scale, "full_tensor") else scale).exp())

    def _broken(self, step: int) -> dict[str, float]:
        """Return how many samples are unusable. Those without a caption are dropped; of others, few are tolerated."""
        broken = self._world.sum_counts(self.broken)
        without_caption = broken.pop("no_caption", 0)
        seen = step * self._config.batch
        if broken.total() > self._config.max_broken_share * seen:
            reasons = ", ".join(f"{count} {reason}" for reason, count in broken.most_common())
            raise TrainerError(
                f"{broken.total()} of {seen} samples are unusable ({reasons}), more than train.max_broken_share = "
                f"{self._config.max_broken_share}: write the shards again, or raise the limit"
            )
        return {"broken": float(broken.total()), "no_caption": float(without_caption)}

    def _speed(self, lap: dict[str, float], steps: int) -> dict[str, float]:
        per_device = lap["samples_per_s"] / self._world.size
        speed = {**lap, "step_ms": 1_000 * steps * self._config.batch / lap["samples_per_s"] / steps}
        speed["tflops"] = per_device * self._flops / 1e12  # of this process's device, without recomputation
        if self._peak is not None:
            speed["mfu"] = per_device * self._flops / self._peak
        if self._world.device.type == "cuda":
            speed["gpu_gib"] = torch.cuda.max_memory_allocated() / 2**30
        return speed
