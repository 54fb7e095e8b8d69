"""The edits by which copies differ on the web, each a function of a photo, a stranger and a seeded generator.

`EDITS` are the kinds that a detector is tuned on, `UNSEEN_EDITS` kinds that neither training nor tuning may use: their
recall shows how well the detector generalises. Crops keep the given fraction of each side, at a random place.
Photos are RGB uint8 `(height, width, 3)`; an edit may change their size.
"""

import random
from collections.abc import Callable, Mapping
from types import MappingProxyType

import cv2
import numpy as np

from dedup.copies import drawing

Photo = np.ndarray
Edit = Callable[[Photo, Photo, random.Random], Photo]


def edited(name: str, photo: Photo, other: Photo, seed: str, quality: int = 90) -> bytes:
    """Return the JPEG file of an edit of a photo; the same arguments give the same file.

    Raises:
        KeyError: no edit has this name.
    """
    return edited_by(EDITS.get(name) or UNSEEN_EDITS[name], photo, other, f"{name}:{seed}", quality)


def edited_by(edit: Edit, photo: Photo, other: Photo, seed: str, quality: int = 90) -> bytes:
    """Return the JPEG file of a photo that `edit` has changed; the same arguments give the same file."""
    image = edit(photo, other, random.Random(seed))
    _, file = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return file.tobytes()


def _same(photo: Photo, other: Photo, chance: random.Random) -> Photo:
    return photo


def _on_pixels(change: Callable[[Photo], Photo]) -> Edit:
    return lambda photo, other, chance: change(np.ascontiguousarray(photo))


def resized(photo: Photo, width: int, height: int) -> Photo:
    """Return the photo at this size; areas are averaged when it shrinks."""
    smaller = width * height < photo.shape[0] * photo.shape[1]
    way = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
    return cv2.resize(photo, (max(1, width), max(1, height)), interpolation=way)


# Size, compression, colour


def _jpeg(quality: int) -> Edit:
    def encode(photo: Photo) -> Photo:
        _, file = cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, quality])
        return np.asarray(cv2.imdecode(file, cv2.IMREAD_COLOR))

    return _on_pixels(encode)


def _long_side(pixels: int) -> Edit:
    def shrink(photo: Photo) -> Photo:
        scale = pixels / max(photo.shape[:2])
        return resized(photo, round(photo.shape[1] * scale), round(photo.shape[0] * scale))

    return _on_pixels(shrink)


def _aspect(factor: float) -> Edit:
    return _on_pixels(lambda photo: resized(photo, round(photo.shape[1] * factor), photo.shape[0]))


def _curve(values: np.ndarray) -> Edit:
    table = np.clip(values, 0, 255).astype(np.uint8)
    return _on_pixels(lambda photo: cv2.LUT(photo, table))


_BYTES = np.arange(256.0)


def _brightness(factor: float) -> Edit:
    return _curve(_BYTES * factor)


def _contrast(factor: float) -> Edit:
    return _curve((_BYTES - 128) * factor + 128)


def _gamma(power: float) -> Edit:
    return _curve(255 * (_BYTES / 255) ** power)


def _hue_and_saturation(degrees: float, factor: float) -> Edit:
    def change(photo: Photo) -> Photo:
        planes = cv2.cvtColor(photo, cv2.COLOR_RGB2HSV).astype(np.float32)
        planes[:, :, 0] = (planes[:, :, 0] + degrees / 2) % 180  # OpenCV counts hues in steps of two degrees
        planes[:, :, 1] = np.clip(planes[:, :, 1] * factor, 0, 255)
        return cv2.cvtColor(planes.astype(np.uint8), cv2.COLOR_HSV2RGB)

    return _on_pixels(change)


