"""The only decoder: untrusted image files, checked by their headers, then decoded to upright RGB.

The fetcher, the index of evaluation sets and the trainer use it, so that all of them accept the same files and
see the same pixels. It supports the formats of the web and of evaluation sets that Pillow decodes without running
another program, and decodes the first frame. Transparency becomes white, deep grey is scaled, EXIF orientation is
applied.

A lack of memory raises MemoryError: it is not a property of the image.
"""

import contextlib
import io
import mmap
import re
import struct
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, UnidentifiedImageError

from dedup.image_files import avif, filled, jpeg, webp
from dedup.image_files.bounds import check_structure
from dedup.image_files.exif import ORIENTATIONS, exif_data, exif_of_tiff, orientation, parse_exif, without_xmp

MAX_PIXELS = 89_478_485
"""Pillow's own limit for a decompression bomb."""
MAX_PASS_PIXELS = 1_000_000_000
"""Limit of pixels times scans of a JPEG: some 7 CPU seconds."""
MAX_AVIF_PIXELS = 4 * MAX_PIXELS
"""Limit for all frames that an AVIF file makes its decoder decode: some 4 CPU seconds."""

_MAGICS = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "GIF": re.compile(rb"GIF8[79]a"),
    "BMP": re.compile(rb"BM"),
    "TIFF": re.compile(rb"II\*\0|MM\0\*"),
    "WEBP": re.compile(rb"RIFF[\s\S]{4}WEBP"),
    "PPM": re.compile(rb"P[1-6]\s+[#\d]"),
}
_SUFFIXES = {"JPEG": "jpg", "TIFF": "tif"}  # of the other formats it is their name
_UNSUPPORTED_SIGNATURES = (
    b"\0\0\1\0",
    b"8BPS",
    b"\xff\x0a",
    b"\0\0\0\x0cJXL ",
    b"\0\0\0\x0cjP  ",
    b"\xff\x4f\xff\x51",
    b"II+\0",
    b"MM\0+",
)
_SVG_HEAD_BYTES = 1024

# Decoding takes up to 16 bytes a pixel (a WebP with transparency), 1.4 GB at `MAX_PIXELS`; only one image above this
# size is decoded at a time.
_LARGE_PIXELS = 1 << 24
_BYTES_PER_PIXEL = 16
_one_large_image = threading.Lock()
_SPARE_BYTES = 1 << 26  # what a decoder takes besides its pixels: threads and tables

_ROWS = 256  # of an image, converted at a time

# The end of files that were truncated and then padded with zeros or an error page. Complete files rarely end like this:
# only flat WebP images end in zeros.
_TAIL_BYTES = 16
_FILLED = re.compile(rb"(.)\1*|[\t\n\r -~]*", re.DOTALL)

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `max_pixels` is the limit here
warnings.filterwarnings("ignore", category=UserWarning, module="PIL.TiffImagePlugin")  # one for each damaged tag

T = TypeVar("T")

DecodeFailure = Literal["not_an_image", "unsupported_format", "broken_image", "too_many_pixels"]

Size = tuple[int, int]
"""(width, height)"""


class ImageDecodeError(ValueError):
    """The bytes are not a readable image; `failure` is from a closed list. `size`: upright, if known."""

    def __init__(self, failure: DecodeFailure, message: str, size: Size | None = None) -> None:
        super().__init__(message)
        self.failure: DecodeFailure = failure
        self.size = size


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """The header of an image file that may be decoded. `size` is before its EXIF `orientation` is applied."""

    encoded: bytes
    file_format: str
    size: Size
    orientation: int
    exif: Image.Exif | None
    markers: jpeg.Survey | None = None  # of a JPEG
    colours: str = ""  # of a JPEG

    @property
    def upright_size(self) -> Size:
        return self.size if self.orientation < 5 else (self.size[1], self.size[0])  # orientations 5 to 8 swap the sides


