"""A failed write is one clear line and leaves no partial file behind."""

import multiprocessing
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.processes import tiny_settings

from trainer import checkpoint
from trainer.errors import TrainerError
from trainer.export import export_model
from trainer.shard_cache import ShardCache
from trainer.shards import find_shards
from trainer.train import train

LIMIT = 50_000
"""Bytes that a file may have where the disk is "full"; fewer than a checkpoint has."""


def _on_a_full_disk(work: Callable[[], Any], limit: int = LIMIT) -> str:
    """Return the message of the TrainerError that `work` ends in, in a process that cannot write larger files."""
    ours, theirs = multiprocessing.Pipe(duplex=False)

    def child() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            work()
        except TrainerError as error:
            theirs.send(str(error))
        except BaseException as error:
            theirs.send(f"escaped: {error!r}")
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    theirs.close()
    message = ours.recv()
    process.join()
    assert "\n" not in message
    return str(message)


@pytest.mark.parametrize("limit", [LIMIT, 1_000_000, 5_000_000])
def test_a_checkpoint(scenes: Path, tmp_path: Path, limit: int):
    settings = tiny_settings(scenes, tmp_path, steps=2, checkpoint_steps=1)
    message = _on_a_full_disk(lambda: train(settings), limit)
    assert message.startswith(f"cannot write {tmp_path}/checkpoints/step-000000001.pt: File too large")
    assert not list((tmp_path / "checkpoints").iterdir())


def test_the_records_of_a_run(scenes: Path, tmp_path: Path):
    settings = tiny_settings(scenes, tmp_path / "run", steps=2, tensorboard=True, cache=str(tmp_path / "cache"))
    find_shards(settings.shard_globs, ShardCache(settings.cache, 2**30)).reader(0)
    message = _on_a_full_disk(lambda: train(settings), limit=50)
    assert message.startswith("the run stopped: ")
    assert "File too large" in message


def test_an_exported_model(scenes: Path, tmp_path: Path):
    train(tiny_settings(scenes, tmp_path / "run", steps=1))
    (saved,) = checkpoint.list_checkpoints(tmp_path / "run" / "checkpoints")
    message = _on_a_full_disk(lambda: export_model(saved, tmp_path / "model"))
    assert message.startswith(f"cannot write the model to {tmp_path}/model: ")
    assert "File too large" in message
    assert not list((tmp_path / "model").iterdir())


def test_the_index_of_a_shard(scenes: Path, tmp_path: Path):
    shards = find_shards((f"{scenes}/shards/*.tar",), ShardCache(tmp_path / "cache", 2**30))
    message = _on_a_full_disk(lambda: shards.reader(0), limit=1_000)
    assert f"cannot write to the cache of shards {tmp_path}/cache: File too large" in message
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]


@pytest.mark.parametrize("below", ["", "below"])
def test_an_output_that_is_a_file(scenes: Path, tmp_path: Path, below: str):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(TrainerError) as caught:
        train(tiny_settings(scenes, tmp_path / "file" / below, steps=1, cache=str(tmp_path / "cache")))
    assert f"{tmp_path / 'file' / below}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(TrainerError, match="cannot write to the cache of shards"):
        train(tiny_settings(scenes, tmp_path / "out", steps=1, cache=str(tmp_path / "file")))
