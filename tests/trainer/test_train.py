"""Whole runs of a minuscule model: exact resume, equality across processes, signals, and every way to fail."""

import functools
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.processes import TINY, run, start, tiny_settings
from support.scene_shards import write_scene_shards

from trainer import checkpoint
from trainer.config import Settings
from trainer.data import Batch
from trainer.errors import TrainerError
from trainer.step import Stepper
from trainer.train import train


def _note(folder: Path, step: int, batch: Batch) -> None:
    """Append the step's sample ids to a file of this rank."""
    ids = ",".join(f"{s}.{i}" for s, i in zip(batch.shards.tolist(), batch.indices.tolist(), strict=True))
    with (folder / f"samples-{os.environ.get('RANK', '0')}.txt").open("a") as file:
        file.write(f"{step} {ids}\n")


def _noted(folder: Path, ranks: int = 1) -> dict[int, list[str]]:
    """Return the sample ids of each step; a step done again after a kill must have had the same."""
    seen: dict[int, list[str]] = {}
    for rank in range(ranks):
        own: dict[int, str] = {}
        for line in (folder / f"samples-{rank}.txt").read_text().splitlines():
            step, ids = line.split()
            assert own.setdefault(int(step), ids) == ids
        for step, ids in own.items():
            seen.setdefault(step, []).extend(ids.split(","))
    return dict(sorted(seen.items()))


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(checkpoint.list_checkpoints(folder / "checkpoints")[-1])["model"]


def _run_noted(workspace: Path, folder: Path, processes: int = 1, **keys: Any) -> dict[int, list[str]]:
    folder.mkdir()
    settings = tiny_settings(workspace, folder, **keys)
    assert run(settings, functools.partial(_note, folder), processes) == [0] * processes
    return _noted(folder, processes)


# Keys' biases have no gradient but rounding, which Adam with a small epsilon would blow up to whole steps.
CALM = {"eps": 1e-4}
PATCHY = TINY["architecture"] | {"vision_cfg": TINY["architecture"]["vision_cfg"] | {"patch_dropout": 0.5}}


def _assert_equal(one: Path, other: Path) -> None:
    first, second = _weights(one), _weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def _kill_at(folder: Path, steps: tuple[int, ...], step: int, batch: Batch) -> None:
    """Die as by `kill -9` at each of `steps`, once."""
    _note(folder, step, batch)
    mark = folder / f"killed-{step}"
    if step in steps and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def _run_with_kills(workspace: Path, folder: Path, kills: tuple[int, ...], **keys: Any) -> dict[int, list[str]]:
    folder.mkdir()
    settings = tiny_settings(workspace, folder, **keys)
    codes = [run(settings, functools.partial(_kill_at, folder, kills))[0] for _ in range(len(kills) + 1)]
    assert codes == [-signal.SIGKILL] * len(kills) + [0]
    return _noted(folder)


def test_a_killed_run_goes_on_exactly(scenes: Path, tmp_path: Path):
    straight = _run_noted(scenes, tmp_path / "straight", architecture=PATCHY)
    killed = _run_with_kills(scenes, tmp_path / "killed", (7, 13), workers=2, architecture=PATCHY)
    assert killed == straight
    assert list(straight) == list(range(20))
    _assert_equal(tmp_path / "straight", tmp_path / "killed")
    assert not list((tmp_path / "killed").rglob("*.partial"))


def _kill_three_times(folder: Path, step: int, batch: Batch) -> None:
    """Die before step 5, where a checkpoint is: twice as soon as the run has been resumed."""
    kills = len(list(folder.glob("killed-*")))
    if step == 5 and kills < 3:
        (folder / f"killed-{kills}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    _note(folder, step, batch)


def test_resumes_without_a_step_change_nothing(scenes: Path, tmp_path: Path):
    """Neither those that are interrupted at once, nor one of a run that has ended."""
    keys = {"steps": 8, "checkpoint_steps": 5}
    straight = _run_noted(scenes, tmp_path / "straight", **keys)
    (folder := tmp_path / "killed").mkdir()
    settings, hook = tiny_settings(scenes, folder, **keys), functools.partial(_kill_three_times, folder)
    assert [run(settings, hook)[0] for _ in range(4)] == [-signal.SIGKILL] * 3 + [0]
    before = checkpoint.list_checkpoints(folder / "checkpoints")[-1].stat()
    assert run(settings, hook) == [0]
    assert _noted(folder) == straight
    _assert_equal(tmp_path / "straight", folder)
    assert checkpoint.list_checkpoints(folder / "checkpoints")[-1].stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.slow
def test_200_steps_with_three_kills_are_200_steps(scenes: Path, tmp_path: Path):
    straight = _run_noted(scenes, tmp_path / "straight", steps=200, workers=1)
    killed = _run_with_kills(scenes, tmp_path / "killed", (31, 120, 187), steps=200, workers=3, prefetch=1)
    assert killed == straight
    _assert_equal(tmp_path / "straight", tmp_path / "killed")


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_runs_on_2_processes_equal_a_run_on_one(scenes: Path, tmp_path: Path, parallel: str):
    one = _run_noted(scenes, tmp_path / "one", steps=6, **CALM)
    two = _run_noted(scenes, tmp_path / "two", processes=2, steps=6, parallel=parallel, **CALM)
    assert two == one
    first, second = _weights(tmp_path / "one"), _weights(tmp_path / "two")
    assert first.keys() == second.keys()
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, rtol=2e-3, atol=2e-5, msg=name)


