"""An exponential moving average of the weights, sharded as they are."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class Average:
    """The average of a model's parameters; buffers are the model's own."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values: dict[str, Tensor] = {name: p.detach().clone() for name, p in model.named_parameters()}
        self._parameters = dict(model.named_parameters())

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the present weights by 1 - decay."""
        averages = [_local(value) for value in self.values.values()]
        torch._foreach_lerp_(averages, [_local(p) for p in self._parameters.values()], 1 - self.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model have the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            average, weight = _local(self.values[name]), _local(parameter)
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)

    def state(self) -> dict[str, Tensor]:
        """Return the whole average on the CPU. Every process must call this."""
        return {name: _whole(value).cpu() for name, value in self.values.items()}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Take over a whole average.

        Raises:
            KeyError, RuntimeError: it is of another model.
        """
        for name, value in self.values.items():
            new: Any = state[name].reshape(value.shape).to(value.device)
            if isinstance(value, DTensor):
                from torch.distributed.tensor import distribute_tensor

                new = distribute_tensor(new, value.device_mesh, value.placements)
            value.copy_(new)


def _local(value: Any) -> Tensor:
    local: Tensor = value.to_local() if isinstance(value, DTensor) else value.detach()
    return local


def _whole(value: Any) -> Tensor:
    whole: Tensor = value.full_tensor() if isinstance(value, DTensor) else value
    return whole
