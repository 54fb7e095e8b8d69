"""What a small file may cost before its first pixel: refused by its structure, before Pillow walks over it."""

import re
import struct
import zlib

from dedup.image_files.exif import check_directories

MAX_CHUNKS = 50_000
"""Of a PNG, and blocks before the picture of a GIF: Pillow takes some microseconds for each."""
_MAX_COMMENT_BYTES = 1 << 20
_MAX_SLOW_BYTES = 1 << 23
"""Of a file that Pillow decodes in Python: run-length BMP, and PPM as text or with a range other than 0 to 255."""
_CRITICAL = frozenset([b"IHDR", b"PLTE", b"IDAT"])
_PLAIN_PPM = re.compile(rb"P[56]\s+(?:#[^\n]*\n\s*)*\d+\s+(?:#[^\n]*\n\s*)*\d+\s+(?:#[^\n]*\n\s*)*255\s")


def check_structure(encoded: bytes, file_format: str) -> None:
    """Judge a file by its structure.

    Raises:
        ValueError: it would cost too much to decode, or is damaged.
    """
    check = _CHECKS.get(file_format)
    if check is not None:
        check(encoded)


def _check_png(encoded: bytes) -> None:
    """Count the chunks, and compare the checksums of those that make up the picture: Pillow trusts its pixels."""
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
            raise ValueError(f"{blocks:,} blocks before the picture, {comment_bytes:,} bytes of comments")


def _check_bmp(encoded: bytes) -> None:
    is_run_length = len(encoded) > 34 and struct.unpack_from("<I", encoded, 30)[0] in (1, 2)
    if is_run_length and len(encoded) > _MAX_SLOW_BYTES:
        raise ValueError(f"{len(encoded):,} bytes of runs")


def _check_ppm(encoded: bytes) -> None:
    is_fast = encoded[:2] == b"P4" or _PLAIN_PPM.match(encoded[:4096])
    if not is_fast and len(encoded) > _MAX_SLOW_BYTES:
        raise ValueError(f"{len(encoded):,} bytes that are not plain bytes of pixels")


_CHECKS = {"PNG": _check_png, "GIF": _check_gif, "BMP": _check_bmp, "PPM": _check_ppm, "TIFF": check_directories}
