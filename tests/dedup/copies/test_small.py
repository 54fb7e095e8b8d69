"""Verification of pictures as small as CIFAR's."""

import random

import cv2
import numpy as np
import pytest
from support.copies import scene

from dedup.copies.edits import EDITS, crop
from dedup.copies.small import best_window, is_small
from dedup.copies.transform import Transform
from dedup.copies.verify import align


def tiny(seed: int) -> np.ndarray:
    return cv2.resize(scene(seed), (32, 32), interpolation=cv2.INTER_AREA)


def test_which_pictures_are_small():
    assert is_small(tiny(1))
    assert not is_small(scene(1))


@pytest.mark.parametrize("name", ["same", "JPEG 10", "grey", "flip", "crop 90%", "crop 70%", "text", "aspect x1.5"])
def test_the_large_picture_of_a_tiny_one_is_found(name):
    for seed in range(4):
        web = EDITS[name](scene(seed), scene(seed + 50), random.Random(seed))
        assert align(tiny(seed), web).is_copy


def test_two_horizons_are_no_copies():
    """They correlate above 0.9 and agree in the one direction only, as sea, sky and mountains do."""
    chance = np.random.default_rng(4)
    shores = []
    for _ in range(2):
        shore = np.full((32, 32, 3), 200, np.uint8)
        shore[18:] = 60
        shores.append(np.clip(shore + chance.normal(0, 5, shore.shape), 0, 255).astype(np.uint8))
    assert best_window(*shores).correlation > 0.85
    assert not align(*shores).is_copy
    textured = [cv2.addWeighted(tiny(3), 0.3, shore, 0.7, 0) for shore in shores]
    assert align(*textured).is_copy


def test_strangers_are_not():
    assert not any(align(tiny(seed), scene(seed + 1)).is_copy for seed in range(0, 40, 2))


@pytest.mark.parametrize("flat", [np.full((32, 32, 3), 90, np.uint8), np.zeros((1, 1, 3), np.uint8)])
def test_flat_pictures_match_nothing(flat):
    assert not align(flat, scene(1)).is_copy
    assert not align(tiny(1), flat).is_copy
    assert not align(flat, flat).is_copy


def test_what_was_done_is_told():
    web = crop(0.7)(scene(3), scene(4), random.Random(3))
    found = align(tiny(3), web)
    transform = Transform.of(found, (32, 32), (web.shape[1], web.shape[0]))
    assert transform.evaluation_share == pytest.approx(0.49, abs=0.08)
    assert not transform.mirrored
    assert align(tiny(3), np.ascontiguousarray(web[:, ::-1])).mirrored


def test_a_tiny_picture_inside_a_larger_one_is_placed():
    web = np.full((100, 140, 3), 250, np.uint8)
    web[20:90, 30:128] = cv2.resize(scene(5), (98, 70), interpolation=cv2.INTER_AREA)
    window = best_window(tiny(5), web)
    assert not window.web_on_evaluation
    placed = (window.left, window.top, window.width, window.height)
    assert np.allclose(placed, (30 / 140, 0.2, 0.7, 0.7), atol=0.06)
