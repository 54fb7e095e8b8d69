"""The markers of a JPEG file: how many scans it has, whether it is complete, and which warnings of its decoder matter.

libjpeg fills missing parts with grey and only warns. simplejpeg raises at the first warning and reports only that one,
so the causes of harmless ones are removed before it judges the file.
"""

import re
import struct
from dataclasses import dataclass

import simplejpeg

from dedup.image_files.exif import BYTE_ORDERS, PREFIX
from dedup.image_files.page_text import ends_in_page

MAX_SCANS = 100
"""A progressive JPEG costs its whole size again for each scan, which can be a few bytes. Encoders write some ten."""
MAX_SEGMENTS = 5_000
END = b"\xff\xd9"

_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # in pixels, 0xff comes with a zero or a restart number
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # these three are not frames
_PROGRESSIVE = frozenset(range(0xC2, 0xD0)) & _FRAMES  # and rarer kinds that take several passes
_METADATA = frozenset([*range(0xE1, 0xEE), 0xEF, 0xFE])
_NEEDED = _FRAMES | {0xC4, 0xCC, 0xDA, 0xDB, 0xDD}
_TEXT = re.compile(rb"[\t\n\r -~]*")
_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_MAX_EXTRANEOUS_BYTES = 32  # after the last scan, of encoders that round up
_MAX_ZEROS_AT_END = 2  # of pixels
_NO_MEMORY = ("memory allocation failure", "insufficient memory", "out of memory")
# Messages about files that simplejpeg cannot check, and about repeated scans, which are harmless.
_NO_JUDGEMENT = ("subsampling", "Unsupported", "not supported", "precision", "Inconsistent progression")


@dataclass(frozen=True, slots=True)
class Segment:
    """A marker with its header up to its pixels or the next marker, and where its pixels end."""

    marker: int
    start: int
    header_end: int
    end: int


@dataclass(frozen=True, slots=True)
class Survey:
    """The markers of a file's first image. `end` is where the image ends, -1 if its end marker is missing."""

    segments: tuple[Segment, ...]
    end: int

    @property
    def scans(self) -> int:
        return sum(segment.marker == 0xDA for segment in self.segments)

    @property
    def takes_passes(self) -> bool:
        """Whether every coefficient is kept in memory until the last scan."""
        return self.scans > 1 or any(segment.marker in _PROGRESSIVE for segment in self.segments)


def survey(encoded: bytes) -> Survey:
    """Walk over the markers of a JPEG file.

    Raises:
        ValueError: there are more scans or segments than any encoder writes.
    """
    found, at, scans = list[Segment](), 2, 0
    while (match := _MARKER.search(encoded, at)) is not None:
        marker, start = encoded[match.start() + 1], match.start()
        if found:
            found[-1] = Segment(found[-1].marker, found[-1].start, found[-1].header_end, start)
        at = match.end()
        if marker == 0xD9:
            return Survey(tuple(found), at)
        if marker in (0x01, 0xD8):  # these two are alone, the others begin with their length
            continue
        at += int.from_bytes(encoded[at : at + 2])
        found.append(Segment(marker, start, at, len(encoded)))
        scans += marker == 0xDA
        if scans > MAX_SCANS or len(found) > MAX_SEGMENTS:
            raise ValueError(f"more than {MAX_SCANS} scans or {MAX_SEGMENTS:,} segments")
    return Survey(tuple(found), -1)


def check_scans(encoded: bytes, found: Survey) -> None:
    """Refuse an image with missing scans: truncation between two scans has no other symptom.

    Raises:
        ValueError: some bits of a coefficient are in no scan.
    """
    frames = [segment for segment in found.segments if segment.marker in _FRAMES]
    if len(frames) != 1 or frames[0].marker not in (0xC0, 0xC1, 0xC2):
        return
    frame = encoded[frames[0].start + 4 : frames[0].header_end]
    missing = {frame[at]: (1 << 64) - 1 for at in range(6, len(frame), 3)}
    for scan in (segment for segment in found.segments if segment.marker == 0xDA):
        header = encoded[scan.start + 4 : scan.header_end]
        if not header or len(header) < 4 + 2 * header[0]:
            raise ValueError("a scan's header is cut")
        first, last, bits = header[1 + 2 * header[0] :][:3]
        if frames[0].marker != 0xC2:
            first, last, bits = 0, 63, 0
        if bits & 0x0F == 0 and first <= last < 64:
            covered = (1 << last + 1) - (1 << first)
            for component in header[1 : 1 + 2 * header[0] : 2]:
                missing[component] = missing.get(component, 0) & ~covered
    if any(missing.values()):
        raise ValueError("the last scans are missing")


def exif_data(encoded: bytes, found: Survey) -> bytes:
    """Return the EXIF data of the segments before the first scan, as a TIFF structure; empty if there is none.

    The first segment with such a structure counts, as in browsers; long data goes on in the next segments.
    """
    parts = list[bytes]()
    for segment in found.segments:
        if segment.marker == 0xDA:
            break
        content = encoded[segment.start + 4 : segment.header_end]
        if segment.marker == 0xE1 and content.startswith(PREFIX):
            part = content.removeprefix(PREFIX)
            if parts or part[:4] in BYTE_ORDERS:
                parts.append(part)
    return b"".join(parts)


