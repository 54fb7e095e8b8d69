"""Prepare a model for training: device and memory format, gradient checkpointing, compilation, DDP or FSDP."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from open_clip.model import CLIP
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from trainer.config import TrainConfig
from trainer.distributed import World


def is_sharded(config: TrainConfig, world: World) -> bool:
    """Return whether FSDP shards the weights over processes."""
    return config.parallel == "fsdp" and world.size > 1


def wrap(model: CLIP, config: TrainConfig, world: World) -> Any:
    """Move a model to this process's device and return the wrapped model to call, which shares its parameters."""
    sharded = is_sharded(config, world)
    # FSDP shards contiguous weights only; for its convolutions it is enough that the images are channels_last.
    layout = torch.channels_last if config.channels_last and not sharded else torch.preserve_format
    model.to(world.device, memory_format=layout)
    if config.gradient_checkpointing:
        model.set_grad_checkpointing()
        _checkpoint_bottlenecks(model.visual, is_compiled=config.compile)
    if sharded:
        mesh = init_device_mesh(world.device.type, (world.size,))
        for block in _blocks(model):
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    called: Any = torch.compile(model) if config.compile else model
    if world.size == 1 or sharded:
        return called
    return DistributedDataParallel(called, device_ids=[world.device.index] if world.device.type == "cuda" else None)


def _blocks(model: CLIP) -> Iterator[nn.Module]:
    """Yield the parts of a model that FSDP gathers one at a time; all others are gathered for the whole step.

    The image towers of timm have none of these attributes, so they are gathered whole.
    """
    yield from model.transformer.resblocks
    if hasattr(model.visual, "transformer"):
        yield from model.visual.transformer.resblocks
    yield from _stages(model.visual)


def _stages(visual: nn.Module) -> list[nn.Module]:
    """Return the four stages of an open_clip ResNet; an empty list for other towers."""
    return [getattr(visual, name) for name in ("layer1", "layer2", "layer3", "layer4") if hasattr(visual, name)]


def _checkpoint_bottlenecks(visual: nn.Module, *, is_compiled: bool) -> None:
    """Recompute the activations of a ResNet's blocks in the backward pass, which open_clip does not support."""
    for block in (block for stage in _stages(visual) for block in stage.children()):
        # A compiled graph writes the statistics in its forward part only, and takes no context.
        keeping = {} if is_compiled else {"context_fn": partial(_contexts_of_both_passes, block)}
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False, **keeping)


def _contexts_of_both_passes(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), frozen_batch_norm(block)


@contextmanager
def frozen_batch_norm(model: nn.Module) -> Iterator[None]:
    """Leave the running statistics unchanged, so that two passes over a batch count it once."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    originals = [dict(norm._buffers) for norm in norms]
    for norm, buffers in zip(norms, originals, strict=True):
        norm._buffers.update({name: buffer.clone() for name, buffer in buffers.items() if buffer is not None})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, originals, strict=True):
            norm._buffers.update(buffers)
