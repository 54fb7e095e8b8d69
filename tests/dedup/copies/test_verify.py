"""Verification: copies are aligned as they were edited, strangers are not; and what the alignment says in words."""

import random
from itertools import islice

import cv2
import numpy as np
import pytest
from support.copies import scene

from dedup.copies.edits import EDITS, crop, edited
from dedup.copies.transform import Transform
from dedup.copies.verify import MIN_PROBABILITY, Agreement, align, features, mirrored
from dedup.decode import decode_rgb
from dedup.eval_sets.index import thumbnail
from pipeline.demo.drawing import draw
from pipeline.demo.scenes import COLOURS, SHAPES, Thing, held_out_scenes, training_scenes


def edit(name: str, seed: int = 1) -> np.ndarray:
    return EDITS[name](scene(seed), scene(seed + 100), random.Random(seed))


def words(web: np.ndarray, seed: int = 1) -> str:
    alignment = align(scene(seed), web)
    assert alignment is not None
    assert alignment.is_copy
    return Transform.of(alignment, (280, 200), (web.shape[1], web.shape[0])).words()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("same", ""),
        ("JPEG 10", ""),
        ("text", ""),
        ("flip", "mirrored"),
        ("rotate 90", "rotated by 90°"),
        ("rotate 180", "rotated by 180°"),
        ("crop 70%", "cropped to 49%"),
        ("border 10% white", "on 65% of a larger picture"),
        ("aspect x1.5", "stretched 1.50 : 1"),
    ],
)
def test_what_was_done_is_said(name, said):
    assert words(edit(name)).replace("-180", "180") == said


def test_mirrored_features_are_those_of_the_mirror_image():
    one, other = mirrored(features(scene(4))), features(np.ascontiguousarray(scene(4)[:, ::-1]))
    assert one.mirrored
    assert np.array_equal(one.grey, other.grey)
    away = np.linalg.norm(one.points[:, None] - other.points[None], axis=2)
    cosines = np.where(away < 1, one.descriptors @ other.descriptors.T, 0).max(1)  # a point may have two descriptors
    assert np.mean(cosines > 0.95) > 0.75
    again = mirrored(one)
    assert np.allclose(again.points, features(scene(4)).points, atol=1e-3)
    assert np.array_equal(again.descriptors, features(scene(4)).descriptors)


def test_a_web_image_of_few_pixels_is_compared_at_its_resolution():
    found = [align(scene(seed), edit("32 px", seed)) for seed in range(12)]
    assert sum(one is not None and one.is_copy for one in found) >= 11
    assert not any((one := align(scene(seed + 1), edit("32 px", seed))) and one.is_copy for seed in range(12))
    placed = Transform.of(found[0], (280, 200), edit("32 px", 0).shape[1::-1])
    assert placed.evaluation_share > 0.9


def test_both_ways_of_turning():
    said = {words(EDITS["rotate 8"](scene(1), scene(2), random.Random(seed))).split(",")[0] for seed in range(8)}
    assert {round(float(one.removeprefix("rotated by ").removesuffix("°"))) for one in said} == {-8, 8}
    upright = cv2.warpAffine(scene(1), cv2.getRotationMatrix2D((140, 100), 8, 1), (280, 200))  # counter-clockwise
    assert words(upright).startswith("rotated by 8")


def test_the_crop_box_is_where_the_crop_was_cut():
    alignment = align(scene(3), scene(3)[60:180, 28:168])
    transform = Transform.of(alignment, (280, 200), (140, 120))
    assert np.allclose(transform.corners, [(0.1, 0.3), (0.6, 0.3), (0.6, 0.9), (0.1, 0.9)], atol=0.01)
    assert transform.evaluation_share == pytest.approx(0.3, abs=0.01)


def test_the_corners_of_a_mirrored_crop_are_on_the_upright_picture():
    alignment = align(scene(3), np.ascontiguousarray(scene(3)[60:180, 28:168][:, ::-1]))
    transform = Transform.of(alignment, (280, 200), (140, 120))
    assert transform.mirrored
    assert np.allclose(transform.corners, [(0.6, 0.3), (0.1, 0.3), (0.1, 0.9), (0.6, 0.9)], atol=0.01)


