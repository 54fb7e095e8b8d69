"""The learning rate as a pure function of the step (CLIP section 2.5; open_clip's constant rates)."""

import math
from typing import Literal

Schedule = Literal["cosine", "constant", "cooldown"]


def learning_rate(
    step: int,
    *,
    peak: float,
    warmup_steps: int,
    total_steps: int,
    schedule: Schedule = "cosine",
    cooldown_steps: int = 0,
) -> float:
    """Return the rate of step 0, 1, ...: linear warm-up to `peak`, then by `schedule`.

    cosine: to 0 at `total_steps`. constant: `peak`. cooldown: `peak`, and linear to 0 over the last `cooldown_steps`.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    if schedule == "cooldown":
        return peak * min(1.0, max(0, total_steps - step) / max(1, cooldown_steps))
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
