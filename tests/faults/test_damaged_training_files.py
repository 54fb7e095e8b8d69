"""A damaged checkpoint is not resumed, and a damaged shard is not trained on."""

import hashlib
import json
import logging
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support.processes import tiny_settings
from support.scene_shards import write_scene_shards

from trainer import checkpoint
from trainer.errors import TrainerError
from trainer.shard_cache import ShardCache
from trainer.shards import find_shards
from trainer.train import train


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("shards")
    write_scene_shards(folder / "shards", (32, 32))
    return folder


def flip(file: Path, at: float) -> None:
    content = bytearray(file.read_bytes())
    content[int(len(content) * at)] ^= 4
    file.write_bytes(content)


def test_every_flipped_bit_of_a_checkpoint_is_found_or_harmless(tmp_path):
    saved = checkpoint.checkpoint_path(tmp_path, 3)
    tensors = {"weight": torch.arange(300, dtype=torch.float32)}
    identity = {"train.architecture": {}, "train.objective": "infonce"}
    content = {"identity": identity, "model": tensors, "optimizer": {}, "scaler": {}, "broken": {}, "step": 3}
    checkpoint.save(saved, content)
    whole = saved.read_bytes()
    found = 0
    for at in range(0, len(whole), 13):
        saved.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        try:
            loaded = checkpoint.load(saved)
        except TrainerError:
            found += 1
            continue
        assert torch.equal(loaded["model"]["weight"], tensors["weight"])
        assert (loaded["identity"], loaded["step"]) == (identity, 3)
    assert found > 1_200 // 13  # every byte of the tensor


def test_a_run_goes_on_from_the_older_checkpoint_when_the_newest_is_damaged(shards, tmp_path, caplog):
    train(tiny_settings(shards, tmp_path, steps=4, checkpoint_steps=2))
    older, newest = checkpoint.list_checkpoints(tmp_path / "checkpoints")
    undisturbed = checkpoint.load(newest)["model"]
    flip(newest, 0.5)
    with caplog.at_level(logging.INFO):
        train(tiny_settings(shards, tmp_path, steps=4, checkpoint_steps=2))
    assert f"cannot read checkpoint {newest}: it is damaged" in caplog.text
    assert f"resuming from {older}" in caplog.text
    again = checkpoint.load(newest)["model"]
    assert all(torch.equal(again[name], weight) for name, weight in undisturbed.items())
    flip(older, 0.5)
    flip(newest, 0.5)
    with pytest.raises(TrainerError, match=r"no older one can be read: delete .* to start again"):
        train(tiny_settings(shards, tmp_path, steps=4, checkpoint_steps=2))


class _Code:
    def __reduce__(self):
        return print, ("it ran",)


def test_a_checkpoint_that_could_run_code_is_refused_without_advice(tmp_path, capsys):
    saved = tmp_path / "step-000000001.pt"
    torch.save({"format": checkpoint.FORMAT, "model": _Code()}, saved)
    with pytest.raises(TrainerError) as caught:
        checkpoint.load(saved)
    assert "weights_only" not in str(caught.value)
    assert "could run code" in str(caught.value)
    assert "it ran" not in capsys.readouterr().out
    saved.write_bytes(pickle.dumps(_Code()))
    with pytest.raises(TrainerError, match="damaged or not a checkpoint"):
        checkpoint.load(saved)


def test_a_shard_that_arrives_damaged_is_named_and_not_kept(shards, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(shards / "shards", store)
    tar = min(store.glob("*.tar"))
    whole = tar.read_bytes()
    manifest = store / "manifest.json"
    facts = {"bytes": len(whole), "sha256": hashlib.sha256(whole).hexdigest()}
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"files": {tar.name: facts}}))
    cache = ShardCache(tmp_path / "cache", 1 << 30)
    found = find_shards((f"local://{store}/*.tar",), cache)
    flip(tar, 0.5)
    with pytest.raises(TrainerError, match=r"arrived damaged: .* `wit verify --shards`"):
        found.reader(0)
    assert not list((tmp_path / "cache").rglob("*.tar"))
    tar.write_bytes(whole)
    sample = found.reader(0).read(0, with_json=True)
    assert sample.image is not None
    assert np.frombuffer(sample.image, np.uint8).size > 0
