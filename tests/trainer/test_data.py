"""Batches: the same bytes from any workers and ranks, crops and captions by hash, broken samples counted."""

import io
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from support.scene_shards import draw_scene, scene_of, write_scene_shards

from dedup.image_files.jpeg import MAX_SCANS
from trainer.captions import CaptionRule
from trainer.data import (
    MAX_CHUNK,
    Batch,
    PairDataset,
    Preprocessing,
    RankSampler,
    concatenated,
    decode_crop,
    load_steps,
    to_model_input,
)
from trainer.errors import TrainerError
from trainer.order import SampleOrder, rank_offsets
from trainer.shard_cache import ShardCache
from trainer.shards import ShardSet, find_shards
from trainer.tokenizer import tokenize

PLAIN_TOKENIZER = SimpleTokenizer()
CPU = torch.device("cpu")
VIEW = Preprocessing(image_size=32, context_length=16, seed=3)


def _decode_into(
    encoded: bytes | None, draws: np.ndarray, crop_scale: tuple[float, float], out: np.ndarray
) -> str | None:
    """Write an image's crop to `out`, or return why it has none."""
    found = decode_crop(encoded, draws, crop_scale, len(out))
    if isinstance(found, str):
        return found
    out[:] = found.pixels
    return None


def _shards(folder: Path, cache: Path) -> ShardSet:
    return find_shards((f"{folder}/*.tar",), ShardCache(cache, 2**30))


def _steps(
    shards: ShardSet, *, steps: tuple[int, int], workers: int = 0, rank: int = 0, world: int = 1, batch: int = 24
) -> Iterator[Batch]:
    order = SampleOrder(shards.counts, seed=3, lanes=4, window=32)
    share = RankSampler(order, batch, 4, *steps, rank, world)
    yield from load_steps(PairDataset(shards, VIEW), share, workers=workers, prefetch=2, device=CPU)


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
            assert _same(concatenated([ranks[rank][step] for rank in range(world)], CPU), batch)


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
    share = RankSampler(SampleOrder(shards.counts, seed=0), 2 * MAX_CHUNK + 2, 8, 0, 1)
    assert [len(chunk) for chunk in share] == [172, 171, 171]
    (step,) = load_steps(PairDataset(shards, VIEW), share, workers=2, prefetch=1, device=CPU)
    assert _same(step, PairDataset(shards, VIEW).batch(share.order.at(rank_offsets(2 * MAX_CHUNK + 2, 8, 0, 1))))
    elsewhere = concatenated([step, step], torch.device("meta"))  # a device of shapes without numbers
    assert [tensor.device.type for tensor in elsewhere[:4]] == ["meta", "meta", "cpu", "cpu"]
    assert len(elsewhere.images) == len(elsewhere.shards) == 2 * len(step.images)


def test_crops_resized_on_the_device_are_those_of_the_workers(scenes: Path, tmp_path: Path):
    shards = _shards(scenes / "shards", tmp_path)
    sampler = RankSampler(SampleOrder(shards.counts, seed=3, lanes=4, window=32), 24, 4, 0, 4)
    for workers in (0, 2):
        steps = [
            load_steps(PairDataset(shards, view), sampler, workers=workers, prefetch=2, device=CPU)
            for view in (VIEW, replace(VIEW, resizes_on_device=True))
        ]
        for plain, resized in zip(*steps, strict=True):
            assert resized.images.shape == plain.images.shape
            assert (resized.images.int() - plain.images.int()).abs().max() <= 1
            assert all(torch.equal(a, b) for a, b in zip(plain[1:4], resized[1:4], strict=True))
            torch.testing.assert_close(to_model_input(resized.images), to_model_input(plain.images), rtol=0, atol=0.016)


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
    assert Counter(batch.broken) == {"no_image": 2, "broken_image": 1, "too_many_pixels": 1, "no_caption": 2}


