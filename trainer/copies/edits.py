"""The random edits of training: one weak and one strong view of each photo, all drawn from a seeded generator.

Kinds: crops, changes of aspect, rotations up to 15 degrees, quarter turns, mirror images, borders, letterboxes,
screenshots, photos inside photos, collages, covers, text and stickers, blends, colours, blur, noise, JPEG.
"""

import random
from collections.abc import Sequence

import cv2
import numpy as np

from trainer.copies.overlays import draw_overlays

Rectangle = tuple[int, int, int, int]  # left, top, width, height


class Editor:
    """Makes views of photos; all random numbers come from the given `random.Random`."""

    def __init__(self, side: int, overlays: Sequence[np.ndarray] | None = None) -> None:
        self.side = side
        self.overlays = draw_overlays(700, seed=1) if overlays is None else overlays

    def weak(self, photo: np.ndarray, chance: random.Random) -> np.ndarray:
        """Return `(side, side, 3)` uint8 as an index holds it: whole or cropped a little, sometimes re-encoded."""
        crop = chance.uniform(0.8, 1.0) if chance.random() < 0.6 else 1.0
        image = _cut(photo, (self.side, self.side), chance, crop=(crop, crop), degrees=0.0, turns=0, mirror=False)
        return _jpeg(image, chance.randint(60, 95)) if chance.random() < 0.3 else image

    def strong(self, photo: np.ndarray, other: np.ndarray, chance: random.Random) -> np.ndarray:
        """Return `(side, side, 3)` uint8: the photo after several edits; `other` is a stranger to edit it with."""
        left, top, width, height, canvas = self._canvas(other, chance)
        image = self._geometry(photo, (width, height), chance)
        if canvas is not None:
            canvas[top : top + height, left : left + width] = image
            image = canvas
        image = self._cover(image, other, chance)
        image = _colours(image, chance)
        image = _quality(image, chance)
        return _jpeg(image, chance.randint(12, 95)) if chance.random() < 0.4 else image

    def _geometry(self, photo: np.ndarray, size: tuple[int, int], chance: random.Random) -> np.ndarray:
        crop = (1.0, 1.0)
        if chance.random() < 0.7:
            share, aspect = chance.uniform(0.45, 1.0), chance.uniform(0.75, 1.33) ** 0.5
            crop = (min(1.0, share * aspect), min(1.0, share / aspect))
        degrees = chance.uniform(-15, 15) if chance.random() < 0.3 else 0.0
        turns = chance.choice((1, 2, 3)) if chance.random() < 0.15 else 0
        return _cut(photo, size, chance, crop=crop, degrees=degrees, turns=turns, mirror=chance.random() < 0.4)

    def _canvas(self, other: np.ndarray, chance: random.Random) -> tuple[int, int, int, int, np.ndarray | None]:
        """Return where the photo goes on which canvas: left, top, width, height; no canvas: it fills the image."""
        side, kind = self.side, chance.random()
        whole = (0, 0, side, side)
        if kind > 0.5:
            return (*whole, None)
        if kind < 0.12:  # a photo inside another
            share = chance.uniform(0.5, 0.9)
            canvas = cv2.resize(other, (side, side), interpolation=cv2.INTER_AREA)
            return (*_place(side, round(side * share), round(side * share * chance.uniform(0.9, 1.0)), chance), canvas)
        if kind < 0.18:  # a collage of two
            canvas = cv2.resize(other, (side, side), interpolation=cv2.INTER_AREA)
            half = round(side * chance.uniform(0.45, 0.6))
            if chance.random() < 0.5:
                return (chance.choice((0, side - half)), 0, half, side, canvas)
            return (0, chance.choice((0, side - half)), side, half, canvas)
        canvas = np.empty((side, side, 3), np.uint8)
        canvas[:] = [chance.randint(0, 255)] * 3 if chance.random() < 0.6 else [chance.randint(0, 255) for _ in "rgb"]
        if chance.random() < 0.6:
            canvas[:] = chance.choice((0, 255))
        if kind < 0.25:
            return (*self._screenshot(canvas, chance), canvas)
        if kind < 0.33:  # bars at two sides
            bar = round(side * chance.uniform(0.02, 0.2))
            rectangle = (0, bar, side, side - 2 * bar) if chance.random() < 0.6 else (bar, 0, side - 2 * bar, side)
            return (*rectangle, canvas)
        share = chance.uniform(0.65, 0.99)
        if chance.random() < 0.6:  # a frame, as wide on all sides
            edge = max(1, round(side * (1 - share) / 2))
            return (edge, edge, side - 2 * edge, side - 2 * edge, canvas)
        return (*_place(side, round(side * share), round(side * chance.uniform(share, 1.0)), chance), canvas)

    def _screenshot(self, canvas: np.ndarray, chance: random.Random) -> Rectangle:
        """Draw lines of text and buttons above and below the place of the photo, and return it."""
        side = self.side
        top, bottom = round(side * chance.uniform(0.05, 0.25)), round(side * chance.uniform(0.08, 0.3))
        margin = round(side * chance.choice((0.0, chance.uniform(0, 0.1))))
        for start, stop in ((0, top), (side - bottom, side)):
            for _ in range(chance.randint(1, 4)):
                overlay = chance.choice(self.overlays)
                height = max(3, round((stop - start) * chance.uniform(0.2, 0.6)))
                width = max(3, min(side, round(height * overlay.shape[1] / overlay.shape[0])))
                _lay_over(canvas, overlay, (chance.randint(0, side - width), start, width, height), 1.0)
        return margin, top, side - 2 * margin, side - top - bottom

    def _cover(self, image: np.ndarray, other: np.ndarray, chance: random.Random) -> np.ndarray:
        side = self.side
        if chance.random() < 0.07:
            share = chance.uniform(0.1, 0.35)
            blended = cv2.resize(other, (side, side), interpolation=cv2.INTER_AREA)
            image = cv2.addWeighted(image, 1 - share, blended, share, 0)
        if chance.random() < 0.1:
            width = round(side * chance.uniform(0.2, 0.5))
            left, top, width, height = _place(side, width, round(width * chance.uniform(0.7, 1.3)), chance)
            patch = cv2.resize(other, (width, height), interpolation=cv2.INTER_AREA)
            image[top : top + height, left : left + width] = patch
        if chance.random() < 0.33:
            opacity = chance.choice((1.0, 1.0, 0.5))
            for _ in range(chance.choice((1, 1, 2, 3, 6))):
                overlay = chance.choice(self.overlays)
                scale = side * chance.uniform(0.15, 0.75) / max(overlay.shape[:2])
                height, width = (max(2, round(length * scale)) for length in overlay.shape[:2])
                left, top = chance.randint(-width // 4, side - width // 2), chance.randint(-height // 4, side - height)
                _lay_over(image, overlay, (left, top, width, height), opacity)
        return image


def _place(side: int, width: int, height: int, chance: random.Random) -> Rectangle:
    width, height = min(width, side), min(height, side)
    return chance.randint(0, side - width), chance.randint(0, side - height), width, height


def _cut(
    photo: np.ndarray,
    size: tuple[int, int],
    chance: random.Random,
    *,
    crop: tuple[float, float],
    degrees: float,
    turns: int,
    mirror: bool,
) -> np.ndarray:
    """Return a rotated crop of the photo, squashed to `size` (width, height), by one affine map."""
    width, height = crop[0] * photo.shape[1], crop[1] * photo.shape[0]
    left = chance.uniform(0, photo.shape[1] - width)
    top = chance.uniform(0, photo.shape[0] - height)
    reduction = max(1.0, (width / size[0] * height / size[1]) ** 0.5)
    if reduction > 1.3:  # the map alone would alias
        reduced = tuple(max(2, round(length / reduction)) for length in (photo.shape[1], photo.shape[0]))
        scale = reduced[0] / photo.shape[1], reduced[1] / photo.shape[0]
        photo = cv2.resize(photo, reduced, interpolation=cv2.INTER_AREA)
        left, width, top, height = left * scale[0], width * scale[0], top * scale[1], height * scale[1]
    to_unit = np.array([[1 / size[0], 0, 0.5 / size[0] - 0.5], [0, 1 / size[1], 0.5 / size[1] - 0.5], [0, 0, 1]])
    quarter = np.linalg.matrix_power(np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.0]]), turns)
    spread = np.diag([width * (-1 if mirror else 1), height, 1.0])
    sine, cosine = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    rotate = np.array([[cosine, -sine, left + width / 2 - 0.5], [sine, cosine, top + height / 2 - 0.5], [0, 0, 1.0]])
    outside = cv2.BORDER_CONSTANT if degrees and chance.random() < 0.5 else cv2.BORDER_REFLECT
    colour = chance.choice((0, 0, 255, chance.randint(0, 255)))
    return cv2.warpAffine(
        photo,
        (rotate @ spread @ quarter @ to_unit)[:2],
        size,
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=outside,
        borderValue=(colour, colour, colour),
    )