def _grey(photo: Photo) -> Photo:
    return cv2.cvtColor(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def _equalised(photo: Photo) -> Photo:
    return cv2.merge([cv2.equalizeHist(channel) for channel in cv2.split(photo)])


def _blur(fraction: float) -> Edit:
    return _on_pixels(lambda photo: cv2.GaussianBlur(photo, (0, 0), fraction * photo.shape[1]))


def _sharpened(photo: Photo) -> Photo:
    return cv2.addWeighted(photo, 2.2, cv2.GaussianBlur(photo, (0, 0), 2), -1.2, 0)


def _noise(deviation: float) -> Edit:
    def add(photo: Photo, other: Photo, chance: random.Random) -> Photo:
        noise = np.random.default_rng(chance.getrandbits(32)).normal(0, deviation, photo.shape)
        return np.clip(photo + noise, 0, 255).astype(np.uint8)

    return add


# Geometry


def crop(fraction: float) -> Edit:
    """Keep this fraction of each side, at a random place."""

    def cut(photo: Photo, other: Photo, chance: random.Random) -> Photo:
        height, width = (max(8, round(side * fraction)) for side in photo.shape[:2])
        top, left = chance.randint(0, photo.shape[0] - height), chance.randint(0, photo.shape[1] - width)
        return photo[top : top + height, left : left + width]

    return cut


def _centre_square(photo: Photo) -> Photo:
    height, width = photo.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return photo[top : top + side, left : left + side]


def rotation(degrees: float, *, interior: bool = False) -> Edit:
    """Rotate to either side: black corners, or (`interior`) the largest upright part without them."""

    def turn(photo: Photo, other: Photo, chance: random.Random) -> Photo:
        height, width = photo.shape[:2]
        turned = cv2.getRotationMatrix2D((width / 2, height / 2), chance.choice((-1, 1)) * degrees, 1)
        image = cv2.warpAffine(photo, turned, (width, height), flags=cv2.INTER_LINEAR)
        if not interior:
            return image
        sine, cosine = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
        shrink = 0.98 * min(height / (width * sine + height * cosine), width / (height * sine + width * cosine))
        inner_height, inner_width = int(height * shrink), int(width * shrink)
        top, left = (height - inner_height) // 2, (width - inner_width) // 2
        return image[top : top + inner_height, left : left + inner_width]

    return turn


def border(fraction: float, level: int = 0) -> Edit:
    """Add a frame of this fraction of the longer side, in a shade of grey."""

    def frame(photo: Photo) -> Photo:
        edge = max(1, round(fraction * max(photo.shape[:2])))
        return cv2.copyMakeBorder(photo, edge, edge, edge, edge, cv2.BORDER_CONSTANT, value=(level, level, level))

    return _on_pixels(frame)


def _letterbox(photo: Photo) -> Photo:
    height, width = photo.shape[:2]
    bar = (max(width, height, round(height * 1.3)) - height) // 2
    return cv2.copyMakeBorder(photo, bar, bar, 0, 0, cv2.BORDER_CONSTANT, value=(0, 0, 0))


# Other images


def _insert(fraction: float) -> Edit:
    """Put the photo, at this fraction of the side, somewhere on another photo."""
    return lambda photo, other, chance: _paste(resized(other, photo.shape[1], photo.shape[0]), photo, fraction, chance)


def _covered(fraction: float) -> Edit:
    """Put another photo, at this fraction of the side, somewhere on the photo."""
    return lambda photo, other, chance: _paste(photo.copy(), other, fraction, chance)


def _paste(below: Photo, above: Photo, fraction: float, chance: random.Random) -> Photo:
    height, width = (round(side * fraction) for side in below.shape[:2])
    top, left = chance.randint(0, below.shape[0] - height), chance.randint(0, below.shape[1] - width)
    below[top : top + height, left : left + width] = resized(above, width, height)
    return below


def _collage(photo: Photo, other: Photo, chance: random.Random) -> Photo:
    parts = [photo, resized(other, photo.shape[1], photo.shape[0])]
    chance.shuffle(parts)
    return np.concatenate(parts, axis=1 if photo.shape[0] > photo.shape[1] else 0)


def _blend(fraction: float) -> Edit:
    def mix(photo: Photo, other: Photo, chance: random.Random) -> Photo:
        other = resized(other, photo.shape[1], photo.shape[0])
        return cv2.addWeighted(np.ascontiguousarray(photo), 1 - fraction, other, fraction, 0)

    return mix


# Several at once


def _chain(*edits: Edit) -> Edit:
    def apply(photo: Photo, other: Photo, chance: random.Random) -> Photo:
        for edit in edits:
            photo = np.ascontiguousarray(edit(photo, other, chance))
        return photo

    return apply


def _clip_appendix_c(photo: Photo, other: Photo, chance: random.Random) -> Photo:
    """Crop and zoom, aspect, scaling by random kernels, small rotations, JPEG and HSV jitter: CLIP, appendix C."""
    scale = chance.uniform(0.25, 0.8)
    down, up = chance.choice((0, 1, 2, 3)), chance.choice((1, 2))

    def rescale(image: Photo) -> Photo:
        height, width = image.shape[:2]
        small = (max(8, round(width * scale)), max(8, round(height * scale)))
        return cv2.resize(cv2.resize(image, small, interpolation=down), (width, height), interpolation=up)

    steps = [
        crop(chance.uniform(0.75, 1)),
        _aspect(chance.uniform(0.8, 1.25)),
        _on_pixels(rescale),
        _brightness(chance.uniform(0.75, 1.3)),
        _hue_and_saturation(chance.uniform(-16, 16), chance.uniform(0.6, 1.5)),
        _jpeg(chance.randint(25, 90)),
    ]
    if chance.random() < 0.5:
        steps.insert(0, rotation(chance.uniform(0, 5), interior=True))
    return _chain(*steps)(photo, other, chance)


_COMBINED: tuple[Edit, ...] = (
    *(crop(0.8), crop(0.7), _on_pixels(_centre_square), rotation(4), rotation(8, interior=True)),
    *(border(0.05), border(0.1, 255), drawing.text, drawing.meme, drawing.stickers(1, 0.3), drawing.stickers(3, 0.2)),
    *(_on_pixels(_grey), _brightness(1.3), _brightness(0.7), _contrast(1.5), _hue_and_saturation(16, 1.6), _gamma(0.6)),
    *(_blur(0.01), _noise(12), _jpeg(20), _long_side(96), _aspect(1.3), _aspect(0.75)),
    *(_on_pixels(lambda photo: photo[:, ::-1]), drawing.watermark, drawing.screenshot, _covered(0.35), _insert(0.75)),
)


def _combination(count: int) -> Edit:
    return lambda photo, other, chance: _chain(*chance.sample(_COMBINED, count))(photo, other, chance)


EDITS: Mapping[str, Edit] = MappingProxyType(
    {
        "same": _same,
        "JPEG 50": _jpeg(50),
        "JPEG 10": _jpeg(10),
        "64 px": _long_side(64),
        "32 px": _long_side(32),
        "squashed 224x224": _on_pixels(lambda photo: resized(photo, 224, 224)),
        "aspect x1.5": _aspect(1.5),
        "grey": _on_pixels(_grey),
        "brightness +30%": _brightness(1.3),
        "brightness -40%": _brightness(0.6),
        "contrast +50%": _contrast(1.5),
        "saturation x2": _hue_and_saturation(0, 2),
        "hue +30 degrees": _hue_and_saturation(30, 1),
        "gamma 0.5": _gamma(0.5),
        "equalised": _on_pixels(_equalised),
        "inverted": _curve(255 - _BYTES),
        "blur 1%": _blur(0.01),
        "blur 3%": _blur(0.03),
        "sharpened": _on_pixels(_sharpened),
        "noise 20": _noise(20),
        "flip": _on_pixels(lambda photo: photo[:, ::-1]),
        "rotate 90": _on_pixels(lambda photo: np.rot90(photo)),
        "rotate 180": _on_pixels(lambda photo: photo[::-1, ::-1]),
        "rotate 1": rotation(1),
        "rotate 3": rotation(3),
        "rotate 5": rotation(5),
        "rotate 8": rotation(8),
        "rotate 8 interior": rotation(8, interior=True),
        "rotate 15": rotation(15),
        "crop 95%": crop(0.95),
        "crop 90%": crop(0.9),
        "crop 80%": crop(0.8),
        "crop 70%": crop(0.7),
        "crop 60%": crop(0.6),
        "crop 50%": crop(0.5),
        "centre square": _on_pixels(_centre_square),
        "border 1%": border(0.01),
        "border 3%": border(0.03),
        "border 10% black": border(0.1),
        "border 10% white": border(0.1, 255),
        "letterbox": _on_pixels(_letterbox),
        "screenshot": drawing.screenshot,
        "text": drawing.text,
        "meme text": drawing.meme,
        "watermark": drawing.watermark,
        "sticker 30%": drawing.stickers(1, 0.3),
        "stickers 5x20%": drawing.stickers(5, 0.2),
        "covered 30% side": _covered(0.3),
        "covered 50% side": _covered(0.5),
        "collage half": _collage,
        "insert 70% side": _insert(0.7),
        "insert 50% side": _insert(0.5),
        "blend 30%": _blend(0.3),
        "CLIP appendix C": _clip_appendix_c,
        "combination of 2": _combination(2),
        "combination of 3": _combination(3),
    }
)


# Never trained or tuned on


def _perspective(photo: Photo, other: Photo, chance: random.Random) -> Photo:
    """Seen from the side, as a print or a screen that somebody photographed."""
    height, width = photo.shape[:2]
    corners = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float32)
    inwards = np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)], np.float32)
    moves = np.array([(chance.uniform(0, 0.12) * width, chance.uniform(0, 0.12) * height) for _ in corners], np.float32)
    view = cv2.getPerspectiveTransform(corners, corners + inwards * moves)
    return cv2.warpPerspective(photo, view, (width, height), borderValue=(90, 90, 90))


