"""AdamW as the paper uses it: decoupled weight decay on all weights that are not gains or biases (section 2.5)."""

import torch
from torch import nn


def build_optimizer(
    model: nn.Module, *, learning_rate: float, weight_decay: float, beta1: float, beta2: float, eps: float
) -> torch.optim.AdamW:
    """Return an optimiser with two groups: matrices and convolutions decay, gains, biases and scalars do not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(beta1, beta2), eps=eps, fused=True)
