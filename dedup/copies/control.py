"""Images that no crawl can contain: rendered from a seed, as a negative control. Any match with them is false."""

import random

import cv2
import numpy as np


def control_image(number: int, seed: int) -> np.ndarray:
    """Return an RGB image of 160 to 256 pixels a side: shapes over gradients, with texture, as busy as a photo."""
    return _render(random.Random(f"control:{seed}:{number}"))


def _render(chance: random.Random) -> np.ndarray:
    height, width = chance.randint(160, 256), chance.randint(160, 256)
    image = _gradient(height, width, chance)
    for _ in range(chance.randint(15, 120)):
        colour = [chance.randint(0, 255) for _ in "rgb"]
        centre = (chance.randint(0, width), chance.randint(0, height))
        size = (chance.randint(2, width // 4), chance.randint(2, height // 4))
        kind = chance.randrange(4)
        if kind == 0:
            cv2.ellipse(image, centre, size, chance.randint(0, 180), 0, 360, colour, -1, cv2.LINE_AA)
        elif kind == 1:
            corners = [[c + chance.randint(-s, s) for c, s in zip(centre, size, strict=True)] for _ in range(5)]
            cv2.fillPoly(image, [np.array(corners, np.int32)], colour, cv2.LINE_AA)
        elif kind == 2:
            end = (chance.randint(0, width), chance.randint(0, height))
            cv2.line(image, centre, end, colour, chance.randint(1, 9), cv2.LINE_AA)
        else:
            cv2.circle(image, centre, min(size), colour, chance.randint(1, 6), cv2.LINE_AA)
    noise = np.random.default_rng(chance.getrandbits(32)).normal(0, 1, image.shape)
    texture = np.asarray(cv2.GaussianBlur(noise, (0, 0), chance.uniform(0.6, 4)))
    return np.clip(image + texture * (chance.uniform(2, 18) / texture.std()), 0, 255).astype(np.uint8)


def _gradient(height: int, width: int, chance: random.Random) -> np.ndarray:
    corners = np.array([[[chance.randint(0, 255) for _ in "rgb"] for _ in range(3)] for _ in range(3)], np.uint8)
    return cv2.resize(corners, (width, height), interpolation=cv2.INTER_CUBIC)
