"""Draw scenes, quickly and the same way every time.

Every picture gets a cloudy texture of its own. It makes the pictures pleasant to look at, and it spreads their
perceptual hashes: two scenes with the same description are about as far apart in PDQ distance as two unrelated photos,
so whatever the pipeline calls a near-duplicate was planted.
"""

import io
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from pipeline.demo.scenes import Scene, Thing

_RGB = {
    "red": (205, 38, 44),
    "orange": (240, 132, 28),
    "yellow": (246, 212, 50),
    "green": (44, 146, 72),
    "blue": (38, 88, 196),
    "purple": (128, 58, 168),
    "white": (236, 236, 230),
    "black": (38, 38, 42),
}
_SUPERSAMPLING = 3  # masks are drawn this much larger, then reduced: smooth edges

Field = np.ndarray  # float32, (height, width), about -1..1


def draw(scene: Scene, width: int = 0, height: int = 0) -> Image.Image:
    """Return the image of a scene, RGB; its size is derived from the scene's seed unless both sides are given."""
    rng = np.random.default_rng(scene.seed)
    drawn_width, drawn_height = _picture_size(rng)
    width, height = width or drawn_width, height or drawn_height
    clouds = _clouds(rng, width, height)
    picture = _background(rng, scene, clouds)
    for thing, (x, y, radius) in zip(_objects(scene), _places(rng, scene, width, height), strict=True):
        _place(rng, picture, thing, clouds, x, y, radius)
    return picture


def encode(picture: Image.Image, kind: str, quality: int = 90) -> bytes:
    """Return the file bytes of a picture; `kind` is a Pillow format name."""
    stream = io.BytesIO()
    if kind == "PNG":
        picture.save(stream, "PNG", compress_level=1)
    elif kind == "WEBP":
        picture.save(stream, "WEBP", quality=quality, method=0)
    else:
        picture.save(stream, kind, quality=quality)
    return stream.getvalue()


def _picture_size(rng: np.random.Generator) -> tuple[int, int]:
    """Between 160 and 400 px, mostly small, at most 4:3."""
    short = 160 + int(140 * rng.random() ** 2)
    long = int(short * (1 + rng.random() / 3))
    return (long, short) if rng.random() < 0.6 else (short, long)


def _clouds(rng: np.random.Generator, width: int, height: int) -> Field:
    """Noise with energy in all frequencies that PDQ uses (the 16 lowest in each direction)."""
    field = np.zeros((64, 64), np.float32)
    for cells, weight in ((5, 0.35), (10, 0.4), (20, 0.5)):
        noise = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
        field += weight * np.asarray(noise.resize((64, 64), Image.Resampling.BICUBIC))
    return np.asarray(Image.fromarray(field).resize((width, height), Image.Resampling.BICUBIC))


def _background(rng: np.random.Generator, scene: Scene, clouds: Field) -> Image.Image:
    light = clouds + 0.9 * _pattern(rng, scene.pattern, clouds.shape[1], clouds.shape[0])
    return _tinted(_RGB[scene.background], light, contrast=34)


