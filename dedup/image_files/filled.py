"""Recognise BMP, PPM and TIFF files that were cut and then filled up, with zeros or with an error page.

Their decoders take any bytes for pixels. What can be told:

- a page, by its text: from a tag or a sentence on, nothing but text follows until the pixels end;
- zeros, by the row in which they begin: bright up to there, below a row that is bright above all of them. Black parts
  of pictures begin at nearly the same place in both rows, or with a whole row; in pictures that were turned a little,
  the first row has a black part, too;
- JPEG data in a TIFF, by its own rules (jpeg.py).

What cannot: a cut between two rows or in a dark part (it looks like a picture that is black there), pixels of less than
8 bits, and less than 16 lost bytes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from dedup.image_files import jpeg
from dedup.image_files.page_text import ends_in_page, text_at_end

_COMPRESSION, _BITS, _SAMPLES, _PLANES, _TABLES = 259, 258, 277, 284, 347
_OFFSETS_AND_COUNTS = ((273, 279), (324, 325))  # of strips, of tiles
_RAW, _JPEG = 1, 7

_BLOCK_BYTES = 1 << 16
_END_OF_RUNS = b"\0\1"  # of a run-length BMP

_MIN_ZEROS = 16
_SIDE_PIXELS = 6  # that are compared on either side of the cut
_BRIGHT, _BRIGHT_SHARE = 16, 0.9


@dataclass(frozen=True, slots=True)
class _Rows:
    """Where pixels are in a file. `row_bytes` is 0 if they are compressed, or have less than 8 bits."""

    start: int
    end: int
    row_bytes: int
    pixel_bytes: int
    is_full_width: bool
    bright: int  # the least value that is not dark


def check_filled(image: Image.Image, encoded: bytes) -> None:
    """Refuse a file whose pixels were lost and replaced. `image` is opened, but not decoded.

    Raises:
        ValueError: they were.
    """
    if image.format == "TIFF":
        strips = tiff_strips(image)
        compression = image.tag_v2.get(_COMPRESSION, _RAW)  # type: ignore[attr-defined]
        for start, end in strips:
            _check_page(encoded, start, min(end, len(encoded)))
        if compression == _JPEG:
            _check_jpegs(image, encoded, strips)
        if compression != _RAW:
            return
    tiles = [tile for tile in getattr(image, "tile", ()) if tile.codec_name != "ppm_plain"]
    parts = sorted((_rows_of(image, tile, len(encoded)) for tile in tiles), key=lambda rows: rows.start)
    if parts and image.format != "TIFF":
        _check_page(encoded, parts[-1].start, parts[-1].end)
    _check_zeros(encoded, parts)


def tiff_strips(image: Image.Image) -> list[tuple[int, int]]:
    """Return where the strips or tiles of an opened TIFF begin and end, in the order of the file; empty if unstated."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    for offsets, counts in _OFFSETS_AND_COUNTS:
        if isinstance(tags.get(offsets), tuple) and isinstance(tags.get(counts), tuple):
            pairs = zip(tags[offsets], tags[counts], strict=False)
            return sorted((start, start + count) for start, count in pairs)
    return []


def compressed_end(image: Image.Image) -> int:
    """Return where the last strip of a compressed TIFF ends, 0 if it is not compressed."""
    if image.tag_v2.get(_COMPRESSION, _RAW) == _RAW:  # type: ignore[attr-defined]
        return 0
    return max((end for _, end in tiff_strips(image)), default=0)


def _check_jpegs(image: Image.Image, encoded: bytes, strips: list[tuple[int, int]]) -> None:
    tables = image.tag_v2.get(_TABLES)  # type: ignore[attr-defined]
    if isinstance(tables, bytes) and not tables.endswith(jpeg.END):
        raise ValueError("the end of its JPEG tables is missing")
    head = tables.removesuffix(jpeg.END) if isinstance(tables, bytes) else b"\xff\xd8"
    for start, end in strips:
        jpeg.check_strictly(head + encoded[start:end].removeprefix(b"\xff\xd8"))


def _check_page(encoded: bytes, start: int, end: int) -> None:
    if ends_in_page(encoded, start, end) and not encoded.endswith(
        _END_OF_RUNS, start, text_at_end(encoded, start, end)
    ):
        raise ValueError("text after truncated pixels")


