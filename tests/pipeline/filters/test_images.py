"""Conditions on images, and the score that a fraction reaches, against sorting."""

import io
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dedup.decode import decode_rgb
from pipeline.filters.images import is_single_colour
from pipeline.filters.threshold import threshold_of_best


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (12, 200, 99)])
@pytest.mark.parametrize("quality", [60, 95])
def test_one_colour_is_found_behind_jpeg(colour: tuple[int, int, int], quality: int) -> None:
    image, out = Image.new("RGB", (64, 48), colour), io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    assert is_single_colour(decode_rgb(out.getvalue()))
    image.paste((255 - colour[0], 90, 30), (20, 20, 30, 24))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    assert not is_single_colour(decode_rgb(out.getvalue()))


def test_a_soft_gradient_is_a_picture() -> None:
    ramp = np.linspace(100, 120, 64).astype(np.uint8)
    assert not is_single_colour(np.broadcast_to(ramp[None, :, None], (64, 64, 3)))


@given(
    st.lists(st.lists(st.floats(-1, 1, width=32), max_size=20), max_size=4),
    st.floats(0.01, 1),
)
def test_the_threshold_is_that_of_sorting(parts: list[list[float]], fraction: float) -> None:
    arrays = [np.array(part, np.float32) for part in parts]
    ordered = sorted((score for part in arrays for score in part.tolist()), reverse=True)
    found = threshold_of_best(lambda: arrays, fraction)
    if not ordered:
        assert found == -math.inf
    else:
        wanted = math.ceil(fraction * len(ordered))
        assert found == ordered[wanted - 1]
        assert sum(score >= found for score in ordered) >= wanted
