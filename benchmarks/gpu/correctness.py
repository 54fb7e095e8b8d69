"""Whether the device computes what the CPU does: loss, curves, resize, and what DDP and FSDP make of a step."""

import os
import socket
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.functional import normalize

import trainer.parallel
from benchmarks.gpu.bench import Bench, stepper_of, timed
from trainer.data import MAX_CHUNK, to_model_input
from trainer.distributed import World
from trainer.loss import Objective, contrastive_loss
from trainer.resize import cut, packed, resize, resized


def loss_against_cpu(bench: Bench) -> None:
    """Loss and gradients in float32 and TF32 against float64 on the CPU, in several slices."""
    for objective in ("infonce", "siglip"):
        expected = loss_and_gradients(torch.device("cpu"), torch.float64, objective, tf32=False)
        for tf32 in (False, True):
            found = loss_and_gradients(bench.device, torch.float32, objective, tf32=tf32)
            errors = [float((a - b).norm() / a.norm()) for a, b in zip(expected, found, strict=True)]
            bench.say(
                "loss_against_cpu", objective=objective, tf32=tf32,
                relative_errors=dict(zip(("loss", "image", "text", "scale"), errors, strict=True)),
            )  # fmt: skip
            assert max(errors) < (5e-3 if tf32 else 1e-4), errors


def loss_and_gradients(device: torch.device, dtype: torch.dtype, objective: Objective, *, tf32: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    image, text = (normalize(torch.randn(512, 64, generator=generator), dim=1) for _ in range(2))
    image, text = (side.to(device, dtype).requires_grad_() for side in (image, text))
    scale = torch.tensor(50.0, dtype=dtype, device=device, requires_grad=True)
    bias = torch.tensor(-5.0, dtype=dtype, device=device, requires_grad=True) if objective == "siglip" else None
    loss = contrastive_loss(image, text, scale, bias, objective=objective, max_logits=70_000, tf32=tf32)
    loss.backward()
    found = [loss.detach(), image.grad, text.grad, scale.grad]
    return [value.double().cpu() for value in found if value is not None]


def curves(bench: Bench) -> None:
    """Steps of the small model on fixed batches: every precision on the device against float32 on the CPU."""
    steps = 3 if bench.small else 12
    reference = losses_of(bench, torch.device("cpu"), steps, precision="fp32")
    kinds: dict[str, dict[str, Any]] = {
        "fp32": {"precision": "fp32"}, "bf16": {"precision": "bf16"}, "bf16 in parts": {"micro_batch": 16},
        "fp16": {"precision": "fp16"}, "bf16 compiled": {"compile": True},
    }  # fmt: skip
    wrong = {}
    for name, keys in kinds.items():
        if bench.device.type == "cpu" and name in ("bf16 compiled", "fp16"):
            continue  # a CPU needs a C++ compiler for the one, and minutes for the other
        found = losses_of(bench, bench.device, steps, **keys)
        worst = max(abs(a - b) for a, b in zip(found, reference, strict=True))
        bench.say("curves", kind=name, steps=steps, first=found[0], last=found[-1], worst_from_cpu_fp32=worst)
        if not worst < (1e-2 if name == "fp32" else 0.1):
            wrong[name] = worst
    assert not wrong, wrong


def losses_of(bench: Bench, device: torch.device, steps: int, world: World | None = None, **keys: Any) -> list[float]:
    batch = 32 if bench.small else 128
    config = bench.config(model="tiny", batch=batch, **keys)
    stepper, generator = stepper_of(config, device, world), torch.Generator().manual_seed(5)
    losses = []
    for step in range(steps):
        images = torch.randint(0, 256, (batch, 64, 64, 3), dtype=torch.uint8, generator=generator)
        tokens = torch.randint(1, 49_000, (batch, 16), generator=generator)
        tokens[:, -1] = 49_407
        pixels = to_model_input(images.to(device))
        losses.append(stepper.step(pixels, tokens.to(device), learning_rate=1e-3, seed=step).item())
    return losses


def resize_against_cpu(bench: Bench) -> None:
    """The device's resize against Pillow's, and its speed."""
    random, size = np.random.default_rng(0), 32 if bench.small else 224
    images = [random.integers(0, 256, (256, 256 + 20 * n, 3), dtype=np.uint8) for n in range(8)]
    crops = [cut(image, 3.7 + n, 2.2, 245.3, size) for n, image in enumerate(images)]
    pixels, boxes = (tensor.to(bench.device) for tensor in packed(crops))
    found = resize(pixels, boxes, size).cpu().numpy().astype(int)
    expected = [resized(Image.fromarray(image), 3.7 + n, 2.2, 245.3, size) for n, image in enumerate(images)]
    difference = np.abs(found - np.stack(expected).astype(int))
    many, many_boxes = pixels.repeat(MAX_CHUNK // 8, 1, 1, 1), boxes.repeat(MAX_CHUNK // 8, 1)
    seconds = timed(bench, lambda: resize(many, many_boxes, size))
    bench.say(
        "resize", worst_levels=int(difference.max()), share_that_differs=float((difference > 0).mean()),
        samples_per_s=round(MAX_CHUNK / seconds),
    )  # fmt: skip
    assert difference.max() <= 1


def collectives(bench: Bench) -> None:
    """The collectives of a step in a group of one process, and DDP and FSDP beside the plain model."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "0", "WORLD_SIZE": "1"}
    os.environ |= variables
    dist.init_process_group("cpu:gloo,cuda:nccl" if bench.device.type == "cuda" else "gloo")
    try:
        rows = torch.arange(6.0, device=bench.device).reshape(3, 2)
        gathered, scattered = torch.empty_like(rows), torch.empty_like(rows)
        dist.all_gather_into_tensor(gathered, rows)
        dist.reduce_scatter_tensor(scattered, gathered)
        assert bool((scattered == rows).all())
        plain = losses_of(bench, bench.device, 3, precision="fp32")
        world = World(0, 2, bench.device, local_size=2)  # wrapped as for two processes, in a mesh of one
        mesh = partial(init_device_mesh, bench.device.type, (1,))
        with patch.object(trainer.parallel, "_mesh", lambda config, world: mesh()):
            for parallel in ("ddp", "fsdp", "hsdp"):
                found = losses_of(bench, bench.device, 3, world, precision="fp32", parallel=parallel)
                bench.say("collectives", parallel=parallel, worst_from_plain=max(map(abs, np.subtract(found, plain))))
                np.testing.assert_allclose(found, plain, rtol=1e-4)
    finally:
        dist.destroy_process_group()
        for name in variables:
            del os.environ[name]