def _barrel(photo: Photo) -> Photo:
    height, width = photo.shape[:2]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    u, v = (x - width / 2) / (width / 2), (y - height / 2) / (height / 2)
    bend = 1 + 0.12 * (u * u + v * v - 1)
    return cv2.remap(
        photo,
        (u * bend * width / 2 + width / 2).astype(np.float32),
        (v * bend * height / 2 + height / 2).astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )


def _pixelated(photo: Photo) -> Photo:
    height, width = photo.shape[:2]
    return cv2.resize(resized(photo, width // 6, height // 6), (width, height), interpolation=cv2.INTER_NEAREST)


def _dithered(photo: Photo) -> Photo:
    """Two levels a channel with an ordered (Bayer) pattern, as old GIF files and e-paper have."""
    pattern = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]]) * 16 + 8
    height, width = photo.shape[:2]
    tiled = np.tile(pattern, (height // 4 + 1, width // 4 + 1))[:height, :width, None]
    return np.where(photo > tiled, 255, 0).astype(np.uint8)


def _sepia_vignette(photo: Photo) -> Photo:
    height, width = photo.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    light = np.clip(1.1 - 0.45 * (x * x + y * y), 0, 1)[:, :, None]
    tone = np.array([[0.393, 0.769, 0.189], [0.349, 0.686, 0.168], [0.272, 0.534, 0.131]])
    return np.clip(photo @ tone.T * light, 0, 255).astype(np.uint8)


def _round_portrait(photo: Photo) -> Photo:
    height, width = photo.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    return np.where((x * x + y * y > 1)[:, :, None], 255, photo).astype(np.uint8)


def _screen_lines(photo: Photo) -> Photo:
    image = photo.astype(np.float32)
    image[::3] *= 0.55
    image[:, ::3, 0] *= 0.8
    image[:, 1::3, 2] *= 0.8
    return image.astype(np.uint8)


def _sheared(photo: Photo) -> Photo:
    height, width = photo.shape[:2]
    slope = np.tan(np.radians(10))
    shear = np.array([[1, slope, -slope * height / 2], [0, 1, 0]])
    return cv2.warpAffine(photo, shear, (width, height), borderMode=cv2.BORDER_REPLICATE)


UNSEEN_EDITS: Mapping[str, Edit] = MappingProxyType(
    {
        "perspective": _perspective,
        "barrel distortion": _on_pixels(_barrel),
        "sheared 10 degrees": _on_pixels(_sheared),
        "4 levels a channel": _curve(np.round(_BYTES / 85) * 85),
        "pixelated": _on_pixels(_pixelated),
        "median filter": _on_pixels(lambda photo: cv2.medianBlur(photo, 7)),
        "dithered": _on_pixels(_dithered),
        "sepia and vignette": _on_pixels(_sepia_vignette),
        "round portrait": _on_pixels(_round_portrait),
        "screen lines": _on_pixels(_screen_lines),
    }
)
