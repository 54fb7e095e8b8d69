"""AdamW as the paper uses it: decoupled weight decay on all weights that are not gains or biases (section 2.5)."""

import re
from typing import Any

import torch
from torch import nn

_BLOCK = re.compile(r"resblocks\.(\d+)\.|trunk\.(?:stages|blocks)\.(\d+)\.|visual\.layer(\d)\.")
_TOP = re.compile(r"ln_post|proj$|ln_final|text_projection|attnpool|trunk\.norm|head")


def build_optimizer(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    beta1: float,
    beta2: float,
    eps: float,
    image_rate: float = 1.0,
    text_rate: float = 1.0,
    layer_decay: float = 1.0,
) -> torch.optim.AdamW:
    """Return an optimiser; matrices and convolutions decay, gains, biases and scalars do not.

    Each group's `rate` is its factor of the learning rate, to be set by `set_rate`.
    """
    factors = _factors(model, image_rate, text_rate, layer_decay)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = weight_decay if parameter.ndim >= 2 else 0.0
            groups.setdefault((factors[name], decay), []).append(parameter)
    listed: list[dict[str, Any]] = [
        {"params": parameters, "weight_decay": decay, "rate": factor, "lr": learning_rate * factor}
        for (factor, decay), parameters in groups.items()
    ]
    return torch.optim.AdamW(listed, lr=learning_rate, betas=(beta1, beta2), eps=eps, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of every group, times the group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["rate"]


def _factors(model: nn.Module, image_rate: float, text_rate: float, layer_decay: float) -> dict[str, float]:
    """Return each weight's factor: its tower's, times `layer_decay` for each layer above it."""
    depths = {name: _depth(name) for name, _ in model.named_parameters()}
    tops = {
        side: max((depth for name, depth in depths.items() if depth >= 0 and _side(name) == side), default=0) + 1
        for side in ("image", "text", "scale")
    }
    rates = {"image": image_rate, "text": text_rate, "scale": 1.0}
    return {
        name: rates[_side(name)] * layer_decay ** (0 if depth < 0 else tops[_side(name)] - depth)
        for name, depth in depths.items()
    }


def _side(name: str) -> str:
    return "image" if name.startswith("visual.") else "scale" if name in ("logit_scale", "logit_bias") else "text"


def _depth(name: str) -> int:
    """Return 0 for embeddings and stems, n for the n-th block, -1 for what comes after the blocks."""
    if match := _BLOCK.search(name):
        number = next(int(group) for group in match.groups() if group)
        return number if match.group(3) else number + 1
    return -1 if _TOP.search(name) or _side(name) == "scale" else 0
