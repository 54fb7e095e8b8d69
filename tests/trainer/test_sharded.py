"""Checkpoints in shards: written beside the steps, read by any number of processes, exported like files."""

import functools
import os
import signal
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from support.processes import run, tiny_settings

from trainer import checkpoint, sharded
from trainer.data import Batch
from trainer.errors import TrainerError
from trainer.export import export_model
from trainer.train import train

SHARDED: dict[str, Any] = {"checkpoint_format": "sharded", "eps": 1e-4, "steps": 12, "checkpoint_steps": 5}


def _whole(folder: Path) -> dict[str, torch.Tensor]:
    return sharded.read_checkpoint(checkpoint.list_checkpoints(folder / "checkpoints")[-1])["model"]


def _close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], **bounds: float) -> None:
    assert one.keys() == other.keys()
    for name, weight in one.items():
        torch.testing.assert_close(weight, other[name], msg=name, **bounds)


def _kill_at(folder: Path, kill: int, step: int, batch: Batch) -> None:
    mark = folder / "killed"
    if step == kill and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_run_goes_on_exactly(scenes: Path, tmp_path: Path):
    plain = {**SHARDED, "checkpoint_format": "file"}
    train(tiny_settings(scenes, tmp_path / "file", **plain, ema=0.9))
    settings = tiny_settings(scenes, tmp_path, **SHARDED, ema=0.9)
    assert run(settings, functools.partial(_kill_at, tmp_path, 8)) == [-signal.SIGKILL]
    assert run(settings) == [0]
    (newest,) = checkpoint.list_checkpoints(tmp_path / "checkpoints")[-1:]
    assert newest.is_dir()
    found, expected = (
        sharded.read_checkpoint(newest),
        sharded.read_checkpoint(checkpoint.list_checkpoints(tmp_path / "file" / "checkpoints")[-1]),
    )
    for part in ("model", "ema"):
        _close(found[part], expected[part], rtol=0, atol=0)
    for name in ("model", "model-ema"):
        model, *_ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}/{name}")
        part = found["model"] if name == "model" else found["model"] | found["ema"]
        _close(model.state_dict(), {key: part[key] for key in model.state_dict()}, rtol=0, atol=0)


@pytest.mark.parametrize(("first", "then"), [("fsdp 2", "ddp 1"), ("ddp 1", "fsdp 2"), ("fsdp 2", "fsdp 3")])
def test_a_run_goes_on_with_other_processes(scenes: Path, tmp_path: Path, first: str, then: str):
    straight = tmp_path / "straight"
    train(tiny_settings(scenes, straight, **SHARDED))
    for number, how in enumerate((first, then)):
        parallel, size = how.split()
        keys = {**SHARDED, "parallel": parallel, "steps": (5, 12)[number]}
        assert run(tiny_settings(scenes, tmp_path / "run", **keys), processes=int(size)) == [0] * int(size)
    # The schedule of the first part ends earlier, so only its equality with a file is exact: see the file's run below.
    file = tmp_path / "file"
    for number, how in enumerate((first, then)):
        parallel, size = how.split()
        keys = {**SHARDED, "parallel": parallel, "steps": (5, 12)[number], "checkpoint_format": "file"}
        assert run(tiny_settings(scenes, file, **keys), processes=int(size)) == [0] * int(size)
    _close(_whole(tmp_path / "run"), _whole(file), rtol=1e-5, atol=1e-7)


def test_an_unfinished_folder_is_no_checkpoint(scenes: Path, tmp_path: Path):
    settings = tiny_settings(scenes, tmp_path, **SHARDED)
    train(settings)
    paths = checkpoint.list_checkpoints(tmp_path / "checkpoints")
    assert [checkpoint.step_of(path) for path in paths] == [5, 10, 12]
    (paths[-1] / ".metadata").unlink()
    assert checkpoint.list_checkpoints(tmp_path / "checkpoints") == paths[:-1]
    with pytest.raises(TrainerError, match="was not finished"):
        export_model(paths[-1], tmp_path / "other")
    assert train(settings) is not None  # goes on from the one before
    assert checkpoint.list_checkpoints(tmp_path / "checkpoints") == paths


def test_a_damaged_folder_is_one_line_and_the_one_before_is_used(scenes: Path, tmp_path: Path):
    settings = tiny_settings(scenes, tmp_path, **SHARDED)
    train(settings)
    newest = checkpoint.list_checkpoints(tmp_path / "checkpoints")[-1]
    (newest / "about.pt").write_bytes(b"damaged")
    assert train(settings) is not None
    for path in checkpoint.list_checkpoints(tmp_path / "checkpoints"):
        (path / "about.pt").write_bytes(b"damaged")
    with pytest.raises(TrainerError, match="no older one can be read") as caught:
        train(settings)
    assert "\n" not in str(caught.value)