def decode_rgb(encoded: bytes, *, max_pixels: int = MAX_PIXELS, min_side: int = 0) -> np.ndarray:
    """Decode an image file to upright RGB, `(height, width, 3)` uint8.

    A JPEG is decoded at the smallest eighth of its size whose sides are not below `min_side`, if that is not 0.

    Raises:
        ImageDecodeError: it is not a readable image.
        MemoryError: too little memory to decide.
    """
    header = read_header(encoded, max_pixels)
    return upright(decode_pixels(header, min_side), header.orientation)


def read_header(encoded: bytes, max_pixels: int = MAX_PIXELS) -> ImageHeader:
    """Check an image file by its header and structure, before any pixel is decoded.

    Raises:
        ImageDecodeError: it is not an image, or decoding it would cost too much.
        MemoryError: too little memory to decide.
    """
    file_format = _sniff(encoded)
    read = _header_of_jpeg if file_format == "JPEG" else partial(_header_of_others, file_format=file_format)
    header = _guarded(file_format, (0, 0), partial(read, encoded))
    _check_cost(header, max_pixels)
    return header


def decode_pixels(header: ImageHeader, min_side: int = 0) -> np.ndarray | Image.Image:
    """Decode the first frame, not yet upright: a JPEG as an RGB array, others (and rare JPEGs) as RGB, RGBA or L.

    `min_side` as in `decode_rgb`.

    Raises:
        ImageDecodeError: it is damaged, or its pixels have no defined colours.
        MemoryError: too little memory to decide.
    """
    pixels = header.size[0] * header.size[1]
    decode = _decode_jpeg if header.file_format == "JPEG" else _decode_with_pillow
    # A JPEG with a single scan is decoded row by row; with several, all its coefficients are kept in memory.
    takes_much = header.markers is None or header.markers.takes_passes
    with _one_large_image if pixels >= _LARGE_PIXELS and takes_much else contextlib.nullcontext():
        return _guarded(header.file_format, header.size, partial(decode, header, min_side))


def upright(pixels: np.ndarray | Image.Image, turn: int) -> np.ndarray:
    """Blend decoded pixels with white and turn them upright."""
    if isinstance(pixels, np.ndarray):
        return pixels if turn == 1 else np.asarray(Image.fromarray(pixels).transpose(ORIENTATIONS[turn]))
    if pixels.mode == "RGBA":
        pixels = Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels).convert("RGB")
    if pixels.mode != "RGB":
        pixels = pixels.convert("RGB")
    return np.asarray(pixels if turn == 1 else pixels.transpose(ORIENTATIONS[turn]))


def file_suffix(encoded: bytes) -> str:
    """Return the suffix of the name of an image file, by its signature: jpg, png, webp, gif, bmp, tif, avif or ppm."""
    file_format = _sniff(encoded)
    return _SUFFIXES.get(file_format, file_format.lower())


def _sniff(encoded: bytes) -> str:
    """Return the format by the file signature."""
    for name, magic in _MAGICS.items():
        if magic.match(encoded):
            return name
    if avif.is_avif(encoded):
        return "AVIF"
    if (
        encoded.startswith(_UNSUPPORTED_SIGNATURES)
        or encoded[4:8] == b"ftyp"
        or b"<svg" in encoded[:_SVG_HEAD_BYTES].lower()
    ):
        raise ImageDecodeError("unsupported_format", "an image format that is not supported")
    raise ImageDecodeError("not_an_image", "unrecognized file signature" if encoded else "empty")


def _guarded(file_format: str, size: Size, work: Callable[[], T]) -> T:
    """Run a step of decoding; tell damage of the file from a lack of memory.

    If a decoder reports a lack of memory although there is some, try once more: malformed files can request any amount.
    """
    for is_last in (False, True):
        try:
            return work()
        except ImageDecodeError:
            raise
        except Image.DecompressionBombError as error:
            raise ImageDecodeError("too_many_pixels", str(error)) from error
        except Exception as error:  # decoders raise anything on hostile bytes: struct.error, IndexError ...
            _check_memory(size, error)
            if is_last or not jpeg.lacked_memory(error):
                # Pillow's own messages contain memory addresses.
                detail = str(error) if type(error) is ValueError else type(error).__name__
                raise ImageDecodeError("broken_image", f"{file_format}: {detail}"[:200]) from error
    raise AssertionError