def test_a_run_goes_on_with_another_number_of_processes(scenes: Path, tmp_path: Path):
    one = _run_noted(scenes, tmp_path / "one", steps=12, **CALM)
    folder = tmp_path / "grown"
    folder.mkdir()
    hook = functools.partial(_kill_at, folder, (7,))
    keys = {"steps": 12, "checkpoint_steps": 5, **CALM}
    assert run(tiny_settings(scenes, folder, **keys), hook) == [-signal.SIGKILL]
    assert _noted(folder) == {step: one[step] for step in range(8)}
    (notes := tmp_path / "notes").mkdir()
    grown = tiny_settings(scenes, folder, **keys, parallel="fsdp")
    assert run(grown, functools.partial(_note, notes), processes=2) == [0, 0]
    assert _noted(notes, ranks=2) == {step: one[step] for step in range(5, 12)}
    for name, weight in _weights(tmp_path / "one").items():
        torch.testing.assert_close(_weights(folder)[name], weight, rtol=5e-3, atol=5e-5, msg=name)


@pytest.mark.parametrize("objective", ["infonce", "siglip"])
def test_accumulation_equals_one_large_batch(scenes: Path, tmp_path: Path, objective: str):
    keys = {"steps": 4, "objective": objective, **CALM}
    _run_noted(scenes, tmp_path / "whole", **keys)
    _run_noted(scenes, tmp_path / "parts", micro_batch=6, **keys)
    _run_noted(scenes, tmp_path / "both", processes=2, micro_batch=4, **keys)
    whole = _weights(tmp_path / "whole")
    for folder in ("parts", "both"):
        for name, weight in _weights(tmp_path / folder).items():
            torch.testing.assert_close(weight, whole[name], rtol=2e-3, atol=2e-5, msg=f"{folder} {name}")


def test_sigterm_saves_and_exits_0(scenes: Path, tmp_path: Path):
    settings = tiny_settings(scenes, tmp_path, steps=100_000, workers=1)
    process = start(settings, functools.partial(_note, tmp_path))
    while not (tmp_path / "samples-0.txt").exists():
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 0
    (saved,) = checkpoint.list_checkpoints(tmp_path / "checkpoints")
    assert checkpoint.load(saved)["step"] == len(_noted(tmp_path))
    assert not (tmp_path / "model").exists()


def test_only_the_newest_checkpoints_are_kept_and_the_model_opens_in_open_clip(scenes: Path, tmp_path: Path):
    folder = train(tiny_settings(scenes, tmp_path, steps=9, checkpoint_steps=2, keep_checkpoints=2, tensorboard=True))
    kept = [path.name for path in checkpoint.list_checkpoints(tmp_path / "checkpoints")]
    assert kept == ["step-000000008.pt", "step-000000009.pt"]
    assert list((tmp_path / "tensorboard").iterdir())
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    assert preprocess is not None
    weights = _weights(tmp_path)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("model", ["tiny-resnet", "bag-of-words"])
def test_other_architectures_train_and_export(scenes: Path, tmp_path: Path, model: str):
    keys: dict[str, Any] = {"text": model, "max_gradient_norm": 1.0, "gradient_checkpointing": True}
    if model == "tiny-resnet":
        architecture = {
            "embed_dim": 16, "quick_gelu": True,
            "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32},
            "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
        }  # fmt: skip
        keys = {"model": model, "architecture": architecture, "channels_last": True, "micro_batch": 12}
    folder = train(tiny_settings(scenes, tmp_path, steps=3, precision="bf16", **keys))
    open_clip.create_model_and_transforms(f"local-dir:{folder}")


