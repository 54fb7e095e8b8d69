"""EXIF tags as a JSON object, named as img2dataset names them: {"Image Model": "X100", "EXIF ExposureTime": "0.01"}.

Left out: where the picture was taken (GPS), thumbnails and makers' notes.
"""

import contextlib
import io
import json
from typing import Any

from PIL import ExifTags, Image

NO_EXIF = "{}"
_MAX_VALUE_CHARS = 200
_MAX_TAGS = 200
_SEARCHED_BYTES = 1 << 17
_LEFT_OUT = frozenset(
    {ExifTags.IFD.GPSInfo, ExifTags.IFD.Exif, ExifTags.IFD.Interop, ExifTags.IFD.MakerNote, ExifTags.Base.UserComment}
)

ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What to do to the pixels of an image with each EXIF orientation to make it upright; 1 is upright."""

_MARKERS = {"JPEG": b"Exif\0\0", "PNG": b"eXIf", "WEBP": b"EXIF", "TIFF": b"", "AVIF": b"Exif"}


def read_exif(encoded: bytes, file_format: str) -> Image.Exif | None:
    """Return the EXIF data of an image file without decoding it; None where there is none, or none that can be read."""
    marker = _MARKERS.get(file_format)
    if marker is None or encoded.find(marker, 0, None if file_format == "WEBP" else _SEARCHED_BYTES) < 0:
        return None
    try:
        image = Image.open(io.BytesIO(encoded), formats=(file_format,))
        if file_format == "PNG":  # its own `getexif` decodes all pixels, to find EXIF data behind them
            return Image.Image.getexif(image)
        return image.getexif()
    except (
        Exception
    ):  # the picture may be sound where its EXIF data is not; parsers raise what hostile bytes lead them to
        return None


def orientation(exif: Image.Exif | None) -> int:
    """Return the EXIF orientation, 1 to 8; 1 (upright) where none is given."""
    turn = exif.get(ExifTags.Base.Orientation) if exif is not None else None
    return turn if isinstance(turn, int) and turn in ORIENTATIONS else 1


def exif_json(exif: Image.Exif | None) -> str:
    """Return the tags as a JSON object of strings, in the order of their numbers."""
    if exif is None:
        return NO_EXIF
    tags = _named("Image", exif)
    with contextlib.suppress(Exception):  # a broken sub-directory: what was read stands
        tags |= _named("EXIF", exif.get_ifd(ExifTags.IFD.Exif))
    return json.dumps(tags)


def _named(directory: str, tags: Any) -> dict[str, str]:
    named = {}
    for tag, value in sorted(dict(tags).items())[:_MAX_TAGS]:
        if tag not in _LEFT_OUT and not isinstance(value, bytes):
            name = ExifTags.TAGS.get(tag, f"Tag 0x{tag:04X}")
            named[f"{directory} {name}"] = str(value)[:_MAX_VALUE_CHARS].strip("\0 ")
    return named
