"""Scores during training, the curves of a run that was interrupted, and which checkpoints stay."""

import functools
import json
import os
import signal
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from support.processes import run, tiny_settings
from support.scene_shards import draw_scene, scene_of, write_scene_shards

from dedup.eval_sets.config import EvalSetConfig
from trainer import checkpoint
from trainer.config import Settings
from trainer.data import Batch
from trainer.errors import TrainerConfigError, TrainerError
from trainer.train import train

WATCHED: dict[str, Any] = {"evaluate_steps": 4, "validation_share": 0.2, "steps": 14, "checkpoint_steps": 5}


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a workspace with 10 shards and an evaluation set of folders."""
    workspace = tmp_path_factory.mktemp("watched")
    write_scene_shards(workspace / "shards", (30,) * 10)
    for number in range(24):
        path = workspace / "objects" / " ".join(scene_of(number)) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(draw_scene(*scene_of(number), seed=1_000 + number))
    return workspace


def _settings(workspace: Path, output: Path, **keys: Any) -> Settings:
    source = EvalSetConfig(name="objects", kind="folder", path=str(workspace / "objects"))
    return tiny_settings(workspace, output, **{**WATCHED, **keys}).model_copy(update={"evals": (source,)})


def _scores(output: Path) -> dict[int, dict[str, float]]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "val/loss" in line]
    assert len(steps) == len(set(steps))
    return {line["step"]: line for line in lines if "val/loss" in line}


def _note(folder: Path, kills: tuple[int, ...], step: int, batch: Batch) -> None:
    with (folder / "read.txt").open("a") as file:
        file.write(" ".join(str(shard) for shard in batch.shards.tolist()) + "\n")
    mark = folder / f"killed-{step}"
    if step in kills and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def test_scores_are_those_of_a_run_that_was_never_interrupted(watched: Path, tmp_path: Path):
    (tmp_path / "killed").mkdir()
    assert run(_settings(watched, tmp_path / "straight")) == [0]
    hook = functools.partial(_note, tmp_path / "killed", (7, 11))
    codes = [run(_settings(watched, tmp_path / "killed"), hook)[0] for _ in range(3)]
    assert codes == [-signal.SIGKILL, -signal.SIGKILL, 0]
    straight, killed = _scores(tmp_path / "straight"), _scores(tmp_path / "killed")
    assert list(straight) == [4, 8, 12, 14]
    assert killed == straight
    assert straight[4].keys() >= {"val/loss", "val/text_recall@1", "val/image_recall@10", "val/objects"}


def test_scores_on_2_processes_equal_those_on_one(watched: Path, tmp_path: Path):
    keys = {"eps": 1e-4, "steps": 4, "micro_batch": 6}
    assert run(_settings(watched, tmp_path / "one", **keys)) == [0]
    for parallel in ("ddp", "fsdp"):
        assert run(_settings(watched, tmp_path / parallel, parallel=parallel, **keys), processes=2) == [0, 0]
        (found,), (expected,) = _scores(tmp_path / parallel).values(), _scores(tmp_path / "one").values()
        assert found == pytest.approx(expected, rel=2e-2, abs=2e-2)
        assert found["val/loss"] == pytest.approx(expected["val/loss"], rel=1e-3)


def test_held_out_shards_are_never_trained_on_and_stay_the_same(watched: Path, tmp_path: Path):
    from trainer.distributed import World
    from trainer.inputs import open_inputs

    inputs = [
        open_inputs(settings, World(0, 1, torch.device("cpu")), resizes_on_device=False)
        for settings in (
            _settings(watched, tmp_path / "a"),
            _settings(watched, tmp_path / "b", validation_share=0.0, validation=[f"{watched}/shards/00003.tar"]),
        )
    ]
    for one, count in zip(inputs, (2, 1), strict=True):
        trained, apart = ({shard.path for shard in shards.shards} for shards in (one.shards, one.held_out))
        assert len(apart) == count
        assert len(trained) == 10 - count
        assert not trained & apart
    assert [shard.path for shard in inputs[1].held_out.shards] == [f"{watched}/shards/00003.tar"]
    other = open_inputs(
        _settings(watched, tmp_path / "c", shards=[f"{watched}/shards/0000[0-8].tar"]),
        World(0, 1, torch.device("cpu")),
        resizes_on_device=False,
    )
    before = {shard.path for shard in inputs[0].held_out.shards}
    assert len(before & {shard.path for shard in other.held_out.shards}) >= 1  # a shard less moves no other


def test_what_one_set_holds_out_no_set_trains_on(watched: Path, tmp_path: Path):
    """Sets may overlap, and a path may be written in several ways."""
    from trainer.distributed import World
    from trainer.inputs import open_inputs

    (tmp_path / "link").symlink_to(watched)
    globs = [f"{watched}/shards/*.tar", f"{watched}/shards/0000[0-3].tar", f"file://{watched}/shards/0000[2-5].tar",
             f"{tmp_path}/link/shards/0000[4-7].tar", f"{watched}/shards/../shards/0000[6-9].tar"]  # fmt: skip
    held = f"{tmp_path}/link/shards/00003.tar"
    for seed in range(6):
        settings = _settings(watched, tmp_path, sets=[{"shards": [glob]} for glob in globs], validation=[held])
        inputs = open_inputs(
            settings.model_copy(update={"seed": seed}), World(0, 1, torch.device("cpu")), resizes_on_device=False
        )
        trained, apart = ([shard.path.rpartition("/")[2] for shard in one.shards]
                          for one in (inputs.shards, inputs.held_out))  # fmt: skip
        assert not set(trained) & set(apart)
        assert len(set(apart)) == len(apart) >= 2
        assert apart[0] == "00003.tar"
        assert set(trained) | set(apart) == {f"{number:05d}.tar" for number in range(10)}
    for keys, name in (({}, "train"), ({"sets": [{"shards": [globs[0]]}, {"shards": [held]}]}, r"train\.sets\[1\]")):
        every = [held] if keys else [globs[0]]
        settings = _settings(watched, tmp_path, validation_share=0.0, validation=every, **keys)
        with pytest.raises(TrainerConfigError, match=rf"^{name}: all shards with samples are held out"):
            open_inputs(settings, World(0, 1, torch.device("cpu")), resizes_on_device=False)


def test_the_kept_checkpoints(watched: Path, tmp_path: Path):
    keys = {"keep_checkpoints": 1, "checkpoint_steps": 2, "keep_every_steps": 6, "keep_epochs": True, "steps": 23}
    train(_settings(watched, tmp_path, **keys, best="loss"))
    steps = [checkpoint.step_of(path) for path in checkpoint.list_checkpoints(tmp_path / "checkpoints")]
    best = json.loads((tmp_path / "checkpoints" / "best.json").read_text())
    losses = {step: line["val/loss"] for step, line in _scores(tmp_path).items()}
    assert best == {"step": min(losses, key=losses.__getitem__), "metric": "loss", "value": min(losses.values())}
    assert set(steps) == {6, 12, 18, 10, 20, 23, best["step"]}  # 240 samples are 10 steps of 24


def test_the_best_by_an_unknown_score_is_one_line(watched: Path, tmp_path: Path):
    with pytest.raises(
        TrainerConfigError, match=r"train\.best = 'imagenet' is not a score: choose one of loss, text_recall@1.*objects"
    ):
        train(_settings(watched, tmp_path, best="imagenet"))


def test_labels_that_no_prompt_can_use_stop_a_run_before_its_first_step(watched: Path, tmp_path: Path):
    for number in range(3):
        path = tmp_path / "numbers" / str(number) / "image.jpg"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"not decoded")
    source = EvalSetConfig(name="mine", kind="folder", path=str(tmp_path / "numbers"))
    settings = _settings(watched, tmp_path / "out").model_copy(update={"evals": (source,)})
    with pytest.raises(TrainerError, match=r"evaluation set mine: label '0' is not a name that a prompt can use"):
        train(settings, on_step=lambda step, batch: pytest.fail("a step was made"))
    gone = source.model_copy(update={"path": str(tmp_path / "gone")})
    with pytest.raises(TrainerError, match=r"evaluation set mine: .*/gone: no such folder"):
        train(settings.model_copy(update={"evals": (gone,)}))


def test_an_exported_model_has_the_mode_of_any_file(watched: Path, tmp_path: Path):
    before = os.umask(0o027)
    try:
        folder = train(tiny_settings(watched, tmp_path, steps=1))
    finally:
        os.umask(before)
    assert folder is not None
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o640}


def test_tensorboard_has_each_step_once(watched: Path, tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tmp_path / "run").mkdir()
    settings = _settings(watched, tmp_path / "run", tensorboard=True, log_steps=1)
    hook = functools.partial(_note, tmp_path / "run", (8,))
    assert [run(settings, hook)[0] for _ in range(2)] == [-signal.SIGKILL, 0]
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 15))
    assert [event.step for event in events.Scalars("val/objects")] == [4, 8, 12, 14]