def _rows_of(image: Image.Image, tile: Any, file_bytes: int) -> _Rows:
    """Return the rows of a tile that Pillow will read."""
    left, top, right, bottom = tile.extents or (0, 0, *image.size)
    mode, *options = tile.args if isinstance(tile.args, tuple) else (tile.args,)
    if tile.codec_name not in ("raw", "ppm"):
        return _Rows(tile.offset, file_bytes, 0, 0, is_full_width=True, bright=0)
    if image.format == "PPM":
        bits = 1 if mode.startswith("1") else 16 if ";16" in mode or (options and options[0] > 255) else 8
        row_bits = bits * (3 if mode == "RGB" else 1) * (right - left)
    elif image.format == "BMP":
        row_bits = 8 * options[0]
    else:
        row_bits = 8 * options[0] or _bits_of_tiff(image) * (right - left)
    row_bytes, pixel_bytes = (row_bits + 7) // 8, row_bits // 8 // max(right - left, 1)
    end = min(tile.offset + row_bytes * (bottom - top), file_bytes)
    is_full_width = (left, right) == (0, image.size[0])
    bright = 1 if image.mode in ("P", "PA") else _BRIGHT  # of a palette, any colour but the first
    return _Rows(tile.offset, end, row_bytes if pixel_bytes else 0, pixel_bytes, is_full_width, bright)


def _bits_of_tiff(image: Image.Image) -> int:
    """Return the bits of a pixel, or of one of its samples where each has its own strips."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    bits = tags.get(_BITS, (1,))
    if tags.get(_PLANES) == 2:
        return bits[0]
    return sum(bits) if len(bits) > 1 else bits[0] * tags.get(_SAMPLES, 1)


def _check_zeros(encoded: bytes, parts: list[_Rows]) -> None:
    """Raise ValueError if zeros begin within a row whose predecessor is bright above them, and go on to the end."""
    zeros = 0
    for number in range(len(parts) - 1, -1, -1):
        rows = parts[number]
        first = _end_of_content(encoded, rows.start, rows.end)
        zeros += rows.end - first
        if first == rows.start and rows.row_bytes:
            continue
        if rows.row_bytes and zeros >= _MIN_ZEROS and bytes(_MIN_ZEROS) not in _first_row(encoded, parts[0]):
            previous = parts[number - 1] if number else None
            _check_row(encoded, rows, first, previous)
        return


def _first_row(encoded: bytes, rows: _Rows) -> bytes:
    return encoded[rows.start : rows.start + rows.row_bytes]


def _end_of_content(encoded: bytes, start: int, end: int) -> int:
    """Return where the zeros at the end of a range begin."""
    while end > start:
        begin = max(start, end - _BLOCK_BYTES)
        if block := encoded[begin:end].rstrip(b"\0"):
            return begin + len(block)
        end = begin
    return start


def _check_row(encoded: bytes, rows: _Rows, first_zero: int, previous: _Rows | None) -> None:
    row, column = divmod(first_zero - rows.start, rows.row_bytes)
    above = rows.start + (row - 1) * rows.row_bytes
    if not row:
        if previous is None or not (rows.is_full_width and previous.row_bytes == rows.row_bytes):
            return
        above = previous.end - rows.row_bytes
    at = column // rows.pixel_bytes * rows.pixel_bytes  # the pixel that was cut
    edge = _SIDE_PIXELS * rows.pixel_bytes
    if at < edge or rows.row_bytes - at < edge:
        return
    left = encoded[(start := rows.start + row * rows.row_bytes + at - edge) : start + edge]
    right = encoded[above + at : above + rows.row_bytes]
    if _is_bright(left, rows) and _is_bright(right, rows):
        raise ValueError("zeros after truncated pixels")


def _is_bright(content: bytes, rows: _Rows) -> bool:
    whole = len(content) // rows.pixel_bytes * rows.pixel_bytes
    pixels = np.frombuffer(content, np.uint8, whole).reshape(-1, rows.pixel_bytes)
    return bool((pixels.max(1) >= rows.bright).mean() >= _BRIGHT_SHARE)
