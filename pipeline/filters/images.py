"""Conditions on the decoded image."""

import numpy as np

_SAME_LEVELS = 8
"""Of 256: what JPEG makes of one colour stays within this."""


def is_single_colour(rgb: np.ndarray) -> bool:
    """Return whether all pixels of an image, (height, width, 3) uint8, are of one colour but for JPEG's rounding."""
    return bool((np.ptp(rgb.reshape(-1, 3), axis=0) <= _SAME_LEVELS).all())
