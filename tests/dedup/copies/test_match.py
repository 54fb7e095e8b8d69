"""Several sets are searched at once: each web image is decoded once, and each set finds what it finds alone."""

import random

import cv2
import numpy as np
import pytest
from support.copies import save_model, scene

from dedup.copies.detector import Detector
from dedup.copies.edits import EDITS
from dedup.copies.match import CopyFinder, Described, KnownSet, describe_views
from dedup.copies.search import VectorIndex
from dedup.copies.verify import align
from dedup.copies.views import VIEWS

KINDS = ("same", "flip", "crop 80%", "inverted", "border 10% white")


@pytest.fixture(scope="module")
def detector(tmp_path_factory) -> Detector:
    path = tmp_path_factory.mktemp("match") / "model.onnx"
    return Detector.load(save_model(path, metadata={"wit.side": 16, "wit.sure": 1.0, "wit.propose": 0.2}))


def finder(detector: Detector, sets: list[list[np.ndarray]]) -> CopyFinder:
    vectors = describe_views(detector, [image for images in sets for image in images])
    index = VectorIndex.build(vectors, len(VIEWS), [len(images) for images in sets])
    return CopyFinder(detector, index, [KnownSet(images.__getitem__) for images in sets])


def tiny(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA)


def test_sets_searched_together_find_what_each_finds_alone(detector):
    sets = [
        [scene(number) for number in range(4)],
        [scene(number) for number in range(2, 6)],
        [tiny(scene(number)) for number in range(4)],
        [scene(number) for number in range(90, 94)],
    ]
    web = [EDITS[name](scene(n), scene(n + 50), random.Random(n)) for n, name in enumerate(KINDS)]
    described, decoded = Described.of(detector, web), []

    def pixels(number: int) -> np.ndarray:
        decoded.append(number)
        return web[number]

    together = finder(detector, sets).find(described, pixels)
    assert len(decoded) == len(set(decoded)) >= 4
    alone = [finder(detector, [images]).find(described, web.__getitem__)[0] for images in sets]
    assert together == alone
    some = finder(detector, sets).find(described, web.__getitem__, only=[3, 1])
    assert some == [[], alone[1], [], alone[3]]
    assert [{(copy.example, copy.image) for copy in found} for found in together[:2]] == [
        {(0, 0), (1, 1), (2, 2), (3, 3)},
        {(0, 2), (1, 3), (2, 4)},
    ]
    assert {(0, 0), (1, 1)} <= {(copy.example, copy.image) for copy in together[2]}
    assert not together[3]
    assert finder(detector, []).find(described, pixels) == []


def test_the_proof_is_the_alignment_of_the_two_pictures(detector):
    web = [EDITS["flip"](scene(1), scene(9), random.Random(1))]
    (found,) = finder(detector, [[scene(7), scene(1)]]).find(Described.of(detector, web), web.__getitem__)
    assert [copy.example for copy in found] == [1]
    assert found[0].alignment == align(scene(1), web[0])
    assert found[0].edit() == "mirrored"


def test_small_sets_propose_from_a_lower_cosine_than_large_ones(tmp_path, monkeypatch):
    monkeypatch.setattr("dedup.copies.detector._FEW_IMAGES", 2)
    monkeypatch.setattr("dedup.copies.detector._MANY_IMAGES", 6)
    metadata = {"wit.side": 16, "wit.sure": 1.0, "wit.propose": 0.99, "wit.loose": 0.2}
    detector = Detector.load(save_model(tmp_path / "model.onnx", metadata=metadata))
    web = [EDITS["crop 80%"](scene(1), scene(9), random.Random(1))]
    few, many = [scene(1), scene(2)], [scene(number) for number in range(1, 9)]
    described = Described.of(detector, web)
    for sets in ([few, many], [many, few]):
        proposed = finder(detector, sets).propose(described)[0]
        (number,) = proposed  # the large set proposes nothing
        assert sets[number] is few
        assert proposed[number][0].row == 0


@pytest.mark.parametrize("name", ["equalised", "collage half", "insert 70% side", "32 px", "JPEG 10"])
def test_what_one_view_of_the_whole_cannot_show_is_found(detector, name):
    known = [scene(number) for number in range(6)]
    web = [EDITS[name](known[number], scene(number + 50), random.Random(number)) for number in range(6)]
    (found,) = finder(detector, [known]).find(Described.of(detector, web), web.__getitem__)
    assert sum(copy.example == copy.image for copy in found) >= 5
    assert all(copy.example == copy.image for copy in found)
