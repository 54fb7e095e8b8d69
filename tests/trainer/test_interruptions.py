"""What comes between: signals at the end, loader processes that die, a second run, weights that overflow."""

import functools
import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from support.processes import run, start, tiny_settings
from support.scene_shards import write_scene_shards

from trainer import checkpoint, data, train
from trainer.data import Batch
from trainer.errors import TrainerError


def _fails(settings: Any) -> str:
    with pytest.raises(TrainerError) as caught:
        train.train(settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _saved_step(output: Path) -> int:
    return int(checkpoint.load(checkpoint.list_checkpoints(output / "checkpoints")[-1])["step"])


@pytest.mark.parametrize("moment", ["save", "export"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_at_the_end_is_waited_out(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, number: signal.Signals
):
    def signalled(work: Any, *arguments: Any, **keys: Any) -> Any:
        os.kill(os.getpid(), number)
        return work(*arguments, **keys)

    if moment == "save":
        monkeypatch.setattr(checkpoint, "save", functools.partial(signalled, checkpoint.save))
    else:
        monkeypatch.setattr(train, "export_model", functools.partial(signalled, train.export_model))
    assert run(tiny_settings(scenes, tmp_path, steps=3)) == [0]
    assert _saved_step(tmp_path) == 3
    assert (tmp_path / "model" / "open_clip_model.safetensors").exists()


def _kill_a_worker(step: int, batch: Batch) -> None:
    if step == 7:
        psutil.Process().children()[0].kill()


def test_a_killed_loader_process_ends_the_run_with_what_was_done(
    scenes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    settings = tiny_settings(scenes, tmp_path, steps=100_000, checkpoint_steps=100_000, workers=2)
    process = start(settings, _kill_a_worker)
    process.join(50)
    assert process.exitcode == 1
    output = capfd.readouterr()
    assert "Traceback" not in output.out + output.err
    (line,) = [line for line in output.out.splitlines() if line.startswith("error: ")]
    assert "lower train.workers or train.prefetch" in line
    assert _saved_step(tmp_path) >= 8


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset"), FileNotFoundError(2, "no socket"), EOFError()])
def test_tensors_that_died_with_their_process_end_the_run_likewise(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    load = train.load_steps

    def dying(*arguments: Any, **keys: Any) -> Iterator[Batch]:
        yield from itertools.islice(load(*arguments, **keys), 3)
        raise error

    monkeypatch.setattr(train, "load_steps", dying)
    assert "a loader process died" in _fails(tiny_settings(scenes, tmp_path))
    assert _saved_step(tmp_path) == 3


@pytest.mark.parametrize(
    ("lacking", "message"),
    [
        (
            "images",
            "a loader process has no shared memory for 24 images (No space left on device (28)): enlarge /dev/shm",
        ),
        ("decode", "too little memory to decode an image"),
    ],
)
def test_a_loader_process_without_memory_ends_the_run_in_one_line(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: str, message: str
):
    """As in a container whose /dev/shm is small: of 64 MB, unless Docker is told otherwise."""
    share, decode = torch.UntypedStorage._new_shared, data.decode_rgb

    def shared(size: int) -> Any:
        if (tmp_path / "images").exists():
            raise RuntimeError(
                "unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device (28)"
            )
        return share(size)

    def decoded(encoded: bytes, **keys: int) -> Any:
        if (tmp_path / "decode").exists():
            raise MemoryError
        return decode(encoded, **keys)

    monkeypatch.setattr(torch.UntypedStorage, "_new_shared", shared)
    monkeypatch.setattr(data, "decode_rgb", decoded)
    settings = tiny_settings(scenes, tmp_path, steps=100_000, checkpoint_steps=100_000, workers=1)
    with pytest.raises(TrainerError) as caught:
        train.train(settings, on_step=lambda step, batch: (tmp_path / lacking).touch() if step == 3 else None)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(message)
    assert "lower train.workers or train.prefetch, and run again to resume" in str(caught.value)
    assert _saved_step(tmp_path) >= 4


def test_a_shard_that_cannot_be_read_ends_the_run_with_what_was_done(tmp_path: Path):
    write_scene_shards(tmp_path / "shards", (30, 30))
    tar = tmp_path / "shards" / "00001.tar"
    os.truncate(tar, tar.stat().st_size // 2)
    settings = tiny_settings(tmp_path, tmp_path / "out", batch=1, steps=60, checkpoint_steps=100, lanes=1, window=1)
    for seed in range(10):  # one that begins with the whole shard
        message = _fails(settings.model_copy(update={"seed": seed}))
        assert f"shard {tar}" in message
        if (tmp_path / "out" / "checkpoints").exists():
            break
    assert _saved_step(tmp_path / "out") == 30


def test_a_second_run_is_refused_until_the_first_is_gone(scenes: Path, tmp_path: Path):
    first = start(tiny_settings(scenes, tmp_path, steps=100_000, workers=2), functools.partial(_touch, tmp_path / "on"))
    while not (tmp_path / "on").exists():
        time.sleep(0.02)
    assert _fails(tiny_settings(scenes, tmp_path, steps=2)).startswith(f"another run is training in {tmp_path}: ")
    first.kill()
    first.join()
    assert run(tiny_settings(scenes, tmp_path, steps=2)) == [0]


def _touch(path: Path, step: int, batch: Batch) -> None:
    if step == 3:  # every loader process has begun its work, and looks for its parent
        path.touch()


def test_weights_that_overflow_are_not_saved(scenes: Path, tmp_path: Path):
    message = _fails(tiny_settings(scenes, tmp_path, steps=1, learning_rate=1e38, warmup_steps=0))
    assert message.startswith("the weights are not finite after step 1; no checkpoint of them is written")
    assert not (tmp_path / "checkpoints").exists()
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_overflow_is_seen_by_all_processes(scenes: Path, tmp_path: Path, parallel: str):
    keys = {"steps": 1, "learning_rate": 1e38, "warmup_steps": 0, "parallel": parallel}
    assert run(tiny_settings(scenes, tmp_path, **keys), processes=2) == [1, 1]
    assert not (tmp_path / "checkpoints").exists()


def test_weights_that_are_not_finite_are_not_exported(scenes: Path, tmp_path: Path):
    train.train(tiny_settings(scenes, tmp_path, steps=1))
    (saved,) = checkpoint.list_checkpoints(tmp_path / "checkpoints")
    content = checkpoint.load(saved)
    content["model"]["ln_final.weight"] = torch.full_like(content["model"]["ln_final.weight"], torch.nan)
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(TrainerError, match="are not finite"):
        train.export_model(tmp_path / "other.pt", tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_changed_hyper_parameters_count_from_the_resume_on(scenes: Path, tmp_path: Path):
    def groups(weight_decay: float) -> Any:
        path = checkpoint.list_checkpoints(tmp_path / "checkpoints")[-1]
        found = checkpoint.load(path)["optimizer"]["param_groups"]
        decays = {group["weight_decay"] for group in found}
        assert decays == {0.0, weight_decay}
        return {(*group["betas"], group["eps"]) for group in found}

    train.train(tiny_settings(scenes, tmp_path, steps=2, weight_decay=0.2))
    assert groups(0.2) == {(0.9, 0.98, 1e-6)}
    train.train(tiny_settings(scenes, tmp_path, steps=3, weight_decay=5.0, beta1=0.8, beta2=0.5, eps=1e-3))
    assert groups(5.0) == {(0.8, 0.5, 1e-3)}


def _spoiled(content: dict[str, Any], how: str) -> dict[str, Any]:
    part, _, key = how.partition(" ")
    if key == "shape":
        content["model"]["ln_final.weight"] = torch.zeros(3)
    elif key == "type":
        content[part] = [1]
    elif key:
        del content[part][key]
    else:
        del content[part]
    return content


@pytest.mark.parametrize(
    "how",
    [
        "identity", "identity train.objective", "model", "model logit_scale", "model shape", "step", "step type",
        "optimizer", "optimizer state", "optimizer type", "broken", "scaler",
    ],
)  # fmt: skip
def test_a_checkpoint_that_lacks_something_is_one_line(scenes: Path, tmp_path: Path, how: str):
    train.train(tiny_settings(scenes, tmp_path, steps=1))
    (saved,) = checkpoint.list_checkpoints(tmp_path / "checkpoints")
    content = torch.load(saved, weights_only=True)
    torch.save(_spoiled(content, how), saved)
    message = _fails(tiny_settings(scenes, tmp_path, steps=2))
    assert message.startswith(f"checkpoint {saved}")
    assert message.endswith(("delete it to resume from the previous one", "to start again"))


def _die_in_rank_1(how: str, step: int, batch: Batch) -> None:
    if step == 3 and os.environ.get("RANK") == "1":
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise TrainerError("rank 1 has had enough")


@pytest.mark.parametrize(("how", "code"), [("killed", -signal.SIGKILL), ("failed", 1)])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_the_end_of_one_process_ends_the_others_in_one_line(
    scenes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], how: str, code: int, parallel: str
):
    settings = tiny_settings(scenes, tmp_path, parallel=parallel)
    assert run(settings, functools.partial(_die_in_rank_1, how), processes=2) == [1, code]
    output = capfd.readouterr()
    assert "Traceback" not in output.out + output.err
    assert "error: another process of this run failed or ended; see its error message" in output.out


def test_what_the_first_process_cannot_write_ends_the_others_too(
    scenes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    (tmp_path / "checkpoints").write_text("in the way")
    assert run(tiny_settings(scenes, tmp_path, steps=2), processes=2) == [1, 1]
    output = capfd.readouterr()
    assert "Traceback" not in output.out + output.err
    assert f"error: cannot write {tmp_path}/checkpoints/step-000000002.pt: " in output.out
    assert multiprocessing.active_children() == []
