"""Convert a downloaded file to the JPEG that is stored: check the header, decode, turn upright, shrink, fingerprint.

The shorter side becomes `image_size`, images are never enlarged (img2dataset's `keep_ratio` with
`resize_only_if_bigger`). Only the pixels of the file are kept: no metadata, no profile, no trailing bytes. The same
bytes give the same JPEG.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from dedup.decode import ImageDecodeError, ImageHeader, Size, decode_pixels, read_header, upright
from dedup.image_files.jpeg import lacked_memory
from dedup.pdq import fingerprint
from pipeline.config import FetchConfig
from pipeline.fetching.exif import exif_json
from pipeline.fetching.outcome import FetchFailure
from pipeline.records import Reason

# JPEG can be decoded to n/8 of its size. Between 8/8 and 4/8 that is no faster than decoding in full, so it is done
# only if it also avoids shrinking by a factor at which linear interpolation starts to skip pixels.
_MIN_SCALED_DECODE = 1.6
_MAX_JPEG_SIDE = 65_500  # of libjpeg
_MAX_LINEAR_FACTOR = 2.0  # from here on linear interpolation skips pixels
cv2.setNumThreads(1)  # there is a decoder thread for each core


@dataclass(frozen=True, slots=True)
class StoredImage:
    """The stored image and its facts. `original_size` is that of the upright image; `exif` is a JSON object."""

    jpeg: bytes
    size: Size
    original_size: Size
    exif: str
    pdq: bytes
    pdq_quality: int


def store_image(encoded: bytes, config: FetchConfig, keeps_bytes: bool = False) -> StoredImage:
    """Return the image to store for the file `encoded`; with `keeps_bytes` its own pixels, if their size is right.

    Raises:
        FetchFailure: not an image, damaged, or outside the size limits; always with one of `RESIZE_REASONS`.
        MemoryError: too little memory, which is not a property of the image.
    """
    try:
        header = read_header(encoded, config.max_pixels)
        _check_size(header, config)
        rgb = _stored_pixels(header, config.image_size)
    except ImageDecodeError as error:
        raise FetchFailure(Reason(error.failure), str(error), original_size=error.size) from error
    look = fingerprint(rgb)
    may_stay = keeps_bytes and rgb.shape[1::-1] == header.size and header.orientation == 1
    kept = bare_jpeg(encoded) if may_stay and header.colours in _COMMON_COLOURS else None
    return StoredImage(
        jpeg=kept or _encode(rgb, config.jpeg_quality),
        size=(rgb.shape[1], rgb.shape[0]),
        original_size=header.upright_size,
        exif=exif_json(header.exif),
        pdq=look.pdq,
        pdq_quality=look.quality,
    )


_COMMON_COLOURS = frozenset({"YCbCr", "Gray", "RGB"})  # CMYK looks different in every viewer
_SCAN, _COMMENT = 0xDA, 0xFE
_NEEDED_SEGMENTS = frozenset((0xE0, 0xEE, 0xDB, 0xDD, 0xC0, 0xC1, 0xC2, 0xC4))
"""JFIF, Adobe's colour transform, quantisation, restart interval, frames, Huffman tables: what decoding needs."""


def bare_jpeg(encoded: bytes) -> bytes | None:
    """Return a JPEG without metadata, profile and comments, its coded pixels untouched; None where that is not plain.

    A file that has none comes back as it is, byte for byte.
    """
    if not encoded.startswith(b"\xff\xd8") or not encoded.endswith(b"\xff\xd9"):
        return None
    kept, position = [encoded[:2]], 2
    while encoded[position : position + 1] == b"\xff" and encoded[position + 1] != _SCAN:
        marker, end = encoded[position + 1], position + 2 + int.from_bytes(encoded[position + 2 : position + 4])
        if marker in _NEEDED_SEGMENTS:
            kept.append(encoded[position:end])
        elif not (0xE0 <= marker <= 0xEF or marker == _COMMENT):
            return None
        position = end
    if encoded[position : position + 2] != bytes((0xFF, _SCAN)):
        return None
    return b"".join([*kept, encoded[position:]])


def _check_size(header: ImageHeader, config: FetchConfig) -> None:
    """Check the size of an image. Raises: FetchFailure: it is outside the limits."""
    shorter, longer = min(header.size), max(header.size)
    if shorter < config.min_image_size:
        message = f"shorter side {shorter}"
        raise FetchFailure(Reason.IMAGE_TOO_SMALL, message, original_size=header.upright_size)
    if longer > config.max_aspect_ratio * shorter or max(_stored_size(header.size, config.image_size)) > _MAX_JPEG_SIDE:
        message = f"{longer / shorter:.2f} to 1"
        raise FetchFailure(Reason.ASPECT_RATIO, message, original_size=header.upright_size)


def _stored_pixels(header: ImageHeader, image_size: int) -> np.ndarray:
    """Return the upright, shrunk pixels, (height, width, 3) uint8. Shrinking first keeps memory small."""
    target = _stored_size(header.size, image_size)
    is_scaled = min(header.size) >= _MIN_SCALED_DECODE * image_size
    pixels = decode_pixels(header, image_size if is_scaled else 0)
    if isinstance(pixels, np.ndarray):
        return upright(_shrink(pixels, target), header.orientation)
    if pixels.size != target:
        pixels = pixels.resize(target, Image.Resampling.HAMMING, reducing_gap=2.0)
    return upright(pixels, header.orientation)


def _shrink(rgb: np.ndarray, target: Size) -> np.ndarray:
    """Resize to `target`; bit-exact on every machine; area averaging from a factor of two on."""
    height, width, _ = rgb.shape
    if (width, height) == target:
        return rgb
    is_far = min(width / target[0], height / target[1]) >= _MAX_LINEAR_FACTOR
    try:
        return cv2.resize(rgb, target, interpolation=cv2.INTER_AREA if is_far else cv2.INTER_LINEAR_EXACT)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError(f"to shrink {width} x {height} pixels") from error
        raise


def _encode(rgb: np.ndarray, quality: int) -> bytes:
    try:
        return simplejpeg.encode_jpeg(rgb, quality, "RGB", "420")
    except ValueError as error:
        if lacked_memory(error):
            raise MemoryError("to encode a JPEG") from error
        raise


def _stored_size(size: Size, image_size: int) -> Size:
    shorter = min(size)
    if shorter <= image_size:
        return size
    width, height = (max(1, round(side * image_size / shorter)) for side in size)
    return width, height