def _tinted(rgb: tuple[int, int, int], light: Field, contrast: float) -> Image.Image:
    """Return `rgb` made lighter and darker by `light`; near-white and near-black stay inside 0..255."""
    base = np.asarray(rgb, np.float32).clip(contrast, 255 - contrast)
    pixels = base + contrast * light[:, :, None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _pattern(rng: np.random.Generator, pattern: str, width: int, height: int) -> Field:
    """Return the pattern of a background as -1 and 1, at a random scale, angle and offset."""
    period = min(width, height) * rng.uniform(0.11, 0.17)
    angle = rng.uniform(0, math.pi)
    x_offset, y_offset = rng.uniform(0, period, 2)
    x = np.arange(width, dtype=np.float32)[None, :] + x_offset
    y = np.arange(height, dtype=np.float32)[:, None] + y_offset
    if pattern == "striped":
        return _square_wave((x * math.cos(angle) + y * math.sin(angle)) / period)
    if pattern == "checkered":
        return _square_wave(x / period) * _square_wave(y / period)
    if pattern == "dotted":
        from_x, from_y = (x / period) % 1 - 0.5, (y / period) % 1 - 0.5
        return np.where(from_x**2 + from_y**2 < 0.09, np.float32(1), np.float32(-0.5))
    if pattern == "wavy":
        return _square_wave(y / period + 0.35 * np.sin(x * (2.2 / period)))
    return np.zeros((height, width), np.float32)


def _square_wave(phase: Field) -> Field:
    return np.where(phase % 1 < 0.5, np.float32(1), np.float32(-1))


def _objects(scene: Scene) -> list[Thing]:
    return [*scene.things] if len(scene.things) > 1 else [scene.things[0]] * scene.count


def _places(rng: np.random.Generator, scene: Scene, width: int, height: int) -> list[tuple[float, float, float]]:
    """Return centre and radius of each object, in pixels."""
    side = min(width, height)
    if scene.relation:
        radius = side * rng.uniform(0.17, 0.21)
        across, along = rng.uniform(0.42, 0.58), rng.uniform(0.25, 0.29)
        near, far = (along, 1 - along) if scene.relation in ("above", "left") else (1 - along, along)
        if scene.relation in ("above", "below"):
            return [(across * width, near * height, radius), (across * width, far * height, radius)]
        return [(near * width, across * height, radius), (far * width, across * height, radius)]
    if scene.count > 1:
        return _ring_of_places(rng, scene.count, width, height)
    radius = side * (rng.uniform(0.22, 0.26) if scene.size == "small" else rng.uniform(0.34, 0.4))
    # Inside the middle square: what models see of a picture.
    x, y = rng.uniform(1.1 * radius - side / 2, side / 2 - 1.1 * radius, 2)
    return [(width / 2 + x, height / 2 + y, radius)]


def _ring_of_places(rng: np.random.Generator, count: int, width: int, height: int) -> list[tuple[float, float, float]]:
    """Spread `count` objects around the middle so that they do not touch."""
    side = min(width, height)
    distance = side * (0.22 + 0.02 * count)
    radius = min(0.17 * side, 0.85 * distance * math.sin(math.pi / count))
    turn = rng.uniform(0, 2 * math.pi)
    angles = [turn + 2 * math.pi * number / count for number in range(count)]
    return [
        (width / 2 + distance * math.cos(angle), height / 2 + distance * math.sin(angle), radius) for angle in angles
    ]


def _place(
    rng: np.random.Generator, picture: Image.Image, thing: Thing, clouds: Field, x: float, y: float, radius: float
) -> None:
    """Paste one object with a soft shadow; it is lit from the top left and carries the texture of the picture."""
    side = 2 * round(1.1 * radius)
    left, top = round(x) - side // 2, round(y) - side // 2
    mask = _mask(thing.shape, side, tilt=rng.uniform(-0.25, 0.25))
    shadow = mask.reduce(2).filter(ImageFilter.BoxBlur(side / 40)).resize((side, side)).point(_SHADOW)
    picture.paste((0, 0, 0), (left + side // 24, top + side // 20), shadow)
    slope = np.linspace(0.8, -0.8, side, dtype=np.float32)
    light = 0.5 * (slope[None, :] + slope[:, None]) + 0.8 * _window(clouds, left, top, side)
    picture.paste(_tinted(_shade(rng, thing.colour), light, contrast=26), (left, top), mask)


_SHADOW = [round(level * 0.45) for level in range(256)]


def _window(clouds: Field, left: int, top: int, side: int) -> Field:
    """Return a square of the texture, moved inside the picture where it would stick out."""
    top = min(max(top, 0), max(clouds.shape[0] - side, 0))
    left = min(max(left, 0), max(clouds.shape[1] - side, 0))
    return clouds[top : top + side, left : left + side]


def _shade(rng: np.random.Generator, colour: str) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in np.asarray(_RGB[colour]) + rng.integers(-10, 11, 3))
    return red, green, blue


def _mask(shape: str, side: int, tilt: float) -> Image.Image:
    """Return the outline of a shape that fills a square of `side` pixels, turned by `tilt` radians."""
    large = side * _SUPERSAMPLING
    mask = Image.new("L", (large, large))
    pen = ImageDraw.Draw(mask)
    middle, radius = large / 2, large / 2.2
    box = (middle - radius, middle - radius, middle + radius, middle + radius)
    if shape in ("circle", "ring", "crescent"):
        pen.ellipse(box, fill=255)
        _carve(pen, shape, middle, radius, tilt)
    else:
        pen.polygon([_turned(x, y, middle, radius, tilt) for x, y in _OUTLINES[shape]], fill=255)
    return mask.reduce(_SUPERSAMPLING)


def _carve(pen: ImageDraw.ImageDraw, shape: str, middle: float, radius: float, tilt: float) -> None:
    """Cut the hole of a ring, or the bite that makes a crescent."""
    if shape == "circle":
        return
    hole = 0.55 * radius if shape == "ring" else 0.8 * radius
    x, y = (middle, middle) if shape == "ring" else _turned(0.45, 0.0, middle, radius, tilt)
    pen.ellipse((x - hole, y - hole, x + hole, y + hole), fill=0)


def _turned(x: float, y: float, middle: float, radius: float, tilt: float) -> tuple[float, float]:
    sine, cosine = math.sin(tilt), math.cos(tilt)
    return middle + radius * (x * cosine - y * sine), middle + radius * (x * sine + y * cosine)


def _star() -> list[tuple[float, float]]:
    """Return the ten corners of a five-pointed star, the first at the top."""
    corners = [(0.42 if corner % 2 else 1.0, math.pi * (corner / 5 - 0.5)) for corner in range(10)]
    return [(radius * math.cos(angle), radius * math.sin(angle)) for radius, angle in corners]


def _heart() -> list[tuple[float, float]]:
    steps = [2 * math.pi * step / 60 for step in range(60)]
    return [
        (
            math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16,
        )
        for t in steps
    ]


_ARM = 0.34
_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)],
    "triangle": [(0.0, -1.0), (0.95, 0.75), (-0.95, 0.75)],
    "star": _star(),
    "heart": _heart(),
    "cross": [
        (-_ARM, -1.0), (_ARM, -1.0), (_ARM, -_ARM), (1.0, -_ARM), (1.0, _ARM), (_ARM, _ARM),
        (_ARM, 1.0), (-_ARM, 1.0), (-_ARM, _ARM), (-1.0, _ARM), (-1.0, -_ARM), (-_ARM, -_ARM),
    ],
}  # fmt: skip
