"""The edits: each changes the picture as its name says, and the same seed gives the same file."""

import random

import numpy as np
import pytest

from dedup.copies.edits import EDITS, UNSEEN_EDITS, edited
from dedup.decode import decode_rgb


@pytest.fixture(scope="module")
def photos():
    chance = np.random.default_rng(5)
    ramp = np.linspace(0, 200, 240)[None, :, None] + np.linspace(0, 50, 160)[:, None, None]
    return [np.clip(ramp + chance.normal(0, 12, (160, 240, 3)), 0, 255).astype(np.uint8) for _ in range(2)]


def test_there_are_56_kinds_and_10_that_are_kept_apart():
    assert (len(EDITS), len(UNSEEN_EDITS)) == (56, 10)
    assert not set(EDITS) & set(UNSEEN_EDITS)


@pytest.mark.parametrize("name", [*EDITS, *UNSEEN_EDITS])
def test_an_edit_repeats_leaves_its_arguments_alone_and_changes_the_picture(name, photos):
    photo, other = (picture.copy() for picture in photos)
    file = edited(name, photo, other, "a")
    assert file == edited(name, photo, other, "a")
    assert np.array_equal(photo, photos[0])
    assert np.array_equal(other, photos[1])
    if name != "same":
        assert file != edited("same", photo, other, "a")


@pytest.mark.parametrize(
    ("name", "size"), [("crop 80%", (128, 192)), ("crop 50%", (80, 120)), ("letterbox", (240, 240))]
)
def test_sizes(name, size, photos):
    assert (EDITS | UNSEEN_EDITS)[name](*photos, random.Random(1)).shape[:2] == size


def test_a_crop_is_a_part_of_the_photo(photos):
    part = EDITS["crop 70%"](*photos, random.Random(3))
    height, width = part.shape[:2]
    places = [
        (top, left)
        for top in range(160 - height + 1)
        for left in range(240 - width + 1)
        if np.array_equal(photos[0][top, left : left + 8], part[0, :8])
    ]
    assert any(np.array_equal(photos[0][t : t + height, left : left + width], part) for t, left in places)


def test_a_border_surrounds_the_whole_photo(photos):
    framed = EDITS["border 10% white"](*photos, random.Random(1))
    assert np.array_equal(framed[24:-24, 24:-24], photos[0])
    assert (framed[:24] == 255).all()


def test_the_file_shows_the_edit(photos):
    turned = decode_rgb(edited("rotate 180", *photos, "a")).astype(int)
    assert np.abs(turned - photos[0][::-1, ::-1]).mean() < 12
