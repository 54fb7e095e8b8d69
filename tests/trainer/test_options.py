"""Options of the recipe: schedules, locked towers, rates per tower and layer, an average of the weights."""

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from support.processes import TINY, run, tiny_settings
from torch import nn

from trainer import checkpoint, init_weights
from trainer.ema import Average
from trainer.errors import TrainerConfigError, TrainerError
from trainer.model import build_model
from trainer.optimizer import build_optimizer, set_rate
from trainer.schedule import learning_rate
from trainer.train import train

ADAM = {"learning_rate": 1.0, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.98, "eps": 1e-6}


def test_constant_and_cooldown_schedules():
    shape: dict[str, Any] = {"peak": 2.0, "warmup_steps": 4, "total_steps": 100}
    constant = [learning_rate(step, **shape, schedule="constant") for step in range(101)]
    assert constant[:4] == [0.5, 1.0, 1.5, 2.0]
    assert set(constant[4:]) == {2.0}
    cooled = [learning_rate(step, **shape, schedule="cooldown", cooldown_steps=20) for step in range(101)]
    assert set(cooled[4:81]) == {2.0}
    assert cooled[81:] == pytest.approx([2.0 * (100 - step) / 20 for step in range(81, 101)])


def _rates(**keys: float) -> dict[str, float]:
    architecture = {**TINY["architecture"], "vision_cfg": {**TINY["architecture"]["vision_cfg"], "layers": 3}}
    model = build_model(architecture)
    optimizer = build_optimizer(model, **ADAM, **keys)
    set_rate(optimizer, 10.0)
    of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    return {name: of[id(parameter)] for name, parameter in model.named_parameters()}


def test_rates_per_tower_and_layer():
    assert set(_rates().values()) == {10.0}
    towers = _rates(image_rate=0.5, text_rate=0.1)
    assert {name: towers[name] for name in ("visual.proj", "token_embedding.weight", "logit_scale")} == {
        "visual.proj": 5.0, "token_embedding.weight": 1.0, "logit_scale": 10.0,
    }  # fmt: skip
    layers = _rates(layer_decay=0.5)
    assert layers["visual.proj"] == layers["logit_scale"] == layers["text_projection"] == 10.0
    blocks = [layers[f"visual.transformer.resblocks.{number}.ln_1.weight"] for number in range(3)]
    assert blocks == [1.25, 2.5, 5.0]
    assert layers["visual.conv1.weight"] == layers["visual.positional_embedding"] == 0.625
    assert layers["transformer.resblocks.0.ln_1.weight"] == 5.0
    assert layers["token_embedding.weight"] == 2.5


def test_weight_decay_is_for_matrices_only():
    model = build_model(TINY["architecture"])
    optimizer = build_optimizer(model, **ADAM, layer_decay=0.7)
    for group in optimizer.param_groups:
        assert {parameter.ndim >= 2 for parameter in group["params"]} == {group["weight_decay"] > 0}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def _moved(workspace: Path, output: Path, **keys: Any) -> set[str]:
    """Return the weights that two runs of one and two steps do not share."""
    saved = []
    for steps in (1, 2):
        train(tiny_settings(workspace, output, steps=steps, warmup_steps=0, schedule="constant", **keys))
        saved.append(checkpoint.load(checkpoint.list_checkpoints(output / "checkpoints")[-1])["model"])
    return {name for name in saved[0] if not torch.equal(saved[0][name], saved[1][name])}


@pytest.mark.parametrize("side", ["image", "text"])
def test_a_locked_tower_does_not_learn(scenes: Path, tmp_path: Path, side: str):
    moved = _moved(scenes, tmp_path, lock=[side])
    assert {name.startswith("visual.") for name in moved - {"logit_scale"}} == {side == "text"}


def test_a_locked_resnet_keeps_its_statistics(scenes: Path, tmp_path: Path):
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32}
    architecture = {**TINY["architecture"], "vision_cfg": vision}
    moved = _moved(scenes, tmp_path, model="tiny-resnet", architecture=architecture, lock=["image"])
    assert not {name for name in moved if name.startswith("visual.")}
    assert "text_projection" in moved


def test_of_a_resnet_only_the_whole_tower_is_locked(scenes: Path, tmp_path: Path):
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32}
    architecture = {**TINY["architecture"], "vision_cfg": vision}
    keys: dict[str, Any] = {"model": "tiny-resnet", "architecture": architecture, "unlocked_layers": 1}
    with pytest.raises(TrainerConfigError, match=r"^train\.unlocked_layers = 1: "):
        train(tiny_settings(scenes, tmp_path, lock=["image"], **keys))


