"""Small transparent images to lay over photos: lines of text, badges and faces, drawn from a seed."""

import random

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_LETTERS = "etaoinshrdlucmfwypvbgkqjxz"
_COLOURS = ((255, 255, 255), (0, 0, 0), (255, 220, 0), (230, 0, 0), (20, 60, 220), (30, 160, 60))
_HERSHEY = (
    cv2.FONT_HERSHEY_SIMPLEX,
    cv2.FONT_HERSHEY_DUPLEX,
    cv2.FONT_HERSHEY_COMPLEX,
    cv2.FONT_HERSHEY_TRIPLEX,
    cv2.FONT_HERSHEY_SCRIPT_COMPLEX,
)


def draw_overlays(count: int, seed: int) -> list[np.ndarray]:
    """Return `count` RGBA images, `(height, width, 4)` uint8, at most 300 pixels wide."""
    chance = random.Random(seed)
    drawers = (_line_of_text, _outlined_text, _badge, _face)
    return [chance.choices(drawers, (4, 3, 3, 2))[0](chance) for _ in range(count)]


def _words(chance: random.Random) -> str:
    words = []
    for _ in range(chance.randint(1, 5)):
        word = "".join(chance.choice(_LETTERS) for _ in range(chance.randint(1, 9)))
        words.append(chance.choice((word, word.upper(), word.title(), str(chance.randint(0, 3000)))))
    return " ".join(words)


def _line_of_text(chance: random.Random) -> np.ndarray:
    image = Image.new("RGBA", (300, 70), (0, 0, 0, 0))
    drawing = ImageDraw.Draw(image)
    font = ImageFont.load_default(chance.randint(18, 44))
    stroke = chance.choice((0, 0, 2))
    drawing.text((4, 6), _words(chance), chance.choice(_COLOURS), font, stroke_width=stroke, stroke_fill="black")
    return np.asarray(image.crop(image.getbbox() or (0, 0, 40, 20)))


def _outlined_text(chance: random.Random) -> np.ndarray:
    image = np.zeros((70, 300, 4), np.uint8)
    font, scale, thick = chance.choice(_HERSHEY), chance.uniform(0.7, 1.6), chance.randint(1, 3)
    text = _words(chance)[:18]
    if chance.random() < 0.5:
        cv2.putText(image, text, (4, 48), font, scale, (0, 0, 0, 255), thick + 3, cv2.LINE_AA)
    cv2.putText(image, text, (4, 48), font, scale, (*chance.choice(_COLOURS), 255), thick, cv2.LINE_AA)
    columns = np.flatnonzero(image[:, :, 3].any(0))
    rows = np.flatnonzero(image[:, :, 3].any(1))
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()


def _badge(chance: random.Random) -> np.ndarray:
    """A filled shape: disc, star, heart-like polygon, label; two colours, sometimes see-through."""
    image = np.zeros((64, 64, 4), np.uint8)
    alpha = chance.choice((255, 255, 140))
    colour = (*(chance.randint(0, 255) for _ in range(3)), alpha)
    corners = chance.randint(2, 9)
    if corners == 2:
        cv2.circle(image, (32, 32), 30, colour, -1, cv2.LINE_AA)
    else:
        angles = np.arange(2 * corners) * np.pi / corners + chance.uniform(0, 7)
        radii = np.where(np.arange(2 * corners) % 2, 30 * chance.uniform(0.35, 1.0), 30)
        points = np.stack([32 + radii * np.cos(angles), 32 + radii * np.sin(angles)], 1)
        cv2.fillPoly(image, [points.astype(np.int32)], colour, cv2.LINE_AA)
    if chance.random() < 0.5:
        inner = (*(chance.randint(0, 255) for _ in range(3)), alpha)
        cv2.circle(image, (32, 32), chance.randint(6, 18), inner, chance.choice((-1, 3)), cv2.LINE_AA)
    return image


def _face(chance: random.Random) -> np.ndarray:
    image = np.zeros((64, 64, 4), np.uint8)
    skin = (255, chance.randint(170, 230), chance.randint(0, 120), 255)
    cv2.circle(image, (32, 32), 30, skin, -1, cv2.LINE_AA)
    dark = (60, 40, 10, 255)
    for x in (21, 43):
        cv2.ellipse(image, (x, chance.randint(22, 28)), (4, chance.randint(2, 8)), 0, 0, 360, dark, -1, cv2.LINE_AA)
    start, stop = chance.choice(((0, 180), (180, 360), (0, 360)))
    mouth = (chance.randint(6, 18), chance.randint(3, 12))
    cv2.ellipse(image, (32, 42), mouth, 0, start, stop, dark, chance.choice((-1, 3)), cv2.LINE_AA)
    return image