def _lay_over(image: np.ndarray, overlay: np.ndarray, place: Rectangle, opacity: float) -> None:
    left, top, width, height = place
    overlay = cv2.resize(overlay, (width, height), interpolation=cv2.INTER_AREA)
    x, y = max(0, left), max(0, top)
    right, bottom = min(image.shape[1], left + width), min(image.shape[0], top + height)
    if right <= x or bottom <= y:
        return
    overlay = overlay[y - top : bottom - top, x - left : right - left]
    alpha = overlay[:, :, 3:].astype(np.float32) * (opacity / 255)
    below = image[y:bottom, x:right]
    image[y:bottom, x:right] = below + (overlay[:, :, :3] - below.astype(np.float32)) * alpha


def _colours(image: np.ndarray, chance: random.Random) -> np.ndarray:
    if chance.random() < 0.12:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        image = cv2.merge([grey, grey, grey])
    elif chance.random() < 0.4:  # gains, channels mixed, saturation
        mix = np.eye(3) * chance.uniform(0.8, 1.2)
        mix += np.array([chance.uniform(-0.15, 0.15) for _ in range(9)]).reshape(3, 3)
        saturation = chance.uniform(0.4, 1.7)
        matrix = saturation * mix + (1 - saturation) * np.full((3, 3), 1 / 3)
        offset = np.full((3, 1), chance.uniform(-20, 20))
        image = cv2.transform(image, np.hstack([matrix, offset]).astype(np.float32))
    if chance.random() < 0.4:
        image = _levels(image, chance.uniform(0.6, 1.6), chance.uniform(-50, 50))
    if chance.random() < 0.15:
        curve = 255 * (np.arange(256) / 255) ** chance.uniform(0.45, 2.2)
        image = cv2.LUT(image, curve.astype(np.uint8))
    elif chance.random() < 0.05:
        image = cv2.merge([cv2.equalizeHist(channel) for channel in cv2.split(image)])
    return image