def test_some_layers_of_a_locked_tower_learn(scenes: Path, tmp_path: Path):
    moved = _moved(scenes, tmp_path, lock=["image"], unlocked_layers=1)
    assert "visual.proj" in moved
    assert "visual.conv1.weight" not in moved


def test_the_average_follows_the_weights():
    model = nn.Linear(2, 2)
    average = Average(model, 0.75)
    first = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    average.update()
    torch.testing.assert_close(average.values["weight"], first + 0.25)
    with average.in_place():
        torch.testing.assert_close(model.weight.detach(), first + 0.25)
    torch.testing.assert_close(model.weight.detach(), first + 1.0)
    torch.testing.assert_close(average.values["weight"], first + 0.25)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_the_average_is_kept_exported_and_the_same_on_two_processes(scenes: Path, tmp_path: Path, parallel: str):
    keys: dict[str, Any] = {"ema": 0.8, "steps": 6, "checkpoint_steps": 3, "eps": 1e-4}
    assert run(tiny_settings(scenes, tmp_path / "one", **keys)) == [0]
    for steps in (3, 6):  # resumed
        settings = tiny_settings(scenes, tmp_path / "two", **keys | {"steps": steps}, parallel=parallel)
        assert run(settings, processes=2) == [0, 0]
    alone = tiny_settings(scenes, tmp_path / "again", **keys | {"steps": 3})
    assert run(alone) == [0]
    assert run(tiny_settings(scenes, tmp_path / "again", **keys)) == [0]
    saved = [checkpoint.load(tmp_path / out / "checkpoints" / "step-000000006.pt") for out in ("again", "two")]
    for name, value in saved[0]["ema"].items():
        torch.testing.assert_close(saved[1]["ema"][name], value, rtol=2e-3, atol=2e-5, msg=name)
    assert not torch.equal(saved[0]["ema"]["visual.proj"], saved[0]["model"]["visual.proj"])
    model, *_ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}/two/model-ema")
    torch.testing.assert_close(model.visual.proj, saved[1]["ema"]["visual.proj"], rtol=0, atol=0)


def test_a_run_starts_from_a_tag_of_open_clip(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    exported = train(tiny_settings(scenes, tmp_path / "before", steps=1))
    assert exported is not None
    asked: list[tuple[str, str]] = []

    def config(name: str, tag: str) -> dict[str, str]:
        asked.append((name, tag))
        return {"url": "somewhere"} if tag == "openai" else {}

    monkeypatch.setattr(init_weights, "get_pretrained_cfg", config)
    weights = str(exported / "open_clip_model.safetensors")
    monkeypatch.setattr(init_weights, "download_pretrained", lambda found: weights)
    still = {"steps": 1, "learning_rate": 1e-15}
    train(tiny_settings(scenes, tmp_path / "after", initial="openai", **still))
    assert asked == [("tiny", "openai")]
    saved = [checkpoint.load(tmp_path / out / "checkpoints" / "step-000000001.pt") for out in ("before", "after")]
    torch.testing.assert_close(saved[1]["model"], saved[0]["model"], rtol=0, atol=1e-12)
    with pytest.raises(TrainerError, match="neither a file nor a tag of open_clip for tiny, which has none"):
        train(tiny_settings(scenes, tmp_path / "other", initial="laion3b", **still))


def test_synchronised_batch_norm_needs_gpus(scenes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    assert run(tiny_settings(scenes, tmp_path, sync_batch_norm=True), processes=2) == [2, 2]
    assert "train.sync_batch_norm works on GPUs only" in capfd.readouterr().out


def test_compressed_averages_are_near_the_plain_ones(scenes: Path, tmp_path: Path):
    keys: dict[str, Any] = {"steps": 3, "eps": 1e-4}
    for how in ("none", "bf16"):
        assert run(tiny_settings(scenes, tmp_path / how, gradient_compression=how, **keys), processes=2) == [0, 0]
    plain, half = (
        checkpoint.load(tmp_path / how / "checkpoints" / "step-000000003.pt")["model"] for how in ("none", "bf16")
    )
    assert any(not torch.equal(plain[name], half[name]) for name in plain)
    for name, weight in plain.items():
        torch.testing.assert_close(half[name], weight, rtol=2e-2, atol=2e-4, msg=name)


def test_wrong_options_are_one_line(tmp_path: Path):
    for keys in ({"lock": ["both"]}, {"layer_decay": 0.0}, {"ema": 1.0}, {"schedule": "linear"}):
        with pytest.raises(TrainerConfigError) as caught:
            tiny_settings(tmp_path, tmp_path, **keys)
        assert str(caught.value).startswith(f"train.{next(iter(keys))}")
