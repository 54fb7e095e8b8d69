"""Prepare a model for training: device and memory format, gradient checkpointing, compilation, DDP or FSDP."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from open_clip.model import CLIP
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from trainer.config import TrainConfig
from trainer.distributed import World
from trainer.errors import TrainerConfigError
from trainer.precision import pick_precision


def is_sharded(config: TrainConfig, world: World) -> bool:
    """Return whether FSDP shards the weights over processes."""
    return config.parallel != "ddp" and world.size > 1


def wrap(model: CLIP, config: TrainConfig, world: World) -> Any:
    """Move a model to this process's device and return the wrapped model to call, which shares its parameters."""
    sharded = is_sharded(config, world)
    if config.sync_batch_norm and world.size > 1:
        if world.device.type != "cuda":
            raise TrainerConfigError("train.sync_batch_norm works on GPUs only: leave it out")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    # FSDP shards contiguous weights only; for its convolutions it is enough that the images are channels_last.
    layout = torch.channels_last if config.channels_last and not sharded else torch.preserve_format
    model.to(world.device, memory_format=layout)
    if config.gradient_checkpointing:
        model.set_grad_checkpointing()
        _checkpoint_bottlenecks(model.visual, is_compiled=config.compile)
    if sharded:
        _shard(model, config, world)
        return model
    called: Any = torch.compile(model) if config.compile else model
    return called if world.size == 1 else _replicated(called, config, world)


def _replicated(called: Any, config: TrainConfig, world: World) -> DistributedDataParallel:
    replicated = DistributedDataParallel(
        called,
        device_ids=[world.device.index] if world.device.type == "cuda" else None,
        gradient_as_bucket_view=True,  # no second copy of the gradients
        # In parts, the scale takes part in the last backward pass only, so the graphs of a step differ.
        static_graph=config.micro_batch is None and not config.compile,
    )
    if config.gradient_compression == "bf16":
        replicated.register_comm_hook(None, bf16_compress_hook)
    return replicated


def _shard(model: CLIP, config: TrainConfig, world: World) -> None:
    """Shard the blocks, each compiled by itself: a graph of the whole model would break at every gathering.

    With bf16, blocks are gathered and computed in it, which halves the traffic; gradients are summed in float32. The
    rest, with the logit scale, whose rounding would move all logits, is gathered in float32 and cast by autocast.
    """
    mesh = _mesh(config, world)
    is_half = pick_precision(config.precision, world.device) == torch.bfloat16
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if is_half else MixedPrecisionPolicy()
    for block in _blocks(model):
        if config.compile:
            block.compile()
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh)
    for side in ("image", "text"):  # `forward` calls the plain methods, with the weights already gathered
        setattr(model, f"gathering_{side}", getattr(model, f"encode_{side}"))
        register_fsdp_forward_method(model, f"gathering_{side}")


def encode_alone(model: CLIP, side: Literal["image", "text"], inputs: Tensor) -> Tensor:
    """Return what one tower alone computes, also where its weights are sharded; every process must call this."""
    features: Tensor = getattr(model, f"gathering_{side}", getattr(model, f"encode_{side}"))(inputs)
    return features


def _mesh(config: TrainConfig, world: World) -> DeviceMesh:
    """Return all processes in a row; for "hsdp", a row per machine: weights are sharded within each machine only."""
    if config.parallel == "fsdp" or world.local_size == world.size:
        return init_device_mesh(world.device.type, (world.size,))
    shape = (world.size // world.local_size, world.local_size)
    return init_device_mesh(world.device.type, shape, mesh_dim_names=("replicate", "shard"))


def train_mode(model: CLIP, lock: tuple[str, ...]) -> None:
    """Put a model into training mode; a locked image tower keeps the statistics of its BatchNorm."""
    model.train()
    if "image" in lock:
        for module in model.visual.modules():
            if isinstance(module, _BatchNorm) and not any(p.requires_grad for p in module.parameters()):
                module.eval()


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
