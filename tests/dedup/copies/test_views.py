"""Views of evaluation pictures."""

import numpy as np
import pytest

from dedup.copies.views import EQUALISED, INVERTED, VIEWS, evaluation_views


def photo(seed: int = 0, height: int = 180, width: int = 240) -> np.ndarray:
    """Return noise in blocks: nothing plain in it."""
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 6, width // 6, 3), np.uint8)
    return np.kron(blocks, np.ones((6, 6, 1), np.uint8))


def test_views_are_parts_and_turns_of_the_picture():
    picture = photo()
    views = dict(zip(VIEWS, evaluation_views(picture), strict=True))
    assert views["whole"] is picture
    assert np.array_equal(views["inverted"], 255 - picture)
    assert np.ptp(np.bincount(views["equalised"][:, :, 1].ravel() // 32)) < 0.1 * picture[:, :, 1].size
    assert (VIEWS[INVERTED], VIEWS[EQUALISED]) == ("inverted", "equalised")
    assert np.array_equal(views["top left"], picture[:130, :173])
    assert np.array_equal(views["bottom right"], picture[-130:, -173:])
    assert views["rotated +8"].shape == picture.shape
    assert not views["rotated -8"][0, 0].any()


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3)])
def test_tiny_pictures_have_views_too(size):
    assert all(min(view.shape) >= 1 for view in evaluation_views(np.zeros((*size, 3), np.uint8)))
