"""Decode image files that nobody vouches for: the formats of the web, checked by their headers before any pixel.

What a decoder raises on hostile bytes has no common class, so callers catch `Exception`.
"""

import io
import warnings

import numpy as np
import simplejpeg
from PIL import Image

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "PPM")
"""Decoded by Pillow without running another program; PPM is how some evaluation sets are published."""
MAX_PIXELS = 89_478_485  # Pillow's own limit for a decompression bomb
MAX_SCANS = 100
"""Each scan of a progressive JPEG costs its whole size again and can be a few bytes. Encoders write about ten."""
_ROWS = 256  # of an image, converted at a time

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `MAX_PIXELS` is the limit here
warnings.filterwarnings("ignore", category=UserWarning, module="PIL.TiffImagePlugin")  # one for each damaged tag


def open_image(encoded: bytes) -> Image.Image:
    """Decode the first frame; 16-bit grey becomes 8-bit grey, other modes stay.

    Raises:
        Image.DecompressionBombError: more than `MAX_PIXELS`; nothing was decoded.
        Exception: a decoder refused it, or its pixels are floating-point numbers.
    """
    _check_scans(encoded)
    image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    _check_size(*image.size)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no range")
    if image.mode.startswith("I"):  # 16-bit grey: Pillow would clip at 255 instead of scaling
        return in_8_bits(image)
    image.load()
    return image


def in_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey; in blocks of rows, for a small file may hold a large image."""
    wide = np.asarray(image)
    grey = np.empty(wide.shape, np.uint8)
    for row in range(0, len(wide), _ROWS):
        grey[row : row + _ROWS] = np.clip(wide[row : row + _ROWS] >> 8, 0, 255)
    return Image.fromarray(grey)


def decode_rgb(encoded: bytes, min_side: int) -> Image.Image:
    """Decode to RGB; a JPEG at the smallest eighth of its scale whose sides are not below `min_side`.

    Raises:
        Image.DecompressionBombError: more than `MAX_PIXELS`; nothing was decoded.
        Exception: as `open_image`.
    """
    if encoded[:2] == b"\xff\xd8":
        _check_scans(encoded)
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
            _check_size(width, height)
            if colours != "CMYK":
                return Image.fromarray(simplejpeg.decode_jpeg(encoded, "RGB", False, False, min_side, min_side))
        except ValueError:
            pass  # Pillow mends more than libjpeg-turbo's strict mode does, and has the last word
    return open_image(encoded).convert("RGB")


def _check_scans(encoded: bytes) -> None:
    if encoded[:2] == b"\xff\xd8" and encoded.count(b"\xff\xda") > MAX_SCANS:
        raise ValueError(f"more than {MAX_SCANS} scans")


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise Image.DecompressionBombError(f"{width} x {height} pixels")
