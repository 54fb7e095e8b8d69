"""Edits that draw on a photo: text, watermarks, stickers, and the screen of an app around it."""

import random
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_WORDS = tuple(
    # ruff: noqa: SIM905
    "the of photo day summer best sale new free cat when you see it love life never again follow us like share".split()
)


def text(photo: np.ndarray, other: np.ndarray, chance: random.Random) -> np.ndarray:
    """Write one line of five words on the photo."""
    image, drawing, width, height = _open(photo)
    colour = chance.choice(((255, 255, 255), (0, 0, 0), (255, 230, 0), (230, 0, 0)))
    drawing.text((width * 0.05, height * chance.uniform(0.05, 0.8)), _line(chance, 5), colour, _font(height * 0.1))
    return np.asarray(image)


def meme(photo: np.ndarray, other: np.ndarray, chance: random.Random) -> np.ndarray:
    """Write large outlined white text at the top and at the bottom."""
    image, drawing, width, height = _open(photo)
    for top in (0.02, 0.8):
        place = (width * 0.02, height * top)
        font = _font(height * 0.15)
        drawing.text(place, _line(chance, 4).upper(), "white", font, stroke_width=2, stroke_fill="black")
    return np.asarray(image)


def watermark(photo: np.ndarray, other: np.ndarray, chance: random.Random) -> np.ndarray:
    """Repeat half-transparent text over the whole photo, level or slanted."""
    height, width = photo.shape[:2]
    layer = Image.new("RGBA", (width, height), (0, 0, 0, 0))
    drawing = ImageDraw.Draw(layer)
    for top in np.arange(0, height, height * 0.22):
        left = chance.uniform(-0.2, 0.1) * width
        drawing.text((left, top), _line(chance, 6), (255, 255, 255, 110), _font(height * 0.1))
    below = Image.fromarray(np.ascontiguousarray(photo)).convert("RGBA")
    return np.asarray(Image.alpha_composite(below, layer.rotate(chance.choice((0, 25)))).convert("RGB"))


def stickers(count: int, fraction: float) -> Callable[[np.ndarray, np.ndarray, random.Random], np.ndarray]:
    """Return an edit that puts stickers of about this fraction of the shorter side on the photo."""

    def lay(photo: np.ndarray, other: np.ndarray, chance: random.Random) -> np.ndarray:
        image, _, width, height = _open(photo)
        for _ in range(count):
            side = int(fraction * min(width, height) * chance.uniform(0.8, 1.2))
            sticker = Image.fromarray(_sticker(chance)).resize((side, side))
            left, top = (chance.randint(-side // 4, max(1, length - side * 3 // 4)) for length in (width, height))
            image.paste(sticker, (left, top), sticker)
        return np.asarray(image)

    return lay


def screenshot(photo: np.ndarray, other: np.ndarray, chance: random.Random) -> np.ndarray:
    """Show the photo in a light or dark app, with a header above and lines of text below."""
    height, width = photo.shape[:2]
    wide, top, bottom = (
        int(width * 1.12),
        int(height * chance.uniform(0.12, 0.3)),
        int(height * chance.uniform(0.15, 0.4)),
    )
    paper, ink = chance.choice((((255, 255, 255), (40, 40, 40)), ((24, 26, 27), (220, 220, 220))))
    screen = Image.new("RGB", (wide, height + top + bottom), paper)
    screen.paste(Image.fromarray(np.ascontiguousarray(photo)), ((wide - width) // 2, top))
    drawing = ImageDraw.Draw(screen)
    drawing.ellipse((wide * 0.04, top * 0.2, wide * 0.04 + top * 0.6, top * 0.8), fill=(90, 140, 200))
    drawing.text((wide * 0.2, top * 0.3), _line(chance, 3), ink, _font(top * 0.25))
    for line in range(3):
        place = (wide * 0.05, height + top + bottom * (0.1 + 0.28 * line))
        drawing.text(place, _line(chance, 6), ink, _font(bottom * 0.16))
    return np.asarray(screen)


def _open(photo: np.ndarray) -> tuple[Image.Image, ImageDraw.ImageDraw, int, int]:
    image = Image.fromarray(np.ascontiguousarray(photo))
    return image, ImageDraw.Draw(image), *image.size


def _font(pixels: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(max(7, int(pixels)))


def _line(chance: random.Random, words: int) -> str:
    return " ".join(chance.choice(_WORDS) for _ in range(words))


def _sticker(chance: random.Random) -> np.ndarray:
    """Draw a heart, a cat's head or a speech bubble, 96 px RGBA."""
    image = np.zeros((96, 96, 4), np.uint8)
    colour = (chance.randint(120, 255), chance.randint(30, 200), chance.randint(30, 200), 255)
    kind = chance.randrange(3)
    if kind == 0:
        for x in (30, 66):
            cv2.circle(image, (x, 32), 26, colour, -1, cv2.LINE_AA)
        cv2.fillPoly(image, [np.array([(8, 46), (88, 46), (48, 94)], np.int32)], colour, cv2.LINE_AA)
        cv2.ellipse(image, (28, 26), (9, 5), -35, 0, 360, (255, 255, 255, 255), -1, cv2.LINE_AA)
    elif kind == 1:
        cv2.ellipse(image, (48, 56), (42, 36), 0, 0, 360, colour, -1, cv2.LINE_AA)
        for ear in ([(8, 44), (12, 2), (44, 24)], [(88, 44), (84, 2), (52, 24)]):
            cv2.fillPoly(image, [np.array(ear, np.int32)], colour, cv2.LINE_AA)
        for x in (32, 64):
            cv2.ellipse(image, (x, 50), (6, 10), 0, 0, 360, (20, 20, 20, 255), -1, cv2.LINE_AA)
        for y in (62, 70):
            cv2.line(image, (4, y), (92, 132 - y), (20, 20, 20, 255), 1, cv2.LINE_AA)
    else:
        cv2.rectangle(image, (3, 8), (93, 66), (250, 250, 250, 255), -1)
        cv2.fillPoly(image, [np.array([(20, 64), (44, 64), (18, 92)], np.int32)], (250, 250, 250, 255))
        cv2.rectangle(image, (3, 8), (93, 66), colour, 3)
        for y in (24, 38, 52):
            cv2.line(image, (14, y), (chance.randint(40, 84), y), (40, 40, 40, 255), 4)
    return image
