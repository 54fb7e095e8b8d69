"""EXIF data of image files, and the orientation that browsers apply.

JPEG, PNG and WebP by the EXIF tag; AVIF by its own boxes (irot, imir); TIFF by its tag, which Pillow follows when it
decodes. XMP has a copy of the tag that no browser follows.
"""

import io
import struct

from PIL import ExifTags, Image

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

_SEARCHED_BYTES = 1 << 17
_MARKERS = {"PNG": b"eXIf", "WEBP": b"EXIF", "TIFF": b"", "AVIF": b"Exif"}
_TURNS_OF_AVIF = (b"irot", b"imir")

_MAX_EXIF_BYTES = 1 << 20
_VALUE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_STRIPS_AND_TILES = (273, 324)
_MAX_STRIPS = 1 << 16
_MAX_DIRECTORIES = 16
_DIRECTORIES = (34665, 34853, 40965)  # EXIF, GPS, interoperability


def read_exif(encoded: bytes, file_format: str) -> Image.Exif | None:
    """Return the EXIF data of a file that is not a JPEG, without decoding it; None if it is missing or unreadable."""
    marker = _MARKERS.get(file_format)
    end = {"WEBP": len(encoded), "PNG": max(encoded.find(b"IDAT"), 0)}.get(file_format, _SEARCHED_BYTES)
    if marker is None or encoded.find(marker, 0, end) < 0:
        return None
    return _exif_of(encoded, file_format)


def parse_exif(raw: bytes) -> Image.Exif | None:
    """Parse EXIF data; None if it cannot be parsed."""
    if not raw or len(raw) > _MAX_EXIF_BYTES:
        return None
    exif = Image.Exif()
    try:
        while raw.startswith(b"Exif\0\0"):  # as Pillow does
            raw = raw[6:]
        check_directories(raw)
        exif.load(raw)
    except MemoryError:
        raise
    except Exception:  # the image may be valid although its EXIF data is not; parsers raise anything on hostile bytes
        return None
    return exif


def orientation(encoded: bytes, file_format: str, exif: Image.Exif | None) -> int:
    """Return the EXIF orientation of decoded pixels, 1 to 8; 1 is upright."""
    if file_format == "TIFF":
        return 1
    if file_format == "AVIF" and any(box in encoded[:_SEARCHED_BYTES] for box in _TURNS_OF_AVIF):
        exif = _exif_of(encoded, file_format)  # Pillow writes the boxes' turn into it
    turn = exif.get(ExifTags.Base.Orientation) if exif is not None else None
    return turn if isinstance(turn, int) and turn in ORIENTATIONS else 1


def without_xmp(image: Image.Image) -> Image.Image:
    """Remove the XMP data of an opened image: Pillow would apply its orientation."""
    for key in ("xmp", "XML:com.adobe.xmp"):
        image.info.pop(key, None)
    return image


def check_directories(tiff: bytes) -> None:
    """Refuse a TIFF structure whose directories share their values, or have very many strips, before Pillow reads it.

    Pillow reads every value of a directory at once: 5,000 entries of 64 kB each can lie in one block of 64 kB.

    Raises:
        ValueError: no encoder writes such a structure.
    """
    order = "<" if tiff[:2] == b"II" else ">"
    waiting, seen, total_bytes = [4], set[int](), 0
    while waiting:
        try:
            (start,) = struct.unpack_from(f"{order}I", tiff, waiting.pop())
            (entries,) = struct.unpack_from(f"{order}H", tiff, start)
        except struct.error:  # cut: the decoder will say so
            continue
        if start in seen:
            continue
        seen.add(start)
        if len(seen) > _MAX_DIRECTORIES:
            raise ValueError(f"more than {_MAX_DIRECTORIES} directories of tags")
        for at in range(start + 2, min(start + 2 + 12 * entries, len(tiff) - 11), 12):
            tag, kind, count = struct.unpack_from(f"{order}HHI", tiff, at)
            value_bytes = _VALUE_BYTES.get(kind, 1) * count
            if value_bytes <= len(tiff):  # a longer one is left out by Pillow
                total_bytes += value_bytes
            if tag in _STRIPS_AND_TILES and count > _MAX_STRIPS:
                raise ValueError(f"{count:,} strips or tiles")
            if tag in _DIRECTORIES:
                waiting.append(at + 8)
    if total_bytes > 2 * len(tiff) + 4096:
        raise ValueError(f"{total_bytes:,} bytes of tags in a file of {len(tiff):,}")


def _exif_of(encoded: bytes, file_format: str) -> Image.Exif | None:
    try:
        image = without_xmp(Image.open(io.BytesIO(encoded), formats=(file_format,)))
    except MemoryError:
        raise
    except Exception:
        return None
    if file_format != "TIFF":
        return parse_exif(image.info.get("exif", b""))
    try:
        return image.getexif()
    except MemoryError:
        raise
    except Exception:
        return None