def test_broken_neighbours_are_counted_once_each_in_any_workers_and_ranks(tmp_path: Path):
    write_scene_shards(tmp_path / "shards", (40, 8), {"jpg": dict.fromkeys(range(9, 21), b"damaged")})
    shards = _shards(tmp_path / "shards", tmp_path)
    plain = [Counter(batch.broken) for batch in _steps(shards, steps=(0, 8), batch=12)]
    assert sum(plain[:4], Counter()) == sum(plain[4:], Counter()) == {"not_an_image": 12}  # one epoch, then another
    assert [Counter(batch.broken) for batch in _steps(shards, steps=(3, 8), workers=2, batch=12)] == plain[3:]
    ranks = [_steps(shards, steps=(0, 8), rank=rank, world=2, batch=12) for rank in range(2)]
    assert [Counter(one.broken) + Counter(other.broken) for one, other in zip(*ranks, strict=True)] == plain


def test_a_shard_without_any_usable_sample_stops_the_run(tmp_path: Path):
    write_scene_shards(tmp_path / "shards", (3,), {"txt": dict.fromkeys(range(3), b"")})
    with pytest.raises(TrainerError, match=r"00000\.tar holds no usable sample: 3 no_caption"):
        list(_steps(_shards(tmp_path / "shards", tmp_path), steps=(0, 1), batch=3))


def test_any_caption_is_drawn_anew_each_epoch(scenes: Path, tmp_path: Path):
    shards = _shards(scenes / "shards", tmp_path)
    pairs = PairDataset(shards, Preprocessing(16, 16, seed=1, captions=(CaptionRule("any"),)))
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


def _annotate(workspace: Path, shard: int, columns: dict[str, list[Any]]) -> None:
    path = workspace / "annotations" / "recaptions" / f"{shard:05d}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def test_captions_of_annotations_are_those_of_their_sample(tmp_path: Path):
    """Also where the wanted sample is broken and the next one takes its place; without a value, the txt is used."""
    counts = (5, 4)
    write_scene_shards(tmp_path / "shards", counts, {"jpg": {2: b""}})
    texts = [[f"text {n}" if n != 3 else None for n in range(5)], [f"text {n}" for n in range(5, 9)]]
    for shard, column in enumerate(texts):
        _annotate(tmp_path, shard, {"uid": [str(n) for n in range(len(column))], "text": column})
    shards = _shards(tmp_path / "shards", tmp_path / "cache")
    rule = CaptionRule("first", ("annotations/recaptions.text", "txt"))
    assert not rule.reads_json
    batch = PairDataset(shards, Preprocessing(16, 16, seed=1, captions=(rule,))).batch(
        SampleOrder(shards.counts, seed=1).at(np.arange(9))
    )
    found = [texts[s][i] or f"a {' '.join(scene_of(3))}" for s, i in zip(batch.shards, batch.indices, strict=True)]
    assert f"a {' '.join(scene_of(3))}" in found
    assert torch.equal(batch.tokens, tokenize(found, 16))
    assert batch.broken == {"no_image": 1}


@pytest.mark.parametrize(
    ("key", "rows", "message"),
    [
        ("annotations/recaptions.text", 2, r"recaptions\.text has 2 rows for the 3 samples of .*: run `wit annotate`"),
        ("annotations/recaptions.other", 3, r"00000\.parquet has no column 'other'; it has text"),
        ("annotations/absent.text", 3, r"no annotations 'absent' for .*00000\.tar: run `wit annotate absent`"),
        ("annotations/recaptions", 3, r"'annotations/recaptions' must be annotations/NAME\.COLUMN"),
    ],
)
def test_annotations_that_do_not_fit_stop_the_run(tmp_path: Path, key: str, rows: int, message: str):
    write_scene_shards(tmp_path / "shards", (3,))
    _annotate(tmp_path, 0, {"text": ["a"] * rows})
    shards = _shards(tmp_path / "shards", tmp_path / "cache")
    pairs = PairDataset(shards, Preprocessing(16, 16, seed=1, captions=(CaptionRule("first", (key,)),)))
    with pytest.raises(TrainerError, match=message):
        pairs.batch(SampleOrder(shards.counts, seed=1).at(np.arange(3)))


