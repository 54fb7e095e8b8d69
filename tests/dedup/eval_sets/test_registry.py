import re

import pytest

from dedup.eval_sets import EvalSet, find_set, known_sets, registered, threshold_bits, threshold_probability

# Named in section 5 of the CLIP paper or in its figure 17.
STATED = {
    "country211", "birdsnap", "stanford-cars", "fer2013", "sun", "sun397", "cifar100", "imagenet-sketch", "kinetics700",
    "mnist", "clevr-counts", "gtsrb", "objectnet", "hateful-memes",
}  # fmt: skip


def test_35_sets_are_registered_and_3_more_are_known() -> None:
    assert len(registered()) == 35
    assert len(known_sets()) == 38
    assert known_sets()[:35] == registered()
    assert {s.name for s in known_sets() if not s.is_registered} == {"stl10", "kitti-distance", "imagenet-blurry"}


def test_the_sets_that_the_paper_names_are_marked() -> None:
    assert {s.name for s in known_sets() if s.basis == "stated"} == STATED
    assert {s.name for s in known_sets() if s.clip_overlap_percent is not None} <= STATED


@pytest.mark.parametrize("known", known_sets(), ids=lambda s: s.name)
def test_every_entry_makes_sense(known: EvalSet) -> None:
    assert re.fullmatch(r"[a-z0-9][a-z0-9._-]*", known.name)
    assert known.title
    assert 2 <= known.classes <= 2_000
    assert known.test_images is None or 500 <= known.test_images <= 60_000
    assert known.test_images is not None or known.note
    assert known.clip_overlap_percent is None or 0 <= known.clip_overlap_percent <= 22
    assert known.max_distance_bits in (None, 15)


def test_names_and_titles_are_unique() -> None:
    assert len({s.name for s in known_sets()}) == len({s.title for s in known_sets()}) == 38


def test_sets_are_found_by_name() -> None:
    found = find_set("cifar10")
    assert found is not None
    assert found.title == "CIFAR-10"
    assert find_set("my-own") is None


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(ValueError, match="x: metric 'guess'"):
        EvalSet("x", "X", 2, "guess", "stated")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "default", "bits"), [("mnist", 31, 15), ("mnist", 8, 8), ("cifar10", 31, 31), ("x", 9, 9)]
)
def test_the_registry_can_only_be_stricter(name: str, default: int, bits: int) -> None:
    assert threshold_bits(name, default) == bits


@pytest.mark.parametrize(
    ("name", "default", "least"), [("mnist", 0.85, 0.998), ("mnist", 0.9999, 0.9999), ("cifar10", 0.85, 0.85)]
)
def test_the_registry_is_stricter_for_look_alikes(name: str, default: float, least: float) -> None:
    assert threshold_probability(name, default) == least
