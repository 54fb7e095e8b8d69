"""Batches: the same bytes from any workers and ranks, crops and captions by hash, broken samples counted."""

import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scene_shards import draw_scene, scene_of, write_scene_shards

from trainer.data import (
    MAX_CHUNK,
    Batch,
    Pairs,
    Share,
    View,
    concatenated,
    decode_crop,
    load_steps,
    to_model_input,
    tokenize,
)
from trainer.errors import TrainerError
from trainer.order import SampleOrder, rank_share
from trainer.shards import ShardCache, ShardSet, find_shards

VIEW = View(image_size=32, context_length=16, seed=3)


def _shards(folder: Path, cache: Path) -> ShardSet:
    return find_shards((f"{folder}/*.tar",), ShardCache(cache, 2**30))


def _steps(
    shards: ShardSet, *, steps: tuple[int, int], workers: int = 0, rank: int = 0, world: int = 1, batch: int = 24
) -> Iterator[Batch]:
    order = SampleOrder(shards.counts, seed=3, lanes=4, window=32)
    share = Share(order, batch, 4, *steps, rank, world)
    yield from load_steps(Pairs(shards, VIEW), share, workers=workers, prefetch=2, pin=False)


def _same(one: Batch, other: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one[:4], other[:4], strict=True))


def test_batches_do_not_depend_on_workers_nor_on_where_a_run_resumed(scenes: Path, tmp_path: Path):
    shards = _shards(scenes / "shards", tmp_path)
    plain = list(_steps(shards, steps=(0, 12)))
    for workers in (1, 3):
        assert all(map(_same, _steps(shards, steps=(0, 12), workers=workers), plain))
    assert all(map(_same, _steps(shards, steps=(7, 12), workers=2), plain[7:]))


def test_ranks_share_out_the_same_global_batch(scenes: Path, tmp_path: Path):
    shards = _shards(scenes / "shards", tmp_path)
    whole = list(_steps(shards, steps=(0, 9)))
    for world in (2, 4):
        ranks = [list(_steps(shards, steps=(0, 9), rank=rank, world=world)) for rank in range(world)]
        for step, batch in enumerate(whole):
            assert _same(concatenated([ranks[rank][step] for rank in range(world)]), batch)


def test_an_epoch_reads_every_sample_once_with_its_own_caption(scenes: Path, tmp_path: Path):
    shards = _shards(scenes / "shards", tmp_path)
    batches = list(_steps(shards, steps=(0, 8), batch=25))
    seen = [(int(s), int(i)) for b in batches for s, i in zip(b.shards, b.indices, strict=True)]
    assert len(set(seen)) == 200
    starts = np.cumsum([0, *shards.counts[:-1]])
    for batch in batches:
        numbers = [int(starts[s] + i) for s, i in zip(batch.shards, batch.indices, strict=True)]
        assert torch.equal(batch.tokens, tokenize([f"a {' '.join(scene_of(n))}" for n in numbers], 16))


def test_a_large_step_is_prepared_in_chunks(scenes: Path, tmp_path: Path):
    shards = _shards(scenes / "shards", tmp_path)
    share = Share(SampleOrder(shards.counts, seed=0), 2 * MAX_CHUNK + 2, 8, 0, 1)
    assert [len(chunk) for chunk in share] == [172, 171, 171]
    (step,) = load_steps(Pairs(shards, VIEW), share, workers=2, prefetch=1, pin=False)
    assert _same(step, Pairs(shards, VIEW).batch(share.order.at(rank_share(2 * MAX_CHUNK + 2, 8, 0, 1))))


def test_broken_samples_are_counted_and_the_next_good_one_takes_their_place(tmp_path: Path):
    bomb = Image.new("1", (12_000, 9_000))
    stream = io.BytesIO()
    bomb.save(stream, "PNG")
    cut = draw_scene("red", "circle", 2)[:300]
    replace = {"jpg": {1: b"", 2: cut, 5: stream.getvalue(), 6: b"absent"}, "txt": {8: b" \n", 9: b"absent"}}
    write_scene_shards(tmp_path / "shards", (12,), replace)
    shards = _shards(tmp_path / "shards", tmp_path)
    (batch,) = _steps(shards, steps=(0, 1), batch=12)
    order = SampleOrder(shards.counts, seed=3, lanes=4, window=32).at(np.arange(12)).index.tolist()
    stand_in = {1: 3, 2: 3, 5: 7, 6: 7, 8: 10, 9: 10}
    assert sorted(batch.indices.tolist()) == sorted(stand_in.get(index, index) for index in order)
    # Samples 2, 6 and 9 are met twice: once as themselves, once after the broken one before them.
    assert Counter(batch.broken) == {"no_image": 3, "broken_image": 2, "too_many_pixels": 1, "no_caption": 3}


