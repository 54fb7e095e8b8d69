"""One optimiser step: features, loss over the global batch, gradients; in micro-batches if `micro_batch` is set."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from open_clip.model import CLIP
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from trainer.config import TrainConfig
from trainer.ema import Average
from trainer.loss import contrastive_loss
from trainer.model import clamp_logit_scale
from trainer.optimizer import set_rate
from trainer.order import hash64
from trainer.parallel import frozen_batch_norm
from trainer.precision import pick_precision

Part = tuple[Tensor, Tensor, int]  # images, tokens, and the seed of dropout
Features = tuple[Any, ...]  # image and text (b, D), exp(t), bias or None


@dataclass(frozen=True)
class Stepper:
    """The model, optimiser and settings of a step; the training loop passes the batches."""

    core: CLIP  # the parameters
    model: Any  # `core` as wrapped by DDP, FSDP or compile; this one is called
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    config: TrainConfig
    autocast: Callable[[], AbstractContextManager[Any]]
    average: Average | None = None

    def step(self, images: Tensor, tokens: Tensor, *, learning_rate: float, seed: int) -> Tensor:
        """Update the weights on this rank's part of the global batch; return this rank's part of the loss.

        `images`: (b, 3, size, size) normalised; `tokens`: (b, context). `seed`: of dropout, different for each step
        and rank.
        """
        set_rate(self.optimizer, learning_rate)
        self.optimizer.zero_grad(set_to_none=True)
        size = self.config.micro_batch or len(images)
        pairs = zip(images.split(size), tokens.split(size), strict=True)
        parts: list[Part] = [(*pair, int(hash64(seed, number)[0])) for number, pair in enumerate(pairs)]
        loss = self._backward_at_once(parts[0]) if len(parts) == 1 else self._backward_in_parts(parts)
        if self.config.max_gradient_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.core.parameters(), self.config.max_gradient_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        clamp_logit_scale(self.core, self.config.max_logit_scale)
        if self.average is not None:
            self.average.update()
        return loss

    def _loss(self, *features: Any) -> Tensor:
        return contrastive_loss(*features, objective=self.config.objective, tf32=self.uses_tf32)

    @property
    def uses_tf32(self) -> bool:
        """Whether a GPU rounds the features to 10 bits of mantissa for the logits; bf16 has left them 7."""
        trains_in_fp32 = pick_precision(self.config.precision, self.core.logit_scale.device) == torch.float32
        return self.config.logits == "tf32" or (self.config.logits == "auto" and not trains_in_fp32)

    def _features(self, images: Tensor, tokens: Tensor, seed: int) -> Features:
        torch.manual_seed(seed)  # a part computed again, or after a resume, gets the same dropout
        with self.autocast():
            image, text, scale, *bias = self.model(images, tokens)
        return image, text, scale, bias[0] if bias else None

    def _backward_at_once(self, part: Part) -> Tensor:
        loss = self._loss(*self._features(*part))
        self.scaler.scale(loss).backward()
        return loss.detach()

    def _backward_in_parts(self, parts: list[Part]) -> Tensor:
        """Compute the loss of the whole batch with the memory of one part (GradCache, arXiv 2101.06983).

        First all features without a graph, then the loss and its gradients by the features, then each part again to
        propagate its features' gradients to the weights.
        """
        with torch.no_grad(), frozen_batch_norm(self.core), self._kept_gathered():
            features = [self._features(*part) for part in parts]
        image, text = (torch.cat(side).requires_grad_() for side in list(zip(*features, strict=True))[:2])
        scalars: list[Any] = [None if value is None else value.detach().requires_grad_() for value in features[0][2:]]
        loss = self._loss(image, text, *scalars)
        loss.backward()
        assert image.grad is not None
        assert text.grad is not None
        start = 0
        for number, part in enumerate(parts):
            is_last = number == len(parts) - 1
            here = slice(start, start := start + len(part[0]))
            with self._synchronised(is_last):
                outputs = self._features(*part)
                surrogate = _dot(outputs[0], image.grad[here]) + _dot(outputs[1], text.grad[here])
                if is_last:  # the scale and bias have one gradient, not one for each part
                    for value, leaf in zip(outputs[2:], scalars, strict=True):
                        surrogate = surrogate if leaf is None else surrogate + _dot(value, leaf.grad)
                self.scaler.scale(surrogate).backward()
        return loss.detach()

    @contextmanager
    def _kept_gathered(self) -> Iterator[None]:
        """Gather sharded weights once for all parts of the pass without gradients, and for the first one after it."""
        blocks = [
            module for module in self.core.modules() if isinstance(module, FSDPModule) and module is not self.core
        ]
        for block in blocks:  # the rest is never freed before the backward pass: the scale and bias are outputs
            block.set_reshard_after_forward(False, recurse=False)
        yield
        for block in blocks:
            block.set_reshard_after_forward(True, recurse=False)

    @contextmanager
    def _synchronised(self, last: bool) -> Iterator[None]:
        """Average gradients over ranks only once, with the last part."""
        if isinstance(self.core, FSDPModule):
            self.core.set_requires_gradient_sync(last)
            yield
        else:
            waits = isinstance(self.model, DistributedDataParallel) and not last
            with self.model.no_sync() if waits else nullcontext():
                yield


def _dot(value: Tensor, gradient: Tensor) -> Tensor:
    return (value * gradient).sum()