@pytest.mark.parametrize(
    "name", ["screenshot", "insert 50% side", "collage half", "meme text", "covered 50% side", "64 px"]
)
def test_hard_copies_are_verified(name):
    assert sum((found := align(scene(seed), edit(name, seed))) is not None and found.is_copy for seed in range(8)) >= 7


def test_strangers_are_not():
    found = [align(scene(seed), scene(seed + 1)) for seed in range(0, 60, 2)]
    assert not any(one is not None and one.is_copy for one in found)


def test_a_stranger_that_the_copy_lies_on_is_not_found_in_the_photo_beside_it():
    other, photo = scene(10), scene(11)
    pasted = other.copy()
    pasted[:50, :70] = cv2.resize(photo, (70, 50))
    assert align(photo, other) is None or not align(photo, other).is_copy
    assert align(other, pasted).is_copy


@pytest.mark.parametrize("picture", [np.zeros((1, 1, 3), np.uint8), np.full((90, 30, 3), 7, np.uint8)])
def test_pictures_without_features_align_with_nothing(picture):
    for found in (align(scene(1), picture), align(picture, scene(1))):
        assert found is None or not found.is_copy


@pytest.mark.parametrize(
    ("cells", "share", "exactness", "is_copy"),
    [
        (80, 1.0, 0.98, True),  # a copy, encoded again
        (16, 1.0, 0.99, True),  # a deep crop
        (60, 0.7, 0.995, True),  # a third of it covered
        (60, 0.7, 0.85, False),  # the same motif: most edges are at the same places, none exactly
        (30, 0.9, 0.8, False),
        (3, 1.0, 1.0, False),
    ],
)
def test_covered_copies_agree_exactly_and_look_alikes_do_not(cells, share, exactness, is_copy):
    assert (Agreement(cells, share, exactness).probability >= MIN_PROBABILITY) == is_copy


def test_a_motif_drawn_twice_is_not_a_copy():
    """Two signs with the same letters, in other fonts and at other places: many points match."""
    signs = []
    for font, size, place in ((cv2.FONT_HERSHEY_SIMPLEX, 2.0, (36, 120)), (cv2.FONT_HERSHEY_DUPLEX, 1.9, (42, 124))):
        sign = np.full((200, 280, 3), (230, 230, 230), np.uint8)
        cv2.circle(sign, (140, 100), 98, (40, 30, 200), -1, cv2.LINE_AA)
        cv2.putText(sign, "STOP", place, font, size, (255, 255, 255), 7, cv2.LINE_AA)
        signs.append(sign)
    found = align(*signs)
    assert found is None or not found.is_copy
    assert align(signs[0], signs[0]).is_copy


def test_a_crop_of_a_large_picture_is_in_its_own_pixels():
    large = cv2.resize(scene(4), (1120, 800), interpolation=cv2.INTER_CUBIC)
    web = crop(0.6)(large, large, random.Random(2))
    transform = Transform.of(align(large, web), (1120, 800), (web.shape[1], web.shape[0]))
    assert transform.evaluation_share == pytest.approx(0.36, abs=0.01)
    assert transform.words() == "cropped to 36%"


@pytest.mark.parametrize(("known", "web"), [(9, 149), (10, 232), (28, 305), (170, 683)])
def test_pictures_of_one_pattern_are_no_copies(known, web):
    """Stripes and checks have many matching points that agree in many cells, but few points follow one map."""
    things = [Thing(colour, shape) for colour in COLOURS for shape in SHAPES]
    scene = list(held_out_scenes(things[known // 4], 7, 4))[known % 4]
    other = next(islice(training_scenes(7), web, None))
    first, second = (decode_rgb(thumbnail(np.asarray(draw(one)))) for one in (scene, other))
    found = align(first, second)
    assert found is None or not found.is_copy
    assert align(first, decode_rgb(edited("crop 80%", first, second, "1"))).is_copy