def test_a_shard_without_any_usable_sample_stops_the_run(tmp_path: Path):
    write_scene_shards(tmp_path / "shards", (3,), {"txt": dict.fromkeys(range(3), b"")})
    with pytest.raises(TrainerError, match=r"00000\.tar holds no usable sample: 3 no_caption"):
        list(_steps(_shards(tmp_path / "shards", tmp_path), steps=(0, 1), batch=3))


def test_any_caption_is_drawn_anew_each_epoch(scenes: Path, tmp_path: Path):
    shards = _shards(scenes / "shards", tmp_path)
    pairs = Pairs(shards, View(16, 16, seed=1, captions="any"))
    order = SampleOrder(shards.counts, seed=1)
    known = {text: number for number, text in enumerate(["a", "one", "scene"])}
    first_words = {tuple(tokenize([word], 16)[0, :2].tolist()): number for word, number in known.items()}
    drawn = np.empty((3, 200), np.int64)
    for epoch in range(3):
        addresses = order.at(np.arange(epoch * 200, (epoch + 1) * 200))
        tokens = pairs.batch(addresses).tokens
        place = np.cumsum([0, *shards.counts[:-1]])[addresses.shard] + addresses.index
        drawn[epoch, place] = [first_words[tuple(row[:2].tolist())] for row in tokens]
    assert set(np.unique(drawn)) == {0, 1, 2}
    assert (drawn[0] != drawn[1]).mean() == pytest.approx(2 / 3, abs=0.12)


@pytest.mark.parametrize(("width", "height"), [(100, 60), (60, 100), (64, 64), (900, 700)])
def test_the_crop_is_a_square_of_the_image_at_the_drawn_place(width: int, height: int):
    ramp = np.zeros((height, width, 3), np.float64)
    ramp[..., 0] = np.linspace(0, 255, width)[None, :]
    ramp[..., 1] = np.linspace(0, 255, height)[:, None]
    stream = io.BytesIO()
    Image.fromarray(ramp.astype(np.uint8)).save(stream, "JPEG", quality=100, subsampling=0)
    out = np.empty((32, 32, 3), np.uint8)
    for draws in np.random.default_rng(0).random((5, 3)):
        assert decode_crop(stream.getvalue(), draws, (0.25, 1.0), out) is None
        side = min(width, height) * np.sqrt(0.25 + 0.75 * draws[0])
        for axis, length, draw in ((0, width, draws[1]), (1, height, draws[2])):
            edge = draw * (length - side)
            expected = 255 * (np.array([edge + side / 64, edge + side * 63 / 64]) - 0.5) / (length - 1)
            line = out[16, [0, 31], 0] if axis == 0 else out[[0, 31], 16, 1]
            assert line == pytest.approx(expected, abs=4)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16"])
def test_images_of_every_mode_become_rgb(mode: str):
    image = Image.new("L", (40, 40), 128) if mode == "I;16" else Image.new("RGB", (40, 40), (128, 128, 128))
    stream = io.BytesIO()
    image.convert(mode).save(stream, "JPEG" if mode in ("L", "CMYK") else "PNG")
    out = np.empty((16, 16, 3), np.uint8)
    assert decode_crop(stream.getvalue(), np.zeros(3), (1.0, 1.0), out) is None
    assert np.ptp(out, axis=2).max() <= 6


def test_pixels_are_normalised_as_open_clip_does():
    from open_clip.transform import image_transform

    image = Image.open(io.BytesIO(draw_scene("blue", "square", 4))).crop((0, 0, 32, 32))
    theirs = image_transform(32, is_train=False)(image)
    ours = to_model_input(torch.from_numpy(np.asarray(image).copy())[None], torch.device("cpu"))[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
