"""Limit the cost of a small file before its first pixel: refuse it by its structure, before Pillow parses it."""

import re
import struct
import zlib

from dedup.image_files.exif import BYTE_ORDERS, check_directories

MAX_CHUNKS = 50_000
"""Limit of the chunks of a PNG, and of the blocks before the image of a GIF: Pillow takes microseconds for each."""
_MAX_COMMENT_BYTES = 1 << 20
_MAX_SLOW_BYTES = 1 << 23
"""Limit of a file that Pillow decodes in Python: run-length BMP, PPM as text or with a range other than 0 to 255."""
_LAST_KIND = 18  # of the value of a TIFF tag
_CRITICAL = frozenset([b"IHDR", b"PLTE", b"IDAT"])
_PLAIN_PPM = re.compile(rb"P[56]\s+(?:#[^\n]*\n\s*)*\d+\s+(?:#[^\n]*\n\s*)*\d+\s+(?:#[^\n]*\n\s*)*255\s")


def check_structure(encoded: bytes, file_format: str) -> None:
    """Check a file by its structure.

    Raises:
        ValueError: decoding it would cost too much, or it is damaged.
    """
    check = _CHECKS.get(file_format)
    if check is not None:
        check(encoded)


def _check_png(encoded: bytes) -> None:
    """Count the chunks, and compare the checksums of those with image data, which Pillow does not check."""
    at, chunks, view = 8, 0, memoryview(encoded)
    while at + 12 <= len(encoded):
        length, name = struct.unpack_from(">I4s", encoded, at)
        end = at + 12 + length
        chunks += 1
        if chunks > MAX_CHUNKS:
            raise ValueError(f"more than {MAX_CHUNKS:,} chunks")
        if name in _CRITICAL and end <= len(encoded):
            (checksum,) = struct.unpack_from(">I", encoded, end - 4)
            if zlib.crc32(view[at + 4 : end - 4]) != checksum:
                raise ValueError(f"the checksum of {name.decode()} at byte {at} is wrong")
        if name == b"IEND":
            return
        at = end


def _check_gif(encoded: bytes) -> None:
    at = 13 + (3 << (encoded[10] & 7) + 1 if len(encoded) > 10 and encoded[10] & 0x80 else 0)
    blocks, comment_bytes = 0, 0
    while at + 1 < len(encoded) and encoded[at] != 0x2C:
        is_extension, is_comment = encoded[at] == 0x21, encoded[at + 1] == 0xFE
        at += 2 if is_extension else 1
        blocks += 1
        while is_extension and at < len(encoded) and (length := encoded[at]):
            at += 1 + length
            blocks += 1
            comment_bytes += length if is_comment else 0
        at += is_extension
        if blocks > MAX_CHUNKS or comment_bytes > _MAX_COMMENT_BYTES:
            raise ValueError(f"{blocks:,} blocks before the image, {comment_bytes:,} bytes of comments")


def _check_bmp(encoded: bytes) -> None:
    is_run_length = len(encoded) > 34 and struct.unpack_from("<I", encoded, 30)[0] in (1, 2)
    if is_run_length and len(encoded) > _MAX_SLOW_BYTES:
        raise ValueError(f"{len(encoded):,} bytes of runs")


def _check_ppm(encoded: bytes) -> None:
    is_fast = encoded[:2] == b"P4" or _PLAIN_PPM.match(encoded[:4096])
    if not is_fast and len(encoded) > _MAX_SLOW_BYTES:
        raise ValueError(f"{len(encoded):,} bytes of pixels in a slow format")


def _check_tiff(encoded: bytes) -> None:
    """Check the directories, and that the entries of the first were not overwritten: many programs write it last."""
    check_directories(encoded)
    order = BYTE_ORDERS[encoded[:4]]
    (start,) = struct.unpack_from(f"{order}I", encoded, 4)
    (entries,) = struct.unpack_from(f"{order}H", encoded, start)
    count = 1
    for at in range(start + 2, start + 2 + 12 * entries, 12):
        tag, kind, count = struct.unpack_from(f"{order}HHI", encoded, at)
        if not tag or not 0 < kind <= _LAST_KIND:
            raise ValueError("its directory was overwritten")
    if not 0 < count <= len(encoded):
        raise ValueError("the last tag of its directory was overwritten")


_CHECKS = {"PNG": _check_png, "GIF": _check_gif, "BMP": _check_bmp, "PPM": _check_ppm, "TIFF": _check_tiff}