@pytest.mark.parametrize(("width", "height"), [(100, 60), (60, 100), (64, 64), (900, 700)])
def test_the_crop_is_a_square_of_the_image_at_the_drawn_place(width: int, height: int):
    ramp = np.zeros((height, width, 3), np.float64)
    ramp[..., 0] = np.linspace(0, 255, width)[None, :]
    ramp[..., 1] = np.linspace(0, 255, height)[:, None]
    stream = io.BytesIO()
    Image.fromarray(ramp.astype(np.uint8)).save(stream, "JPEG", quality=100, subsampling=0)
    out = np.empty((32, 32, 3), np.uint8)
    for draws in np.random.default_rng(0).random((5, 3)):
        assert _decode_into(stream.getvalue(), draws, (0.25, 1.0), out) is None
        side = min(width, height) * np.sqrt(0.25 + 0.75 * draws[0])
        for axis, length, draw in ((0, width, draws[1]), (1, height, draws[2])):
            edge = draw * (length - side)
            expected = 255 * (np.array([edge + side / 64, edge + side * 63 / 64]) - 0.5) / (length - 1)
            line = out[16, [0, 31], 0] if axis == 0 else out[[0, 31], 16, 1]
            assert line == pytest.approx(expected, abs=4)


def _damaged_avif() -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (60, 50, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "AVIF")
    whole = stream.getvalue()
    start = whole.index(b"mdat") + 4
    return whole[:start] + bytes(len(whole) - start)


def _dds_of_unknown_pixels() -> bytes:
    head = struct.pack("<7I44x", 124, 0x1007, 50, 60, 0, 0, 0)
    return b"DDS " + head + struct.pack("<2I4s5I20x", 32, 4, b"ZZZZ", 0, 0, 0, 0, 0) + bytes(100)


def _blp_of_unknown_encoding() -> bytes:
    return b"BLP2" + struct.pack("<iBBBB2I", 1, 9, 9, 9, 9, 60, 50) + bytes(2_000)


@pytest.mark.parametrize(
    ("encoded", "problem"),
    [
        (_damaged_avif(), "broken_image"),
        (_dds_of_unknown_pixels(), "not_an_image"),
        (_blp_of_unknown_encoding(), "not_an_image"),
    ],
)
def test_whatever_a_decoder_raises_is_a_reason(encoded: bytes, problem: str):
    with pytest.raises((RuntimeError, NotImplementedError)):  # both, and no OSError
        Image.open(io.BytesIO(encoded)).load()
    assert _decode_into(encoded, np.zeros(3), (1.0, 1.0), np.empty((16, 16, 3), np.uint8)) == problem


def test_formats_of_other_programs_are_not_opened():
    stream = io.BytesIO()
    Image.new("RGB", (40, 40)).save(stream, "PCX")
    out = np.empty((16, 16, 3), np.uint8)
    assert _decode_into(stream.getvalue(), np.zeros(3), (1.0, 1.0), out) == "not_an_image"


def _jpeg(progressive: bool) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (40, 40), 90).save(stream, "JPEG", progressive=progressive)
    return stream.getvalue()


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_of_too_many_pixels_is_not_decoded(progressive: bool, monkeypatch: pytest.MonkeyPatch):
    decoded: list[bytes] = []
    decode = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda data, *how: decoded.append(data) or decode(data, *how))
    whole = _jpeg(progressive)
    frame = whole.index(b"\xff\xc2" if progressive else b"\xff\xc0")
    out = np.empty((16, 16, 3), np.uint8)
    for side, problem in ((9_460, "too_many_pixels"), (40, None)):  # 9,460 squared is just above the limit
        encoded = whole[: frame + 5] + struct.pack(">2H", side, side) + whole[frame + 9 :]
        assert _decode_into(encoded, np.zeros(3), (1.0, 1.0), out) == problem
    assert decoded == [whole]