def _fails(settings: Any) -> str:
    with pytest.raises(TrainerError) as caught:
        train(settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


STILL = {"steps": 1, "learning_rate": 1e-15}  # a step that moves no weight


def _changed(one: Path, other: Path) -> set[str]:
    first, second = _weights(one), _weights(other)
    assert first.keys() <= second.keys()
    same = {name for name in first if first[name].shape == second[name].shape}
    return second.keys() - {name for name in same if torch.allclose(first[name], second[name], rtol=0, atol=1e-12)}


def test_a_run_starts_from_what_another_has_written_and_resumes_without_it(scenes: Path, tmp_path: Path):
    exported = train(tiny_settings(scenes, tmp_path / "before", steps=1))
    assert exported is not None
    (saved,) = checkpoint.list_checkpoints(tmp_path / "before" / "checkpoints")
    for number, initial in enumerate((exported, exported / "open_clip_model.safetensors", saved)):
        train(tiny_settings(scenes, tmp_path / str(number), initial=str(initial), **STILL))
        assert not _changed(tmp_path / "before", tmp_path / str(number))
    shutil.rmtree(tmp_path / "before")
    again = tiny_settings(scenes, tmp_path / "0", initial=str(exported), **STILL | {"steps": 2})
    assert train(again) is not None


def test_a_run_starts_from_one_of_another_size_and_objective(scenes: Path, tmp_path: Path):
    train(tiny_settings(scenes, tmp_path / "before", steps=1))
    (saved,) = checkpoint.list_checkpoints(tmp_path / "before" / "checkpoints")
    vision = TINY["architecture"]["vision_cfg"] | {"image_size": 48}
    keys = {"architecture": TINY["architecture"] | {"vision_cfg": vision}, "objective": "siglip", "parallel": "fsdp"}
    larger = tiny_settings(scenes, tmp_path / "larger", initial=str(saved), **STILL, **keys)
    assert run(larger, processes=2) == [0, 0]
    assert _changed(tmp_path / "before", tmp_path / "larger") == {"visual.positional_embedding", "logit_bias"}


def test_weights_to_start_from_that_do_not_fit_are_one_line(scenes: Path, tmp_path: Path):
    train(tiny_settings(scenes, tmp_path / "before", steps=1))
    (saved,) = checkpoint.list_checkpoints(tmp_path / "before" / "checkpoints")
    for initial in (str(saved), str(tmp_path / "before" / "model"), str(tmp_path)):
        narrow = TINY["architecture"] | {"embed_dim": 8}
        message = _fails(tiny_settings(scenes, tmp_path / "other", initial=initial, architecture=narrow))
        assert message.startswith(f"train.initial = {initial!r} cannot be used: ")
        assert "size mismatch" in message or "No such file" in message
    assert not (tmp_path / "other" / "checkpoints").exists()
    text = tmp_path / "text.pt"
    text.write_text("not weights")
    message = _fails(tiny_settings(scenes, tmp_path / "other", initial=str(text)))
    assert "it is not a file of tensors" in message
    assert "weights_only" not in message  # torch's advice to load it all the same


def test_a_run_goes_on_in_another_precision(scenes: Path, tmp_path: Path):
    for steps, precision in enumerate(("fp32", "fp16", "fp16", "bf16"), start=1):
        assert train(tiny_settings(scenes, tmp_path, steps=steps, precision=precision)) is not None


def test_a_gpu_without_enough_memory_is_one_line(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def step(*batch: Any, **how: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has ...")

    monkeypatch.setattr(Stepper, "step", step)
    message = _fails(tiny_settings(scenes, tmp_path, micro_batch=12))
    assert message.startswith("CUDA out of memory. Tried to allocate 20.00 GiB")
    assert "train.micro_batch (now 12)" in message
    assert "train.gradient_checkpointing = true" in message
    assert "a smaller train.batch (now 24) needs a new run" in message


def test_no_shards_is_one_line(tmp_path: Path):
    assert f"no shards match {tmp_path}/shards/*.tar" in _fails(tiny_settings(tmp_path, tmp_path / "out"))


def test_a_checkpoint_of_another_run_is_one_line(scenes: Path, tmp_path: Path):
    train(tiny_settings(scenes, tmp_path, steps=1))
    assert "belongs to another run (train.batch = 24)" in _fails(tiny_settings(scenes, tmp_path, steps=2, batch=20))
    wider = tiny_settings(scenes, tmp_path).train.architecture | {"embed_dim": 8}
    message = _fails(tiny_settings(scenes, tmp_path, architecture=wider))
    assert "belongs to another run (train.architecture.embed_dim = 16)" in message


def test_other_captions_are_another_run(tmp_path: Path):
    """Also where the annotations that hold them have changed, and only there."""
    write_scene_shards(tmp_path / "shards", (30, 30))
    rows, folder = {f"{shard:05d}": [f"caption {n}" for n in range(30)] for shard in range(2)}, tmp_path / "annotations"
    keys = ["annotations/recaptions.text", "txt"]

    def annotate(name: str = "recaptions", **other: Any) -> None:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for shard, texts in rows.items():
            pq.write_table(pa.table({"text": texts, **other}), folder / name / f"{shard}.parquet")

    def settings(steps: int, caption_keys: list[str]) -> Settings:
        return tiny_settings(tmp_path, tmp_path / "out", steps=steps, caption_keys=caption_keys)

    annotate()
    assert train(settings(1, keys)) is not None
    annotate("scores")  # and another column of the same table, which are no captions
    annotate(score=[0.5] * 30)
    assert train(settings(2, keys)) is not None
    assert "belongs to another run (train.captions = [['first', 'annotations" in _fails(settings(3, ["txt"]))
    rows["00001"][17] = "another"
    annotate()
    assert "belongs to another run (the annotations differ)" in _fails(settings(3, keys))


def test_captions_that_nobody_has_are_one_line(scenes: Path, tmp_path: Path):
    message = _fails(tiny_settings(scenes, tmp_path, caption_keys=["alt"]))
    assert message.endswith("no_caption; correct train.caption_keys")


def test_a_rate_that_never_reaches_its_peak_is_mentioned(
    scenes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    for warmup_steps, mentions in ((2, 1), (1, 0)):
        caplog.clear()
        train(tiny_settings(scenes, tmp_path / str(warmup_steps), steps=2, warmup_steps=warmup_steps))
        assert caplog.text.count("the learning rate does not reach its peak") == mentions


def test_a_damaged_checkpoint_is_one_line(scenes: Path, tmp_path: Path):
    train(tiny_settings(scenes, tmp_path, steps=1))
    (path,) = checkpoint.list_checkpoints(tmp_path / "checkpoints")
    os.truncate(path, path.stat().st_size // 2)
    assert f"cannot read checkpoint {path}" in _fails(tiny_settings(scenes, tmp_path, steps=2))


def test_a_shard_cut_after_the_run_was_planned_is_one_line(tmp_path: Path):
    write_scene_shards(tmp_path / "shards", (30, 30))
    tar = tmp_path / "shards" / "00001.tar"
    os.truncate(tar, tar.stat().st_size // 2)
    assert f"shard {tar}" in _fails(tiny_settings(tmp_path, tmp_path / "out", workers=1))


def test_too_many_broken_samples_stop_the_run(tmp_path: Path):
    write_scene_shards(tmp_path / "shards", (60,), {"jpg": dict.fromkeys(range(0, 60, 10), b"no image")})
    message = _fails(tiny_settings(tmp_path, tmp_path / "out"))
    assert "not_an_image), more than train.max_broken_share = 0.01" in message
    assert train(tiny_settings(tmp_path, tmp_path / "tolerant", max_broken_share=0.2)) is not None


def test_a_loss_that_is_no_number_stops_the_run_without_a_checkpoint(scenes: Path, tmp_path: Path):
    message = _fails(tiny_settings(scenes, tmp_path, learning_rate=1e30, warmup_steps=0))
    assert "the loss is nan between steps 1 and 5" in message
    assert not checkpoint.list_checkpoints(tmp_path / "checkpoints")


@pytest.mark.parametrize(
    ("keys", "processes", "message"),
    [
        ({"batch": 300}, 1, "train.batch = 300 is more than the 200 samples"),
        ({"batch": 25}, 2, "train.batch = 25 is not divisible by the number of processes, 2"),
        ({"micro_batch": 7}, 1, "train.micro_batch = 7 does not divide the 24 samples per process"),
        (
            {"steps": None, "epochs": 0.1},
            1,
            "train.epochs = 0.1 of 200 samples is less than one step of train.batch = 24",
        ),
        ({"device": "cuda"}, 1, "no GPU found"),
        ({"initial": "missing.pt"}, 1, "train.initial"),
    ],
)
def test_impossible_requests_are_one_line(
    scenes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], keys: dict[str, Any], processes: int, message: str
):
    if keys.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    codes = run(tiny_settings(scenes, tmp_path, **keys), processes=processes)
    assert set(codes) <= {1, 2}
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("error: ")]
    assert len(lines) == processes
    assert message in lines[0]
