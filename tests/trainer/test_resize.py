"""Crops resized on the device are those that Pillow makes, to one level of 255."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trainer.resize import Crop, Packing, cut, packed, resize, resized


def _noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Return an image of full contrast at every scale, the hardest case."""
    random = np.random.default_rng(seed)
    fine = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    coarse = Image.fromarray(random.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((width, height))
    return np.where(random.random((height, width, 1)) < 0.5, fine, np.asarray(coarse)).astype(np.uint8)


def _difference(found: np.ndarray, expected: np.ndarray) -> int:
    return int(np.abs(found.astype(int) - expected.astype(int)).max())


@given(
    width=st.integers(8, 90), height=st.integers(8, 90), fraction=st.floats(0.3, 1.0), size=st.sampled_from([16, 24]),
    x=st.floats(0, 1), y=st.floats(0, 1),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_any_box_of_any_image(width: int, height: int, fraction: float, size: int, x: float, y: float):
    image, side = _noise(width, height), min(width, height) * fraction
    left, top = x * (width - side), y * (height - side)
    expected = resized(Image.fromarray(image), left, top, side, size)
    found = resize(*packed([cut(image, left, top, side, size)]), size)[0].numpy()
    assert found.shape == (size, size, 3)
    assert _difference(found, expected) <= 1


def test_a_batch_of_different_sizes_is_as_one_by_one_and_ignores_what_is_outside():
    images = [_noise(width, height, seed=width) for width, height in ((40, 60), (250, 90), (33, 33))]
    crops = [cut(image, 1.5, 2.25, 29.75, 32) for image in images]
    pixels, boxes = packed(crops)
    for row, crop in enumerate(crops):
        height, width = crop.pixels.shape[:2]
        pixels[row, height:], pixels[row, :, width:] = 255, 255
    together = resize(pixels, boxes, 32)
    for row, crop in enumerate(crops):
        assert _difference(together[row].numpy(), resize(*packed([crop]), 32)[0].numpy()) <= 1


@given(
    sizes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), max_size=6), edge=st.integers(0, 60),
    step=st.sampled_from([1, 16]), shared=st.booleans(),
)  # fmt: skip
def test_crops_are_packed_whatever_size_was_expected(sizes: list[tuple[int, int]], edge: int, step: int, shared: bool):
    crops = [Crop(_noise(width, height, seed=edge), 1.0, 2.0, 3.0) for width, height in sizes]
    packing = Packing(len(crops), edge, step=step, shared=shared)
    for crop in crops:
        packing.add(crop)
    images, boxes = packing.tensors()
    largest = max((max(size) for size in sizes), default=0)
    assert images.shape == (len(crops), *[-(-largest // step) * step] * 2, 3)
    assert images.is_shared() == shared
    for image, box, crop, (width, height) in zip(images.numpy(), boxes.tolist(), crops, sizes, strict=True):
        assert box == [1, 2, 3, width, height]
        assert np.array_equal(image[:height, :width], crop.pixels)


def test_what_is_far_too_large_is_resized_before_it_is_sent():
    image = _noise(900, 700)
    crop = cut(image, 10.0, 20.0, 650.0, 32)
    assert crop.pixels.shape == (32, 32, 3)
    found = resize(*packed([crop]), 32)[0].numpy()
    assert _difference(found, resized(Image.fromarray(image), 10.0, 20.0, 650.0, 32)) == 0


@pytest.mark.parametrize("size", [224])
def test_the_usual_size(size: int):
    image = _noise(340, 256)
    found = resize(*packed([cut(image, 31.7, 3.3, 249.1, size)]), size)[0].numpy()
    assert _difference(found, resized(Image.fromarray(image), 31.7, 3.3, 249.1, size)) <= 1


def test_no_image_is_no_image():
    assert resize(*packed([Crop(np.zeros((1, 1, 3), np.uint8), 0, 0, 1)][:0]), 8).shape == torch.Size([0, 8, 8, 3])
