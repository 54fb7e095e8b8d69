"""Training a copy detector: the program as users run it, at the size of a test."""

import io
import json
import random
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from dedup.copies.detector import Detector
from trainer.copies import calibrate
from trainer.copies import train as training
from trainer.copies.__main__ import main
from trainer.copies.edits import Editor
from trainer.copies.export import export
from trainer.copies.network import CopyNetwork
from trainer.copies.photos import draw_rows, read_held_out, read_photos
from trainer.copies.train import Batches, Recipe, copy_loss
from trainer.errors import TrainerError


def picture(seed: int, width: int = 72, height: int = 64) -> np.ndarray:
    """Return a picture of coloured rectangles, unlike any other seed's."""
    chance = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), chance.integers(0, 256, 3), np.uint8)
    for _ in range(25):
        x, y = chance.integers(0, width - 8), chance.integers(0, height - 8)
        pixels[y : y + chance.integers(4, 30), x : x + chance.integers(4, 30)] = chance.integers(0, 256, 3)
    return pixels


@pytest.fixture(autouse=True)
def _few_edits(monkeypatch):
    monkeypatch.setattr(calibrate, "MOST_EDITED", 2)


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "photos.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(120):
            buffer = io.BytesIO()
            Image.fromarray(picture(number)).save(buffer, "PNG")
            member = tarfile.TarInfo(f"{'held' if number < 24 else 'other' if number % 2 else 'more'}/{number:03d}.png")
            member.size = buffer.tell()
            buffer.seek(0)
            tar.addfile(member, buffer)
        for name, content in (("more/notes.txt", b"no image"), ("more/broken.png", b"\x89PNG\r\n")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_a_training_ends_in_a_detector_that_the_pipeline_opens(shard, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [str(shard), "--out", str(out), "--hold-out", "held", "--pairs", "24", "--batch", "8", "--side", "64"]
    assert main(arguments) == 0
    assert str(out / "copy.onnx") in capsys.readouterr().out
    detector = Detector.load(out / "copy.onnx")
    assert 0 < detector.card.loose <= detector.card.propose <= detector.card.sure <= 1
    facts = detector._running.get_modelmeta().custom_metadata_map
    assert facts["wit.command"] == "wit dedup train photos.tar --hold-out held --pairs 24 --batch 8 --side 64"
    assert "| crop 80% |" in (out / "card.md").read_text()
    last = json.loads((out / "log.jsonl").read_text().splitlines()[-1])
    assert (last["step"], last["pairs"]) == (3, 24)
    before = (out / "copy.onnx").read_bytes()
    assert main(arguments) == 0  # nothing is left to train
    assert (out / "copy.onnx").read_bytes() == before


def test_photos_of_another_training_are_refused(shard, tmp_path):
    out = tmp_path / "out"
    recipe = Recipe(pairs=8, batch_pairs=8, side=48)
    common = {"device": "cpu", "workers": 0, "checkpoint_minutes": 10}
    training.train(read_photos([shard], out, ("held",)), recipe, out, **common)
    with pytest.raises(TrainerError, match="was trained on other photos"):
        training.train(read_photos([shard], out, ("other",)), recipe, out, **common)


def test_held_out_photos_are_not_trained_on(shard, tmp_path):
    photos = read_photos([shard], tmp_path / "out", ("held",))
    assert {name: len(rows) for name, rows in photos.sets.items()} == {"more": 48, "other": 48}
    held_out = read_held_out([shard], ("held",))
    assert len(held_out) == 24
    assert np.array_equal(held_out[0], picture(0))
    assert np.array_equal(photos[0], picture(24))


def test_without_a_held_out_set_every_20th_photo_is(shard, tmp_path):
    assert len(read_photos([shard], tmp_path / "out")) + 6 == 120


def test_a_batch_depends_on_seed_and_step_alone(shard, tmp_path):
    photos = read_photos([shard], tmp_path / "out", ("held",))
    recipe = Recipe(pairs=160, batch_pairs=16, side=64)
    from_start, resumed = Batches(photos, recipe, 0), Batches(photos, recipe, 7)
    assert torch.equal(from_start[7], resumed[0])
    assert not torch.equal(from_start[7], from_start[6])
    assert from_start[7].shape == (32, 48, 48, 3)
    assert from_start[9].shape == (32, 64, 64, 3)  # the last part at full size
    assert len(resumed) == 3


def test_half_of_a_batch_is_of_one_set(shard, tmp_path):
    photos = read_photos([shard], tmp_path / "out", ("held",))
    rows = draw_rows(photos, 32, random.Random(1))
    assert len(set(rows)) == 32
    assert max(np.isin(rows, members).sum() for members in photos.sets.values()) >= 12


@pytest.mark.parametrize("side", [64, 96])
def test_views_are_squares_of_bytes_and_repeat_with_their_seed(side):
    editor = Editor(side)
    for number in range(60):
        photo, other = picture(number, 60 + number, 128), picture(number + 1000)
        for view in (
            lambda chance, a=photo, b=other: editor.strong(a, b, chance),
            lambda chance, a=photo: editor.weak(a, chance),
        ):
            made = view(random.Random(number))
            assert made.shape == (side, side, 3)
            assert made.dtype == np.uint8
            assert np.array_equal(made, view(random.Random(number)))


def test_the_loss_is_least_where_views_agree_and_strangers_are_opposed():
    agreeing = torch.eye(8)[[0, 1, 2, 3, 0, 1, 2, 3]]
    infonce, entropy, found = copy_loss(agreeing)
    assert infonce < 1e-6
    assert found == 1
    assert entropy == pytest.approx(-np.log(np.sqrt(2)), abs=1e-4)
    mixed = torch.eye(8)[[0, 1, 2, 3, 1, 2, 3, 0]]
    assert copy_loss(mixed)[0] > 10
    assert copy_loss(mixed)[2] == 0


def test_the_learning_rate_rises_stays_and_falls():
    recipe = Recipe(pairs=192_000)
    rates = [recipe.learning_rate_at(step) for step in range(recipe.steps)]
    assert rates[0] < rates[10] < rates[30] == rates[600] == max(rates)
    assert rates[-1] < 0.01 * max(rates)


def test_the_exported_model_computes_what_the_network_does(tmp_path):
    torch.manual_seed(1)
    network = CopyNetwork(widths=(16, 16, 32, 32), last_width=64, dimensions=64)
    pictures = torch.from_numpy(np.stack([picture(n, 64, 64) for n in range(24)]))
    network.train()
    for _ in range(30):  # so that the batch norms have seen something
        network(pictures)
    network.eval()
    export(network, 64, {"wit.side": "64", "wit.sure": "0.7", "wit.propose": "0.4"}, tmp_path / "model.onnx")
    detector = Detector.load(tmp_path / "model.onnx")
    with torch.no_grad():
        expected = network(pictures).numpy()
    found = detector.describe(list(pictures.numpy()))
    cosines = (found * expected).sum(1) / np.linalg.norm(found.astype(np.float32), axis=1)
    assert cosines.min() > 0.99  # fp16 weights, int8 vectors


def test_a_loss_that_is_not_finite_stops_the_training(shard, tmp_path, monkeypatch, capsys):
    broken = torch.tensor(float("nan"), requires_grad=True)
    monkeypatch.setattr(training, "copy_loss", lambda vectors: (broken * vectors.sum(), broken, torch.tensor(0.0)))
    arguments = [str(shard), "--out", str(tmp_path / "out"), "--pairs", "8", "--batch", "8", "--hold-out", "held"]
    assert main(arguments) == 1
    assert "lower --learning-rate" in capsys.readouterr().err
