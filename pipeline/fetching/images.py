"""Convert a downloaded file to what is stored: check the header, decode, turn upright, shrink, fingerprint, encode.

`fetch.resize` has the meaning that img2dataset's modes have with `resize_only_if_bigger`: nothing is enlarged, and an
image that is not larger than `image_size` is neither cropped nor padded.

    shorter_side  the shorter side becomes image_size                           keep_ratio
    longer_side   the longer side becomes image_size                            keep_ratio_largest
    center_crop   as shorter_side, then the square in the middle                center_crop
    pad           as longer_side, then white around it up to a square           border
    none          all pixels                                                    no

Only the pixels of the file are kept: no metadata, no profile, no trailing bytes; with the format "original" the whole
file. The same bytes give the same file.
"""

import io
from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from dedup.decode import ImageDecodeError, ImageHeader, Size, decode_pixels, read_header, upright
from dedup.image_files.jpeg import lacked_memory
from dedup.pdq import fingerprint
from pipeline.config.fetch import FetchConfig
from pipeline.fetching.exif import exif_json
from pipeline.fetching.outcome import FetchFailure
from pipeline.records import Reason

# JPEG can be decoded to n/8 of its size. Between 8/8 and 4/8 that is not faster than decoding in full, so it is done
# only if it also avoids shrinking by a factor at which linear interpolation starts to skip pixels.
_MIN_SCALED_DECODE = 1.6
_MAX_SIDE = {"jpg": 65_500, "webp": 16_383}  # of libjpeg and libwebp
_MAX_SIDE_DECODED = 65_500  # of what is cropped or padded before it is encoded
_MAX_LINEAR_FACTOR = 2.0  # from here on linear interpolation skips pixels
cv2.setNumThreads(1)  # there is a decoder thread for each core


@dataclass(frozen=True, slots=True)
class StoredImage:
    """The stored file and its facts. `original_size` is that of the upright image; `exif` is a JSON object.

    `pdq` is of the whole image, before it is cropped or padded, so that copies of it are found regardless.
    """

    file: bytes
    size: Size
    original_size: Size
    exif: str
    pdq: bytes
    pdq_quality: int

    @property
    def jpeg(self) -> bytes:
        """The stored file by its earlier name, from when every image was stored as JPEG."""
        return self.file


def store_image(encoded: bytes, config: FetchConfig, keeps_bytes: bool = False) -> StoredImage:
    """Return the image to store for the file `encoded`; with `keeps_bytes` its own pixels, if their size is right.

    Raises:
        FetchFailure: not an image, damaged, or outside the size limits: one of `RESIZE_REASONS`; or `too_large` once
            all its pixels are encoded.
        MemoryError: too little memory, which is not a property of the image.
    """
    is_original = config.format == "original"
    try:
        header = read_header(encoded, config.max_pixels)
        _check_size(header, config)
        # The file itself is stored: then its pixels are only needed to check it, and for the fingerprint.
        rgb = _shrunk_pixels(header, "shorter_side" if is_original else config.resize, config.image_size)
    except ImageDecodeError as error:
        raise FetchFailure(Reason(error.failure), str(error), original_size=error.size) from error
    look = fingerprint(rgb)
    if is_original:
        file, size = encoded, header.upright_size
    else:
        rgb = _framed(rgb, config.resize, config.image_size)
        size = (rgb.shape[1], rgb.shape[0])
        may_stay = keeps_bytes and config.format == "jpg" and size == header.size and header.orientation == 1
        kept = bare_jpeg(encoded) if may_stay and header.colours in _COMMON_COLOURS else None
        file = kept or _encode(rgb, config)
    return StoredImage(
        file=file,
        size=size,
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
    longest = max(_shrunk_size(header.size, config.resize, config.image_size))
    most = _MAX_SIDE.get(config.format, longest)
    if config.resize == "none" and longest > most:
        message = f"{longest} pixels wide or high; a {config.format} file has at most {most}"
        raise FetchFailure(Reason.TOO_MANY_PIXELS, message, original_size=header.upright_size)
    if config.resize in ("center_crop", "pad"):
        most = _MAX_SIDE_DECODED
    if longer > config.max_aspect_ratio * shorter or longest > most:
        message = f"{longer / shorter:.2f} to 1"
        raise FetchFailure(Reason.ASPECT_RATIO, message, original_size=header.upright_size)


def _shrunk_pixels(header: ImageHeader, resize: str, image_size: int) -> np.ndarray:
    """Return the upright, shrunk pixels, (height, width, 3) uint8. Shrinking first keeps memory small."""
    target = _shrunk_size(header.size, resize, image_size)
    is_scaled = min(header.size) >= _MIN_SCALED_DECODE * min(target)
    pixels = decode_pixels(header, min(target) if is_scaled else 0)
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


def _framed(rgb: np.ndarray, resize: str, image_size: int) -> np.ndarray:
    """Return the square in the middle of an image, or the image in a white square; one that was not shrunk as it is."""
    height, width, _ = rgb.shape
    if resize == "center_crop" and min(width, height) == image_size:
        top, left = (height - image_size) // 2, (width - image_size) // 2
        return np.ascontiguousarray(rgb[top : top + image_size, left : left + image_size])
    if resize == "pad" and max(width, height) == image_size:
        square = np.full((image_size, image_size, 3), 255, np.uint8)
        top, left = (image_size - height) // 2, (image_size - width) // 2
        square[top : top + height, left : left + width] = rgb
        return square
    return rgb


def _encode(rgb: np.ndarray, config: FetchConfig) -> bytes:
    """Encode pixels in the format of the config.

    Raises:
        FetchFailure: the file of an image that was not shrunk has more than `max_bytes`.
    """
    file = _encode_jpeg(rgb, config.jpeg_quality) if config.format == "jpg" else _encode_with_pillow(rgb, config)
    if config.resize == "none" and len(file) > config.max_bytes:
        raise FetchFailure(Reason.TOO_LARGE, f"{len(file)} bytes as {config.format}")
    return file


def _encode_jpeg(rgb: np.ndarray, quality: int) -> bytes:
    try:
        return simplejpeg.encode_jpeg(rgb, quality, "RGB", "420")
    except ValueError as error:
        if lacked_memory(error):
            raise MemoryError("to encode a JPEG") from error
        raise


def _encode_with_pillow(rgb: np.ndarray, config: FetchConfig) -> bytes:
    file = io.BytesIO()
    if config.format == "webp":
        Image.fromarray(rgb).save(file, "WEBP", quality=config.jpeg_quality)
    else:
        Image.fromarray(rgb).save(file, "PNG")
    return file.getvalue()


def _shrunk_size(size: Size, resize: str, image_size: int) -> Size:
    """Return the size of an image before it is cropped or padded."""
    side = max(size) if resize in ("longer_side", "pad") else min(size)
    if side <= image_size or resize == "none":
        return size
    width, height = (max(1, round(one * image_size / side)) for one in size)
    return width, height