def without_metadata(encoded: bytes, found: Survey) -> bytes:
    """Return the first image with its end marker, without the segments that do not affect its pixels."""
    parts, at = list[bytes](), 0
    for segment in found.segments:
        if segment.marker in _METADATA:
            parts.append(encoded[at : segment.start])
            at = segment.header_end
    return b"".join([*parts, encoded[at : found.end] if found.end >= 0 else encoded[at:] + END])


def check_tail(encoded: bytes, found: Survey) -> None:
    """Refuse an image whose pixels end in text: an error page appended to a truncated file, and read as pixels.

    Raises:
        ValueError: it ends in 32 bytes of text with more than a few distinct letters (flat images can repeat any byte),
            or in the start of a page.
    """
    if found.segments and found.segments[-1].marker == 0xDA:
        start, end = found.segments[-1].header_end, found.segments[-1].end
        tail = encoded[max(start, end - 32) : end]
        is_text = len(tail) == 32 and _TEXT.fullmatch(tail) is not None and len(set(tail)) > 5
        if is_text or ends_in_page(encoded, start, end):
            raise ValueError("text after truncated pixels")


def check_strictly(encoded: bytes) -> None:
    """Check a JPEG that another decoder will decode, in a TIFF file.

    Raises:
        ValueError: it is truncated or damaged, or there is too little memory to decide.
    """
    found = survey(encoded)
    whole = encoded if found.end >= 0 else encoded + END
    check_scans(whole, found)
    check_tail(whole, found)
    frame = next((segment for segment in found.segments if segment.marker in _FRAMES), None)
    components = encoded[frame.start + 9] if frame is not None and frame.start + 9 < len(encoded) else 0
    if components in (1, 3, 4):
        check_whole(whole, found, is_cmyk=components == 4)


def check_whole(encoded: bytes, found: Survey, *, is_cmyk: bool) -> None:
    """Distinguish a complete image that simplejpeg warns about from one that is truncated or damaged.

    Raises:
        ValueError: it is truncated or damaged, or there is too little memory to decide.
    """
    needed = _only_needed(encoded, found)
    try:
        _decode_strictly(needed, is_cmyk)
    except ValueError as error:
        if any(text in str(error) for text in _NO_JUDGEMENT):
            return
        extraneous = _EXTRANEOUS.search(str(error))
        if extraneous is None:
            raise
        # Bytes after the last scan are harmless if the image is complete without them. Zeros that pad a truncated
        # image are not: its decoder reads many of them as pixels.
        pixels = needed[: -len(END)]
        without_zeros = pixels.rstrip(b"\0")
        if len(pixels) - len(without_zeros) > _MAX_ZEROS_AT_END:
            candidates = [without_zeros + bytes(zeros) for zeros in range(_MAX_ZEROS_AT_END + 1)]
        elif int(extraneous[1]) <= _MAX_EXTRANEOUS_BYTES:
            candidates = [pixels[: -int(extraneous[1])]]
        else:
            raise
        if not any(_is_clean(candidate + END, is_cmyk) for candidate in candidates):
            raise


def _is_clean(encoded: bytes, is_cmyk: bool) -> bool:
    try:
        _decode_strictly(encoded, is_cmyk)
    except ValueError as error:
        if lacked_memory(error):
            raise
        return False
    return True


def _decode_strictly(encoded: bytes, is_cmyk: bool) -> None:
    """Decode at an eighth of the size; raise ValueError at the first warning."""
    simplejpeg.decode_jpeg(encoded, "CMYK" if is_cmyk else "RGB", False, False, 1, 1)


def lacked_memory(error: Exception) -> bool:
    """Return whether a decoder reports a lack of memory: simplejpeg by a ValueError, Pillow also by an OSError."""
    return isinstance(error, MemoryError) or any(text in str(error).lower() for text in _NO_MEMORY)


def _only_needed(encoded: bytes, found: Survey) -> bytes:
    """Return the image without the segments that a decoder may warn about and a browser ignores."""
    parts = [b"\xff\xd8"]
    frame = next((segment.marker for segment in found.segments if segment.marker in _FRAMES), 0)
    for segment in found.segments:
        header = bytearray(encoded[segment.start : segment.header_end])
        if segment.marker == 0xE0 and header[4:9] == b"JFIF\0":
            header[9:10] = b"\x01"  # the revision
        elif segment.marker == 0xEE and header[4:9] == b"Adobe" and len(header) > 15:
            header[15] = min(header[15], 2)  # the transform
        elif segment.marker not in _NEEDED:
            continue
        if segment.marker == 0xDA and frame in (0xC0, 0xC1) and len(header) > 7:
            header[-3:] = struct.pack("BBB", 0, 63, 0)  # means nothing without progression
        pixels = encoded[segment.header_end : segment.end] if segment.marker == 0xDA else b""
        parts += [bytes(header), pixels]
    return b"".join([*parts, END])