def _levels(image: np.ndarray, contrast: float, brightness: float) -> np.ndarray:
    curve = np.clip(128 + (np.arange(256) - 128) * contrast + brightness, 0, 255)
    return cv2.LUT(image, curve.astype(np.uint8))


def _quality(image: np.ndarray, chance: random.Random) -> np.ndarray:
    side = image.shape[0]
    if chance.random() < 0.2:
        image = cv2.GaussianBlur(image, (0, 0), side * chance.uniform(0.006, 0.035))
    elif chance.random() < 0.15:
        small = round(side * chance.uniform(0.25, 0.7))
        way = chance.choice((cv2.INTER_AREA, cv2.INTER_NEAREST, cv2.INTER_LINEAR))
        image = cv2.resize(cv2.resize(image, (small, small), interpolation=way), (side, side))
    elif chance.random() < 0.08:
        blurred = cv2.GaussianBlur(image, (0, 0), 1.0)
        image = cv2.addWeighted(image, 2.2, blurred, -1.2, 0)
    if chance.random() < 0.1:
        drawn = np.random.default_rng(chance.getrandbits(32)).normal(0, chance.uniform(3, 20), image.shape)
        image = np.clip(image + drawn, 0, 255).astype(np.uint8)
    return image


def _jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    _, file = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(file, cv2.IMREAD_COLOR))