def test_a_jpeg_of_endless_scans_is_broken():
    whole = _jpeg(progressive=True)
    last = whole.rindex(b"\xff\xda")
    out = np.empty((16, 16, 3), np.uint8)
    scans = whole.count(b"\xff\xda")
    for count, problem in ((MAX_SCANS, None), (MAX_SCANS + 1, "broken_image")):
        encoded = whole[:last] + whole[last:-2] * (count - scans + 1) + whole[-2:]
        assert _decode_into(encoded, np.zeros(3), (1.0, 1.0), out) == problem


@pytest.mark.parametrize(("kind", "file_format"), [("<u2", "PNG"), ("<u2", "TIFF"), (">u2", "TIFF"), ("<i4", "TIFF")])
def test_deep_greys_keep_their_brightness(kind: str, file_format: str):
    ramp = np.broadcast_to(np.linspace(0, 65_535, 32), (32, 32)).astype(kind)
    stream = io.BytesIO()
    Image.fromarray(ramp).save(stream, file_format)
    out = np.empty((32, 32, 3), np.uint8)
    assert _decode_into(stream.getvalue(), np.zeros(3), (1.0, 1.0), out) is None
    assert (out == (ramp.astype(np.int64) // 256)[..., None]).all()


def test_floating_point_pixels_are_refused():
    stream = io.BytesIO()
    Image.fromarray(np.full((32, 32), 0.5, np.float32)).save(stream, "TIFF")
    assert (
        _decode_into(stream.getvalue(), np.zeros(3), (1.0, 1.0), np.empty((16, 16, 3), np.uint8))
        == "unsupported_format"
    )


_words = st.sampled_from(["banjo", "charlottesville", "photography", "aa", "ab", "ba", "😂", "é", "!", "x", "qz"])
_texts = st.one_of(
    st.text(max_size=40),
    st.text([chr(code) for code in range(9, 127)], max_size=60),
    st.builds(lambda words, times: "".join(words) * times, st.lists(_words, max_size=12), st.integers(1, 60)),
    st.text("abcdeilnorst", min_size=250, max_size=600),
)


@given(texts=st.lists(_texts, min_size=1, max_size=3), context=st.integers(4, 16))
@settings(max_examples=200, deadline=None)
def test_tokens_are_those_of_open_clip(texts: list[str], context: int):
    assert torch.equal(tokenize(texts, context), PLAIN_TOKENIZER(texts, context))


def test_of_an_endless_word_only_its_beginning_is_merged(monkeypatch: pytest.MonkeyPatch):
    seen: list[int] = []
    merge = SimpleTokenizer.bpe

    def bpe(self: SimpleTokenizer, token: str) -> str:
        seen.append(len(token))
        return str(merge(self, token))

    monkeypatch.setattr(SimpleTokenizer, "bpe", bpe)
    word = "".join(np.random.default_rng(1).choice(list("abcdefghijklmnopqrstuvwxyz"), 60_000))
    cut = tokenize([word, f"{word} {word}"], 16)
    assert sum(seen) <= 2 * 64 * 16
    assert torch.equal(cut, PLAIN_TOKENIZER([word[:2_000]] * 2, 16))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16"])
def test_images_of_every_mode_become_rgb(mode: str):
    image = Image.new("L", (40, 40), 128) if mode == "I;16" else Image.new("RGB", (40, 40), (128, 128, 128))
    stream = io.BytesIO()
    image.convert(mode).save(stream, "JPEG" if mode in ("L", "CMYK") else "PNG")
    out = np.empty((16, 16, 3), np.uint8)
    assert _decode_into(stream.getvalue(), np.zeros(3), (1.0, 1.0), out) is None
    assert np.ptp(out, axis=2).max() <= 6


def test_pixels_are_normalised_as_open_clip_does():
    from open_clip.transform import image_transform

    image = Image.open(io.BytesIO(draw_scene("blue", "square", 4))).crop((0, 0, 32, 32))
    theirs = image_transform(32, is_train=False)(image)
    ours = to_model_input(torch.from_numpy(np.asarray(image).copy())[None])[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
