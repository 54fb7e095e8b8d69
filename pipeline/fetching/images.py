"""From downloaded bytes to the JPEG that is kept: checked in the header, decoded, made upright, shrunk, fingerprinted.

The shorter side becomes `image_size`, nothing is ever enlarged (img2dataset's `keep_ratio` with
`resize_only_if_bigger`). Nothing of the file survives but its pixels: no metadata, no profile, no trailing bytes. The
same bytes give the same JPEG.
"""

import contextlib
import io
import re
import threading
import warnings
from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from dedup.pdq import fingerprint, in_8_bits
from pipeline.config import FetchConfig
from pipeline.fetching.exif import ORIENTATIONS, exif_json, orientation, read_exif
from pipeline.fetching.outcome import FetchFailure
from pipeline.records import Reason

# How files begin: formats of the web that Pillow decodes without running another program, and pictures left alone.
_DECODED = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "BMP": (b"BM",),
    "TIFF": (b"II*\0", b"MM\0*"),
}
_OTHER_PICTURES = (
    b"\0\0\1\0",
    b"8BPS",
    b"\xff\x0a",
    b"\0\0\0\x0cJXL ",
    b"\0\0\0\x0cjP  ",
    b"\xff\x4f\xff\x51",
    b"II+\0",
)
_SVG_HEAD_BYTES = 1024

# Decoding takes up to 16 bytes a pixel (a WebP with transparency), 1.4 GB at the default max_pixels; only one image
# above this size is decoded at a time.
_LARGE_PIXELS = 1 << 24
_one_large_image = threading.Lock()

# A progressive JPEG costs its whole size again for each scan, and a scan can be a few bytes. Encoders write about ten.
_MAX_SCANS = 100
_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # in pixels, 0xff comes with a zero or a restart number
_PROGRESSIVE_FRAMES = frozenset(range(0xC2, 0xD0)) - {0xC4, 0xC8, 0xCC}  # and rarer kinds; these three are no frames

# JPEG can be decoded to n/8 of its size. Between 8/8 and 4/8 that is no faster than decoding in full, so it is done
# only where it also spares the shrinking a factor at which linear interpolation begins to skip pixels.
_MIN_SCALED_DECODE = 1.6
_MAX_LINEAR_FACTOR = 2.0  # from here on linear interpolation skips pixels
cv2.setNumThreads(1)  # there is a decoder thread for each core

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `max_pixels` is the limit here
warnings.filterwarnings("ignore", category=UserWarning, module="PIL.TiffImagePlugin")  # one for each damaged tag

Size = tuple[int, int]
"""(width, height)"""


@dataclass(frozen=True, slots=True)
class StoredImage:
    """What is kept of an image. `original_size` is that of the upright picture; `exif` a JSON object."""

    jpeg: bytes
    size: Size
    original_size: Size
    exif: str
    pdq: bytes
    pdq_quality: int


def store_image(encoded: bytes, config: FetchConfig) -> StoredImage:
    """Return what to keep of the image file `encoded`.

    Raises:
        FetchFailure: it is no image, not a good one, or not wanted; always with one of `RESIZE_REASONS`.
    """
    file_format = _sniff(encoded)
    exif = read_exif(encoded, file_format)
    turn = orientation(exif)
    try:
        rgb, original_size = _decode(encoded, file_format, config, turn)
        jpeg = simplejpeg.encode_jpeg(rgb, config.jpeg_quality, "RGB", "420")
    except FetchFailure:
        raise
    except Image.DecompressionBombError as error:
        raise FetchFailure(Reason.TOO_MANY_PIXELS, str(error)) from error
    except (
        Exception
    ) as error:  # decoders raise whatever hostile bytes lead them to: struct.error, IndexError, zlib.error ...
        raise FetchFailure(Reason.BROKEN_IMAGE, f"{file_format}: {type(error).__name__}") from error
    look = fingerprint(rgb)
    return StoredImage(
        jpeg=jpeg,
        size=(rgb.shape[1], rgb.shape[0]),
        original_size=original_size,
        exif=exif_json(exif),
        pdq=look.pdq,
        pdq_quality=look.quality,
    )


def _sniff(encoded: bytes) -> str:
    """Return the format that the first bytes announce."""
    for name, magics in _DECODED.items():
        if encoded.startswith(magics):
            return name
    if encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP":
        return "WEBP"
    if encoded[4:12] in (b"ftypavif", b"ftypavis"):
        return "AVIF"
    if encoded.startswith(_OTHER_PICTURES) or encoded[4:8] == b"ftyp" or b"<svg" in encoded[:_SVG_HEAD_BYTES].lower():
        raise FetchFailure(Reason.UNSUPPORTED_FORMAT, "a picture in a format that is not decoded")
    raise FetchFailure(Reason.NOT_AN_IMAGE, "does not begin like any image" if encoded else "empty")


def _decode(encoded: bytes, file_format: str, config: FetchConfig, turn: int) -> tuple[np.ndarray, Size]:
    """Return the upright, shrunk pixels, (height, width, 3) uint8, and the upright size that the file announces."""
    if file_format == "JPEG":
        scans = _scans(encoded)
        if scans > _MAX_SCANS:
            raise FetchFailure(Reason.BROKEN_IMAGE, f"more than {_MAX_SCANS} scans")
        try:
            return _decode_jpeg(encoded, config, turn, scans)
        except ValueError:
            pass  # CMYK, or damage that simplejpeg is strict about: Pillow tells what is harmless from what is cut off
    return _decode_with_pillow(encoded, file_format, config, turn)


