"""Estimate the cost of decoding an AVIF file: the sizes of the AV1 frames of its items and tracks, by their headers.

Decoders ignore the image size in the container: they decode all frames, also hidden ones, in the size of their own
headers (AV1 specification, sections 5.3 and 5.5), and scales the result.
"""

import struct
from collections.abc import Iterator

from dedup.image_files.exif import check_directories

_CONTAINERS = frozenset([b"moov", b"trak", b"mdia", b"minf", b"stbl"])
_MAX_BOXES = 10_000
_MAX_ITEMS = 1_000
_MAX_UNITS = 1_000
_SEQUENCE_HEADER, _FRAME_HEADER, _FRAME = 1, 3, 6
_FIRST_UNITS = frozenset([1, 2, 3, 5, 6, 15])


def is_avif(encoded: bytes) -> bool:
    """Tell by the file type box, whose brands name AVIF first or among those it is compatible with (`mif1` files)."""
    if encoded[4:8] != b"ftyp":
        return False
    brands = encoded[8 : min(int.from_bytes(encoded[:4]), 1024)]
    return any(brands[at : at + 4] in (b"avif", b"avis") for at in (0, *range(8, len(brands), 4)))


def decoded_pixels(encoded: bytes) -> int:
    """Return the number of pixels in all frames that a decoder may have to decode for the first image.

    Raises:
        ValueError: the containers or the frames cannot be understood.
    """
    pixels = 0
    try:
        for data, _ in _coded(encoded):
            pixels += (frames := _pixels_of_units(data))
            if not frames:
                _check_exif(data)
    except (struct.error, IndexError) as error:
        raise ValueError(f"a header is cut ({error})") from error
    if not pixels:
        raise ValueError("no AV1 frames")
    return pixels


def _check_exif(data: bytes) -> None:
    """Check an item that may be EXIF data, which Pillow reads when it opens the file (ISO/IEC 23008-12, A.2.1)."""
    tiff = data[4 + int.from_bytes(data[:4]) :]
    if tiff[:4] in (b"II*\0", b"MM\0*"):
        check_directories(tiff)


def pixel_data_end(encoded: bytes) -> int:
    """Return where the data of the images ends in the file; EXIF and XMP data may follow it."""
    return max((end for data, end in _coded(encoded) if _pixels_of_units(data)), default=0)


def _boxes(encoded: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, start, end) of the contents of the boxes at one level."""
    for _ in range(_MAX_BOXES):
        if at + 8 > end:
            return
        size, name = struct.unpack_from(">I4s", encoded, at)
        start = at + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", encoded, start)
            start += 8
        box_end = end if size == 0 else min(at + size, end)
        if box_end < start:
            raise ValueError("a box is shorter than its header")
        yield name, start, box_end
        at = box_end
    raise ValueError(f"more than {_MAX_BOXES:,} boxes")


def _coded(encoded: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield the data of each item, and of the first sample of each track, and where it ends."""
    for name, start, end in _boxes(encoded, 0, len(encoded)):
        if name == b"meta":
            yield from _items(encoded, start + 4, end)
        elif name == b"moov":
            yield from _first_samples(encoded, start, end)


