"""The pictures inside web pictures: what a plain surround holds, and rectangles with sharp straight sides."""

import random

import cv2
import numpy as np
import pytest
from support.copies import scene

from dedup.copies.boxes import Box, content_box, inner_boxes, rectangles
from dedup.copies.edits import EDITS, resized


def photo(seed: int = 0, height: int = 180, width: int = 240) -> np.ndarray:
    """Return noise in blocks: nothing plain in it."""
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 6, width // 6, 3), np.uint8)
    return np.kron(blocks, np.ones((6, 6, 1), np.uint8))


@pytest.mark.parametrize("name", ["border 3%", "border 10% black", "border 10% white", "letterbox", "screenshot"])
def test_the_content_box_undoes_a_surround(name):
    found = 0
    for seed in range(10):
        picture = photo(seed)
        box = content_box(EDITS[name](picture, picture, random.Random(seed)))
        assert box is not None
        inner = (box.right - box.left, box.bottom - box.top)
        found += abs(inner[0] - 240) <= 4 and abs(inner[1] - 180) <= 4
    assert found >= 9


def test_a_picture_that_fills_its_frame_has_none():
    assert [content_box(photo(seed)) for seed in range(10)] == [None] * 10


def test_a_plain_picture_has_none():
    assert content_box(np.full((50, 60, 3), 200, np.uint8)) is None


def test_the_box_of_a_large_picture_is_in_its_own_pixels():
    framed = np.full((1400, 1000, 3), 255, np.uint8)
    framed[400:1000, 200:800] = photo(1, 600, 600)
    left, top, right, bottom = content_box(framed)
    assert np.abs(np.array([left, top, right, bottom]) - [200, 400, 800, 1000]).max() <= 12


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3), (40, 40)])
def test_tiny_and_plain_pictures_have_none(size):
    assert inner_boxes(np.zeros((*size, 3), np.uint8)) == []


def near(box: Box, place: tuple[int, int, int, int]) -> bool:
    return bool(np.abs(np.array(box) - place).max() <= 2)


@pytest.mark.parametrize("size", [(200, 280), (280, 200)])
def test_both_pictures_of_a_collage_are_found(size):
    height, width = size
    for seed in range(10):
        collage = EDITS["collage half"](
            scene(seed, height, width), scene(seed + 50, height, width), random.Random(seed)
        )
        tall, wide = collage.shape[:2]
        one, other = (0, 0, wide, height), (0, height, wide, tall)
        if height > width:
            one, other = (0, 0, width, tall), (width, 0, wide, tall)
        boxes = inner_boxes(collage)
        assert any(near(box, one) for box in boxes)
        assert any(near(box, other) for box in boxes)


@pytest.mark.parametrize("share", [0.7, 0.5])
def test_a_picture_on_another_is_found(share):
    found = 0
    for seed in range(10):
        picture, below = scene(seed), scene(seed + 50)
        width, height = round(280 * share), round(200 * share)
        left, top = random.Random(seed).randint(0, 280 - width), random.Random(seed).randint(0, 200 - height)
        below[top : top + height, left : left + width] = resized(picture, width, height)
        found += any(near(box, (left, top, left + width, top + height)) for box in rectangles(below))
    assert found >= 8


def test_a_large_collage_is_cut_in_its_own_pixels():
    collage = np.concatenate([scene(1, 1500, 900), scene(2, 1500, 1100)], axis=1)
    assert any(np.abs(np.array(box) - (0, 0, 900, 1500)).max() <= 12 for box in inner_boxes(collage))


def test_most_pictures_of_one_scene_have_no_rectangles():
    soft = [cv2.GaussianBlur(scene(seed), (0, 0), 0.7) for seed in range(30)]
    assert sum(bool(inner_boxes(picture)) for picture in soft) <= 2
