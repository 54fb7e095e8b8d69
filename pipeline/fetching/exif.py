"""EXIF tags as a JSON object, with img2dataset's names: {"Image Model": "X100", "EXIF ExposureTime": "0.01"}.

Left out: positions (GPS), thumbnails and makers' notes.
"""

import json
from typing import Any

from PIL import ExifTags, Image

NO_EXIF = "{}"
_MAX_VALUE_CHARS = 200
_MAX_TAGS = 200
_LEFT_OUT = frozenset(
    {ExifTags.IFD.GPSInfo, ExifTags.IFD.Exif, ExifTags.IFD.Interop, ExifTags.IFD.MakerNote, ExifTags.Base.UserComment}
)


def exif_json(exif: Image.Exif | None) -> str:
    """Return the tags as a JSON object of strings, in the order of their numbers."""
    if exif is None:
        return NO_EXIF
    tags: dict[str, str] = {}
    try:
        tags |= _named("Image", exif)
        tags |= _named("EXIF", exif.get_ifd(ExifTags.IFD.Exif))
    except MemoryError:
        raise
    except Exception:  # a damaged directory: the tags read so far are kept
        pass
    return json.dumps(tags)


def _named(directory: str, tags: Any) -> dict[str, str]:
    named = {}
    for tag, value in sorted(dict(tags).items())[:_MAX_TAGS]:
        if tag not in _LEFT_OUT and not isinstance(value, bytes):
            name = ExifTags.TAGS.get(tag, f"Tag 0x{tag:04X}")
            named[f"{directory} {name}"] = str(value)[:_MAX_VALUE_CHARS].strip("\0 ")
    return named