def _check_memory(size: Size, error: Exception) -> None:
    """Raise MemoryError unless a decoder could have got the memory it needed: not every decoder reports the lack."""
    wanted_bytes = _SPARE_BYTES + _BYTES_PER_PIXEL * size[0] * size[1]
    try:
        mmap.mmap(-1, wanted_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError:
        raise MemoryError(f"to decode {size[0]} x {size[1]} pixels") from error


def _check_cost(header: ImageHeader, max_pixels: int) -> None:
    width, height = header.size
    pixels = width * height
    if pixels > max_pixels:
        raise ImageDecodeError("too_many_pixels", f"{width} x {height}; the most is {max_pixels}", header.upright_size)
    if header.markers is not None and pixels * header.markers.scans > MAX_PASS_PIXELS:
        message = f"JPEG: {header.markers.scans} scans of {width} x {height}"
        raise ImageDecodeError("broken_image", message, header.upright_size)


def _open(encoded: bytes, file_format: str) -> Image.Image:
    try:
        return without_xmp(Image.open(io.BytesIO(encoded), formats=(file_format,)))
    except UnidentifiedImageError as error:
        _check_memory((0, 0), error)
        if file_format == "TIFF" and _is_sound_tiff(encoded):
            raise ImageDecodeError("unsupported_format", "a TIFF variant that is not supported") from None
        raise ImageDecodeError("broken_image", f"{file_format}: the header is damaged") from None


def _header_of_jpeg(encoded: bytes) -> ImageHeader:
    markers = jpeg.survey(encoded)
    exif = jpeg.exif_data(encoded, markers)
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
    except (ValueError, KeyError) as error:  # a rare subsampling is a KeyError
        if jpeg.lacked_memory(error):
            raise
        width, height = _open(jpeg.without_metadata(encoded, markers), "JPEG").size
        colours = ""
    return ImageHeader(encoded, "JPEG", (width, height), orientation(exif), parse_exif(exif), markers, colours)


def _header_of_others(encoded: bytes, file_format: str) -> ImageHeader:
    check_structure(encoded, file_format)
    if file_format == "AVIF" and (decoded := avif.decoded_pixels(encoded)) > MAX_AVIF_PIXELS:
        raise ImageDecodeError("too_many_pixels", f"AVIF: {decoded:,} pixels in its frames")
    size = _open(encoded, file_format).size
    if file_format == "TIFF":  # Pillow turns its pixels
        return ImageHeader(encoded, file_format, size, 1, exif_of_tiff(encoded))
    exif = exif_data(encoded, file_format)
    return ImageHeader(encoded, file_format, size, orientation(exif), parse_exif(exif))


def _decode_jpeg(header: ImageHeader, min_side: int) -> np.ndarray | Image.Image:
    assert header.markers is not None
    encoded = header.encoded if header.markers.end >= 0 else header.encoded + jpeg.END
    jpeg.check_scans(encoded, header.markers)
    jpeg.check_tail(encoded, header.markers)
    if header.colours not in ("CMYK", "YCCK"):
        try:
            return simplejpeg.decode_jpeg(encoded, "RGB", False, False, min_side, min_side)
        except ValueError as error:
            if jpeg.lacked_memory(error):
                raise
    jpeg.check_whole(encoded, header.markers, is_cmyk=header.colours in ("CMYK", "YCCK"))
    encoded = jpeg.without_metadata(header.encoded, header.markers)
    return _in_rgb(_open(encoded, "JPEG"), encoded, "JPEG")  # Pillow knows how Adobe inverts CMYK


def _decode_with_pillow(header: ImageHeader, min_side: int) -> Image.Image:
    encoded, file_format = header.encoded, header.file_format
    opened = _open(encoded, file_format)
    if file_format in ("BMP", "PPM", "TIFF"):
        filled.check_filled(opened, encoded)
    end = filled.compressed_end(opened) if file_format == "TIFF" else _ENDS.get(file_format, lambda _: 0)(encoded)
    image = _in_rgb(opened, encoded, file_format)
    if end > _TAIL_BYTES and _FILLED.fullmatch(encoded, end - _TAIL_BYTES, end):
        _check_tail(image, encoded, end, file_format)
    return image


def _check_tail(image: Image.Image, encoded: bytes, end: int, file_format: str) -> None:
    """Refuse a truncated and padded file: its decoder does not reach the last bytes, so changing them has no effect.

    In a complete file every byte of the data matters, even if it ends in zeros.
    """
    changed = encoded[: end - _TAIL_BYTES] + b"\xa5" * _TAIL_BYTES + encoded[end:]
    try:
        other = _in_rgb(_open(changed, file_format), changed, file_format)
    except MemoryError:
        raise
    except Exception:
        return
    if image.mode == other.mode and image.tobytes() == other.tobytes():
        raise ImageDecodeError("broken_image", f"{file_format}: truncated and padded")


_ENDS: dict[str, Callable[[bytes], int]] = {"WEBP": webp.pixel_data_end, "AVIF": avif.pixel_data_end}


def _in_rgb(image: Image.Image, encoded: bytes, file_format: str) -> Image.Image:
    """Decode the first frame to RGB, to RGBA if it has transparency, or to L if it is 16-bit grey."""
    if image.mode == "F":
        raise ImageDecodeError("unsupported_format", "floating-point pixels have no range", image.size)
    hidden = image.info.get("transparency") if file_format == "PNG" else None
    depth = encoded[24] if file_format == "PNG" else 8
    if image.mode.startswith("I"):
        return _in_8_bits(image, *_range_of_grey(image, file_format), hidden)
    if isinstance(hidden, int) and image.mode == "L":
        most = (1 << depth) - 1
        image.info["transparency"] = (hidden & most) * 255 // most  # Pillow scales the pixels only
    elif isinstance(hidden, tuple) and depth == 16:
        image.info["transparency"] = tuple(value >> 8 for value in hidden)
    mode = "RGBA" if image.has_transparency_data else "RGB"
    if image.mode == mode:
        image.load()
        return image
    return image.convert(mode)  # converting to the same would copy


def _range_of_grey(image: Image.Image, file_format: str) -> tuple[int, bool, bool]:
    """Return by how many bits to shift deep grey, whether it is unsigned, and whether white is zero (TIFF 6)."""
    if file_format != "TIFF":
        return 8, False, False
    tags = image.tag_v2  # type: ignore[attr-defined]
    bits = tags.get(ExifTags.Base.BitsPerSample, (16,))[0]
    is_signed = tags.get(ExifTags.Base.SampleFormat, (1,))[0] == 2
    if is_signed and bits < 32:
        raise ImageDecodeError("unsupported_format", "signed pixels have no white", image.size)
    # Programs, Pillow among them, write 16-bit grey as signed 32 bits.
    shift = 8 if is_signed else bits - 8
    return shift, not is_signed, tags.get(ExifTags.Base.PhotometricInterpretation) == 0


def _in_8_bits(image: Image.Image, shift: int, is_unsigned: bool, is_inverted: bool, hidden: object) -> Image.Image:
    """Scale deep grey, which Pillow would clip at 255; in blocks of rows, for a small file may hold a large image."""
    wide = np.asarray(image)
    if is_unsigned and wide.dtype == np.int32:
        wide = wide.view(np.uint32)
    grey = np.empty(wide.shape, np.uint8)
    for row in range(0, len(wide), _ROWS):
        block = np.clip(wide[row : row + _ROWS] >> shift, 0, 255).astype(np.uint8)
        grey[row : row + _ROWS] = ~block if is_inverted else block
    if isinstance(hidden, int):
        grey[wide == hidden] = 255  # transparent, on white
    return Image.fromarray(grey)


def _is_sound_tiff(encoded: bytes) -> bool:
    """Return whether the first directory is complete and has a width and a height."""
    order = "<" if encoded[:2] == b"II" else ">"
    try:
        (start,) = struct.unpack_from(f"{order}I", encoded, 4)
        (entries,) = struct.unpack_from(f"{order}H", encoded, start)
        tags = {struct.unpack_from(f"{order}H", encoded, start + 2 + 12 * entry)[0] for entry in range(entries)}
    except struct.error:
        return False
    return {ExifTags.Base.ImageWidth, ExifTags.Base.ImageLength} <= tags
