"""Views of evaluation pictures, and the content box of web pictures."""

import random

import numpy as np
import pytest

from dedup.copies.edits import EDITS
from dedup.copies.views import VIEWS, content_box, evaluation_views


def photo(seed: int = 0, height: int = 180, width: int = 240) -> np.ndarray:
    """Return noise in blocks: nothing plain in it."""
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 6, width // 6, 3), np.uint8)
    return np.kron(blocks, np.ones((6, 6, 1), np.uint8))


def test_views_are_parts_and_turns_of_the_picture():
    picture = photo()
    views = dict(zip(VIEWS, evaluation_views(picture), strict=True))
    assert views["whole"] is picture
    assert np.array_equal(views["inverted"], 255 - picture)
    assert np.array_equal(views["top left"], picture[:130, :173])
    assert np.array_equal(views["bottom right"], picture[-130:, -173:])
    assert views["rotated +8"].shape == picture.shape
    assert not views["rotated -8"][0, 0].any()


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3)])
def test_tiny_pictures_have_views_too(size):
    assert all(min(view.shape) >= 1 for view in evaluation_views(np.zeros((*size, 3), np.uint8)))
    assert content_box(np.zeros((*size, 3), np.uint8)) is None


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