def _scans(encoded: bytes) -> int:
    """Return the number of scans of a JPEG file, two or more of a progressive one, up to its end."""
    scans, at = 0, 2
    while (found := _JPEG_MARKER.search(encoded, at)) is not None:
        marker, at = encoded[found.start() + 1], found.end()
        if marker == 0xD9:
            break
        if marker in (0x01, 0xD8):  # these two are alone, the others begin with their length
            continue
        scans += marker == 0xDA or marker in _PROGRESSIVE_FRAMES
        at += int.from_bytes(encoded[at : at + 2])
    return scans


def _decode_jpeg(encoded: bytes, config: FetchConfig, turn: int, scans: int) -> tuple[np.ndarray, Size]:
    height, width, colour_space, _ = simplejpeg.decode_jpeg_header(encoded)
    if colour_space in ("CMYK", "YCCK"):
        raise ValueError("Pillow knows how Adobe inverts these")
    _check_size((width, height), turn, config)
    is_scaled = min(width, height) >= _MIN_SCALED_DECODE * config.image_size
    at_least = config.image_size if is_scaled else 0
    # A single scan is decoded row by row; of several, scaled or not, every coefficient is kept in memory.
    is_large = width * height >= _LARGE_PIXELS and scans > 1
    with _one_large_image if is_large else contextlib.nullcontext():
        rgb = simplejpeg.decode_jpeg(encoded, "RGB", min_height=at_least, min_width=at_least)
    rgb = _shrink(rgb, _stored_size((width, height), config.image_size))
    if turn != 1:
        rgb = np.asarray(Image.fromarray(rgb).transpose(ORIENTATIONS[turn]))
    return rgb, _upright((width, height), turn)


def _shrink(rgb: np.ndarray, target: Size) -> np.ndarray:
    """Resize to `target`; bit-exact on every machine, by area from a factor of two on."""
    height, width, _ = rgb.shape
    if (width, height) == target:
        return rgb
    is_far = min(width / target[0], height / target[1]) >= _MAX_LINEAR_FACTOR
    return cv2.resize(rgb, target, interpolation=cv2.INTER_AREA if is_far else cv2.INTER_LINEAR_EXACT)


def _decode_with_pillow(encoded: bytes, file_format: str, config: FetchConfig, turn: int) -> tuple[np.ndarray, Size]:
    try:
        image = Image.open(io.BytesIO(encoded), formats=(file_format,))
    except UnidentifiedImageError:
        raise FetchFailure(Reason.BROKEN_IMAGE, f"{file_format}: the header is damaged") from None
    size = image.size
    _check_size(size, turn, config)
    target = _stored_size(size, config.image_size)
    if size[0] * size[1] < _LARGE_PIXELS:
        return _finish(_in_rgb(image), target, turn), _upright(size, turn)
    with _one_large_image:
        return _finish(_in_rgb(image), target, turn), _upright(size, turn)


def _check_size(size: Size, turn: int, config: FetchConfig) -> None:
    """Judge an image by its header.

    Raises:
        FetchFailure: it is not wanted in this size.
    """
    shorter, longer = min(size), max(size)
    upright = _upright(size, turn)
    if size[0] * size[1] > config.max_pixels:
        raise FetchFailure(
            Reason.TOO_MANY_PIXELS, f"{size[0]} x {size[1]}; the most is {config.max_pixels}", original_size=upright
        )
    if shorter < config.min_image_size:
        raise FetchFailure(Reason.IMAGE_TOO_SMALL, f"shorter side {shorter}", original_size=upright)
    if longer > config.max_aspect_ratio * shorter:
        raise FetchFailure(Reason.ASPECT_RATIO, f"{longer / shorter:.2f} to 1", original_size=upright)


def _in_rgb(image: Image.Image) -> Image.Image:
    """Decode the first frame, to RGB, to RGBA where it has transparency, or to L where it is 16-bit grey."""
    if image.mode.startswith("I"):
        return in_8_bits(image)
    if image.mode == "F":
        raise FetchFailure(Reason.UNSUPPORTED_FORMAT, "floating-point pixels", original_size=image.size)
    mode = "RGBA" if image.has_transparency_data else "RGB"
    return image if image.mode == mode else image.convert(mode)  # converting to the same would copy


def _finish(image: Image.Image, target: Size, turn: int) -> np.ndarray:
    """Shrink, put on white, turn upright. Shrinking first keeps the memory of the rest small."""
    if image.size != target:
        image = image.resize(target, Image.Resampling.HAMMING, reducing_gap=2.0)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.mode == "L":
        image = image.convert("RGB")
    if turn != 1:
        image = image.transpose(ORIENTATIONS[turn])
    return np.asarray(image)


def _stored_size(size: Size, image_size: int) -> Size:
    shorter = min(size)
    if shorter <= image_size:
        return size
    width, height = (max(1, round(side * image_size / shorter)) for side in size)
    return width, height


def _upright(size: Size, turn: int) -> Size:
    return size if turn < 5 else (size[1], size[0])  # orientations 5 to 8 lie on their side
