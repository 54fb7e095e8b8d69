"""The step in all its forms: each way to save memory or to spread the work gives the weights of the plain one."""

import multiprocessing
import os
import socket
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from support.processes import TINY
from torch import Tensor

from trainer import checkpoint
from trainer import parallel as wrap
from trainer.config import TrainConfig, settings_from
from trainer.distributed import World, open_world
from trainer.model import build_model
from trainer.optimizer import build_optimizer
from trainer.parallel import is_sharded
from trainer.precision import autocast, pick_precision
from trainer.step import Stepper

VIT = TINY["architecture"]
RESNET = {**VIT, "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32}}
CONVNEXT = {
    **VIT,
    "vision_cfg": {"image_size": 32, "timm_model_name": "test_convnext", "timm_pool": "avg", "timm_proj": "linear"},
}
PATCHY = {**VIT, "vision_cfg": {**VIT["vision_cfg"], "patch_dropout": 0.5}}
ALONE = World(0, 1, torch.device("cpu"))


def _config(**keys: Any) -> TrainConfig:
    return settings_from({"workspace": ".", "train": {**TINY, "eps": 1e-4, **keys}}, Path()).train


def _stepper(config: TrainConfig, world: World = ALONE) -> Stepper:
    torch.manual_seed(0)
    model = build_model(
        config.architecture, objective=config.objective, flat_logit_scale=is_sharded(config, world)
    ).train()
    wrapped = wrap.wrap(model, config, world)
    optimizer = build_optimizer(model, learning_rate=1e-3, weight_decay=0.2, beta1=0.9, beta2=0.98, eps=config.eps)
    precision = pick_precision(config.precision, world.device)
    scaler = torch.amp.GradScaler("cpu", enabled=precision == torch.float16)
    return Stepper(model, wrapped, optimizer, scaler, config, lambda: autocast(world.device, precision))


def _batch(size: int, seed: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 49_000, (size, 16), generator=generator)
    tokens[:, -1] = 49_407
    return torch.randn(size, 3, 32, 32, generator=generator), tokens


def _weights_after(steps: int, config: TrainConfig, world: World = ALONE, size: int = 16) -> dict[str, Tensor]:
    """Return the whole weights and statistics after some steps on this rank's share of fixed batches."""
    stepper = _stepper(config, world)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    for step in range(steps):
        images, tokens = (side.chunk(world.size)[world.rank] for side in _batch(size, seed=step))
        stepper.step(images.to(memory_format=layout), tokens, learning_rate=1e-3, seed=10 * step + world.rank)
    weights: dict[str, Tensor] = checkpoint.capture(stepper.core, stepper.optimizer)["model"]
    return weights


def _assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], variant: str, **bounds: float) -> None:
    assert found.keys() == expected.keys(), variant
    for name, weight in expected.items():
        torch.testing.assert_close(
            found[name], weight, msg=lambda text, name=name: f"{variant}: {name}: {text}", **bounds
        )


# Each pair: keys that both have, and what the second adds or replaces.
RESNET_KEYS = {"architecture": RESNET, "channels_last": True}
PLAIN_AND_VARIANT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "clipped": ({"max_gradient_norm": 0.1}, {"parallel": "fsdp"}),
    "siglip in parts": ({"objective": "siglip"}, {"parallel": "fsdp", "micro_batch": 4}),
    "checkpointed": ({}, {"parallel": "fsdp", "gradient_checkpointing": True}),
    "fp16": ({"precision": "fp16"}, {"parallel": "fsdp"}),
    "several machines": ({"micro_batch": 4}, {"parallel": "hsdp"}),
    "compiled blocks": ({}, {"parallel": "fsdp", "compile": True}),
    "bf16": ({"precision": "bf16"}, {"parallel": "fsdp"}),
    "resnet": (RESNET_KEYS, {"parallel": "fsdp"}),
    "resnet checkpointed": (RESNET_KEYS, {"parallel": "fsdp", "gradient_checkpointing": True}),
    "timm": ({"architecture": CONVNEXT}, {"parallel": "fsdp"}),
    "compiled": (RESNET_KEYS | {"micro_batch": 4}, {"compile": True, "gradient_checkpointing": True}),
}


def _one_rank(rank: int, port: int, folder: str) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    torch.compile = partial(torch.compile, backend="aot_eager")  # without the minutes of a C++ compiler
    with open_world("cpu") as world:
        results = {
            name: [_weights_after(2, _config(**keys), world) for keys in (plain, plain | variant)]
            for name, (plain, variant) in PLAIN_AND_VARIANT.items()
        }
        if world.is_first:
            torch.save(results, Path(folder) / "results.pt")


@pytest.mark.timeout(900)  # many variants, some compiled
def test_variants_on_2_processes_equal_the_plain_run(tmp_path: Path):
    """One test for all of them: most of its time goes into starting the processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Forked, but not of this process: what native libraries did in other tests is no part of this one.
    multiprocessing.set_forkserver_preload(["timm", "trainer.train"])
    mp.start_processes(_one_rank, (port, str(tmp_path)), nprocs=2, start_method="forkserver")
    results = torch.load(tmp_path / "results.pt")
    assert results.keys() == PLAIN_AND_VARIANT.keys()
    for variant, (plain, other) in results.items():
        bounds = {"rtol": 2e-2, "atol": 5e-3} if variant == "bf16" else {"rtol": 2e-3, "atol": 2e-5}
        _assert_close(other, plain, variant, **bounds)


def test_parts_draw_the_same_in_both_passes_and_each_its_own(monkeypatch: pytest.MonkeyPatch):
    seen: list[Tensor] = []
    features = Stepper._features
    monkeypatch.setattr(
        Stepper, "_features", lambda self, *part: (seen.append(found := features(self, *part)), found)[1]
    )
    stepper = _stepper(_config(architecture=PATCHY, micro_batch=4))
    images, tokens = _batch(4)
    stepper.step(images.repeat(2, 1, 1, 1), tokens.repeat(2, 1), learning_rate=0.0, seed=5)
    first, second, first_again, second_again = (found[0] for found in seen)
    assert torch.equal(first, first_again)
    assert torch.equal(second, second_again)
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("keys", [{"micro_batch": 16}, {"micro_batch": 4}, {"gradient_checkpointing": True}])
def test_batch_norm_counts_each_part_once(keys: dict[str, Any]):
    counted = _weights_after(1, _config(architecture=RESNET, **keys))
    parts = 16 // keys.get("micro_batch", 16)
    assert {int(v) for name, v in counted.items() if name.endswith("num_batches_tracked")} == {parts}


def test_checkpointing_a_resnet_saves_memory_and_changes_nothing():
    saved: list[int] = []

    def weights(**keys: Any) -> dict[str, Tensor]:
        stepper = _stepper(_config(architecture=RESNET, **keys))
        own = {parameter.data_ptr() for parameter in stepper.core.parameters()}
        held: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            held[tensor.data_ptr()] = 0 if tensor.data_ptr() in own else tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            stepper.core.encode_image(_batch(16)[0])
        saved.append(sum(held.values()))
        return _weights_after(3, _config(architecture=RESNET, **keys))

    plain, checkpointed = weights(), weights(gradient_checkpointing=True)
    _assert_close(checkpointed, plain, "checkpointed", rtol=0, atol=0)
    assert saved[1] < saved[0] / 2
