"""EXIF data of image files, and the orientation that browsers apply.

JPEG and PNG by the EXIF tag; WebP too, as WebKit and libvips do and Chromium does not; AVIF by its own boxes (irot,
imir); TIFF by its tag, which Pillow follows when it decodes. XMP has a copy of the tag that no browser follows.
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

PREFIX = b"Exif\0\0"
"""Before the TIFF structure in a JPEG, and in the WebP files of some programs. A second one makes it unreadable."""
BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}

_BOXES_OF_AVIF = (b"Exif", b"irot", b"imir")

_SHORT = 3  # a 16-bit number
_MAX_EXIF_BYTES = 1 << 20
_VALUE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_STRIPS_AND_TILES = (273, 324)
_MAX_STRIPS = 1 << 16
_MAX_DIRECTORIES = 16
_DIRECTORIES = (34665, 34853, 40965)  # EXIF, GPS, interoperability


def exif_of_tiff(encoded: bytes) -> Image.Exif | None:
    """Return the tags of a TIFF file, without decoding it; None if they are unreadable."""
    try:
        return without_xmp(Image.open(io.BytesIO(encoded), formats=("TIFF",))).getexif()
    except MemoryError:
        raise
    except Exception:
        return None


def exif_data(encoded: bytes, file_format: str) -> bytes:
    """Return the EXIF data of a PNG, WebP or AVIF file as a TIFF structure; empty if there is none."""
    if file_format == "PNG":
        return _exif_of_png(encoded)
    is_there = {"WEBP": (b"EXIF",), "AVIF": _BOXES_OF_AVIF}.get(file_format, ())
    if not any(name in encoded for name in is_there):
        return b""
    try:
        # Of an AVIF, Pillow writes the turn of the boxes into it.
        image = Image.open(io.BytesIO(encoded), formats=(file_format,))
        raw = image.info.get("exif", b"")
    except MemoryError:
        raise
    except Exception:
        return b""
    return raw.removeprefix(PREFIX) if isinstance(raw, bytes) else b""


def _exif_of_png(encoded: bytes) -> bytes:
    """Return the first eXIf chunk before the pixels that is a TIFF structure, as libpng does."""
    at = 8
    while at + 8 <= len(encoded):
        length, name = struct.unpack_from(">I4s", encoded, at)
        if name in (b"IDAT", b"IEND"):
            break
        if name == b"eXIf" and encoded[at + 8 : at + 12] in BYTE_ORDERS:
            return encoded[at + 8 : at + 8 + length]
        at += 12 + length
    return b""


def parse_exif(raw: bytes) -> Image.Exif | None:
    """Parse EXIF data; None if it cannot be parsed."""
    if not raw or len(raw) > _MAX_EXIF_BYTES:
        return None
    exif = Image.Exif()
    try:
        check_directories(raw)
        exif.load(raw)
    except MemoryError:
        raise
    except Exception:  # the image may be valid although its EXIF data is not; parsers raise anything on hostile bytes
        return None
    return exif


def orientation(tiff: bytes) -> int:
    """Return the orientation in EXIF data, 1 to 8; 1 is upright.

    Browsers look only for a single 16-bit number in the first directory; the rest does not matter.
    """
    order, turn = BYTE_ORDERS.get(tiff[:4]), 1
    if order is None:
        return turn
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, start)
        for at in range(start + 2, start + 2 + 12 * entries, 12):
            tag, kind, count, value = struct.unpack_from(f"{order}HHIH", tiff, at)
            if (tag, kind, count) == (ExifTags.Base.Orientation, _SHORT, 1):
                turn = value if value in ORIENTATIONS else 1
    except struct.error:  # the directory is cut
        pass
    return turn


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