def _items(encoded: bytes, start: int, end: int) -> Iterator[tuple[bytes, int]]:
    boxes = {name: (at, box_end) for name, at, box_end in _boxes(encoded, start, end)}
    if b"iloc" not in boxes:
        return
    at, _ = boxes[b"iloc"]
    version = encoded[at]
    offset_bytes, length_bytes = encoded[at + 4] >> 4, encoded[at + 4] & 15
    base_bytes, index_bytes = encoded[at + 5] >> 4, encoded[at + 5] & 15 if version else 0
    wide = 4 if version == 2 else 2
    count = int.from_bytes(encoded[at + 6 : at + 6 + wide])
    at += 6 + wide
    extents_left, bytes_left = _MAX_ITEMS, 2 * len(encoded)
    for _ in range(count):
        method = encoded[at + wide + 1] & 15 if version else 0
        at += wide + (2 if version else 0) + 2
        base = int.from_bytes(encoded[at : at + base_bytes])
        at += base_bytes
        extents = int.from_bytes(encoded[at : at + 2])
        at += 2
        extents_left -= extents + 1
        if extents_left < 0 or at >= len(encoded):
            raise ValueError(f"more than {_MAX_ITEMS:,} items, or their list is cut")
        origin = boxes.get(b"idat", (0, 0))[0] if method == 1 else 0
        parts, offset = list[bytes](), 0
        for _ in range(extents):
            at += index_bytes
            offset = origin + base + int.from_bytes(encoded[at : at + offset_bytes])
            length = int.from_bytes(encoded[at + offset_bytes : at + offset_bytes + length_bytes])
            at += offset_bytes + length_bytes
            parts.append(encoded[offset : offset + length if length else len(encoded)])
            bytes_left -= len(parts[-1])
            if bytes_left < 0:
                raise ValueError("items share their data")
        yield b"".join(parts), min(offset + len(parts[-1]), len(encoded)) if parts else 0


def _first_samples(encoded: bytes, start: int, end: int) -> Iterator[tuple[bytes, int]]:
    size, offset = 0, None
    for name, at, box_end in _boxes(encoded, start, end):
        if name in _CONTAINERS:
            yield from _first_samples(encoded, at, box_end)
        elif name == b"stsz":
            common, count = struct.unpack_from(">II", encoded, at + 4)
            size = common or (struct.unpack_from(">I", encoded, at + 12)[0] if count else 0)
        elif name in (b"stco", b"co64"):
            offset = struct.unpack_from(">I" if name == b"stco" else ">Q", encoded, at + 8)[0]
    if offset is not None:
        yield encoded[offset : offset + size], min(offset + size, len(encoded))


def _pixels_of_units(data: bytes) -> int:
    """Return the pixels of all frames of some AV1 data; 0 where it is something else, such as EXIF data."""
    at, frames, largest = 0, 0, 0
    for number in range(_MAX_UNITS):
        if at >= len(data):
            return frames * largest
        header = data[at]
        kind = header >> 3 & 15
        if number == 0 and (header & 0x81 or kind not in _FIRST_UNITS):
            return 0
        at += 2 if header & 4 else 1
        size = len(data) - at
        if header & 2:
            size, at = _leb128(data, at)
        if kind == _SEQUENCE_HEADER:
            largest = max(largest, _pixels_of_sequence(data[at : at + 64]))
        frames += kind in (_FRAME_HEADER, _FRAME)
        at += size
    raise ValueError(f"more than {_MAX_UNITS:,} units of AV1 data")


def _leb128(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place in range(8):
        value |= (data[at + place] & 0x7F) << 7 * place
        if not data[at + place] & 0x80:
            return value, at + place + 1
    raise ValueError("a length does not end")


def _pixels_of_sequence(header: bytes) -> int:
    """Return the largest frame that an AV1 sequence header allows (specification, section 5.5.1)."""
    bits = _Bits(header)
    bits.take(4)  # profile, still_picture
    if bits.take(1):  # reduced_still_picture_header
        bits.take(5)
    else:
        has_model = 0
        if bits.take(1):  # timing_info
            bits.take(64)
            if bits.take(1):
                bits.skip_uvlc()
            if has_model := bits.take(1):
                delay_bits = bits.take(5) + 1
                bits.take(42)
        has_delay = bits.take(1)
        for _ in range(bits.take(5) + 1):
            bits.take(12)
            if bits.take(5) > 7:
                bits.take(1)
            if has_model and bits.take(1):
                bits.take(2 * delay_bits + 1)
            if has_delay and bits.take(1):
                bits.take(4)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    return (bits.take(width_bits) + 1) * (bits.take(height_bits) + 1)


class _Bits:
    """Reads bits from the left."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data)
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise ValueError("a sequence header is cut")
        return self._value >> self._left & (1 << count) - 1

    def skip_uvlc(self) -> None:
        zeros = 0
        while zeros < 32 and not self.take(1):
            zeros += 1
        self.take(zeros)
