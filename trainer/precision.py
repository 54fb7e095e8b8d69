"""The number format of the forward pass: bf16, fp16 or float32."""

from contextlib import nullcontext
from typing import Any

import torch


def pick_precision(wanted: str, device: torch.device) -> torch.dtype:
    """Return the type that matrix products are computed in."""
    if wanted == "auto":
        wanted = "bf16" if device.type == "cuda" else "fp32"
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[wanted]


def autocast(device: torch.device, precision: torch.dtype) -> Any:
    """Return the context in which a model runs in this precision."""
    return nullcontext() if precision == torch.float32 else torch.autocast(device.type, dtype=precision)
