"""Find XMP, IPTC and C2PA data in image files without decoding the pixels.

JPEG, PNG and WebP are read segment by segment, which touches few bytes. GIF, TIFF and AVIF files are searched for the
bytes that XMP and C2PA data start with if their blocks, tags or boxes show that they have metadata; files of other
formats, and damaged ones, always are.
"""

import struct
import zlib
from dataclasses import dataclass, field

_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_EXTENDED_XMP = b"http://ns.adobe.com/xmp/extension/\0"
_PHOTOSHOP = b"Photoshop 3.0\0"
_EXTENDED_HEAD_BYTES = len(_EXTENDED_XMP) + 40  # a GUID of 32 characters, the total size, the offset
_PNG_XMP = b"XML:com.adobe.xmp\0"
_PNG_PROFILES = (b"Raw profile type xmp\0", b"Raw profile type iptc\0", b"Raw profile type 8bim\0")  # ImageMagick's
_PNG_TEXTS = (b"iTXt", b"tEXt", b"zTXt")
_METADATA_CHUNKS = frozenset([*_PNG_TEXTS, b"caBX", b"XMP ", b"C2PA"])  # caBX: C2PA in PNG
_GIF_END, _GIF_EXTENSION, _GIF_FRAME, _GIF_APPLICATION = 0x3B, 0x21, 0x2C, 0xFF
_GIF_FULL_BLOCK, _GIF_WINDOW_BYTES = 255, 1 << 16
_GIF_METADATA = (b"XMP Data", b"C2PA")
_TIFF_METADATA = frozenset({330, 700, 33723, 34377, 52545})  # further images, XMP, IPTC, Photoshop's, C2PA
_MAX_TIFF_IMAGES = 100
_PLAIN_BOXES = frozenset({b"ftyp", b"meta", b"mdat", b"free", b"skip", b"moov"})
_MAX_CHUNKS = 10_000
_MAX_METADATA_BYTES = 4 << 20


@dataclass(slots=True)
class Segments:
    """The metadata of one file, as unparsed packets; `iptc` is Photoshop's image resources."""

    xmp: list[bytes] = field(default_factory=list)
    iptc: list[bytes] = field(default_factory=list)
    c2pa: list[bytes] = field(default_factory=list)


def find_segments(encoded: bytes) -> Segments:
    """Return the metadata in an image file; any bytes are accepted."""
    found = Segments()
    if encoded.startswith(b"\xff\xd8"):
        _walk_jpeg(encoded, found)
    elif encoded.startswith(b"\x89PNG\r\n\x1a\n"):
        _walk_chunks(encoded, 8, found, is_png=True)
    elif encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP":
        _walk_chunks(encoded, 12, found, is_png=False)
    elif _may_have_metadata(encoded):
        _search(encoded, found)
    return found


def _may_have_metadata(encoded: bytes) -> bool:
    try:
        if encoded[:6] in (b"GIF87a", b"GIF89a"):
            return _gif_has_metadata(encoded)
        if encoded[:4] in (b"II*\0", b"MM\0*"):
            return _tiff_has_metadata(encoded)
        if encoded[4:8] == b"ftyp":
            return _boxes_have_metadata(encoded)
    except (IndexError, struct.error):
        pass
    return True


def _gif_has_metadata(encoded: bytes) -> bool:
    """Return whether a GIF has an application extension with XMP or C2PA, or is not read to its end."""
    at = 13 + _gif_colour_table_bytes(encoded[10])
    while (kind := encoded[at]) != _GIF_END:
        if kind == _GIF_EXTENSION:
            if encoded[at + 1] == _GIF_APPLICATION and encoded[at + 3 : at + 14].startswith(_GIF_METADATA):
                return True
            at += 2
        elif kind == _GIF_FRAME:
            at += 11 + _gif_colour_table_bytes(encoded[at + 9])
        else:
            return True
        while size := encoded[at]:
            if size == _GIF_FULL_BLOCK:  # nearly all blocks of pixels are: many are skipped at once
                sizes = encoded[at : at + _GIF_WINDOW_BYTES : _GIF_FULL_BLOCK + 1]
                at += (len(sizes) - len(sizes.lstrip(b"\xff"))) * (_GIF_FULL_BLOCK + 1)
            else:
                at += size + 1
        at += 1
    return len(encoded) > at + 1  # something comes after the end


def _gif_colour_table_bytes(flags: int) -> int:
    return 6 << (flags & 7) if flags & 0x80 else 0


def _tiff_has_metadata(encoded: bytes) -> bool:
    """Return whether an image of a TIFF has a tag for metadata, or further images of its own."""
    order = "<" if encoded.startswith(b"II") else ">"
    (at,) = struct.unpack_from(f"{order}I", encoded, 4)
    for _ in range(_MAX_TIFF_IMAGES):
        (count,) = struct.unpack_from(f"{order}H", encoded, at)
        tags = struct.unpack_from(f"{order}{6 * count}H", encoded, at + 2)[::6]  # an entry has 12 bytes
        if not _TIFF_METADATA.isdisjoint(tags):
            return True
        (at,) = struct.unpack_from(f"{order}I", encoded, at + 2 + 12 * count)
        if at == 0:
            return False
    return True


def _boxes_have_metadata(encoded: bytes) -> bool:
    """Return whether a file of boxes (AVIF, HEIC) has XMP among its items, or a box that may be XMP or C2PA."""
    at = 0
    while at < len(encoded):
        size, kind = struct.unpack_from(">I4s", encoded, at)
        if size == 1:
            (size,) = struct.unpack_from(">Q", encoded, at + 8)
        end = at + size if size else len(encoded)
        if size in range(1, 8) or end > len(encoded) or kind not in _PLAIN_BOXES:
            return True
        if kind == b"meta" and (encoded.find(b"rdf+xml", at, end) >= 0 or encoded.find(b"jumb", at, end) >= 0):
            return True
        at = end
    return False


def _walk_jpeg(encoded: bytes, found: Segments) -> None:
    at, extended, boxes = 2, {}, {}
    last = len(encoded) - 4
    while at <= last and encoded[at] == 0xFF:
        marker = encoded[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in (0xDA, 0xD9):  # the pixels begin, or the file ends
            break
        size = encoded[at + 2] << 8 | encoded[at + 3]
        if marker == 0xE1:
            if encoded.startswith(_XMP, at + 4):
                found.xmp.append(encoded[at + 4 + len(_XMP) : at + 2 + size])
            elif encoded.startswith(_EXTENDED_XMP, at + 4):
                head = encoded[at + 4 : at + 4 + _EXTENDED_HEAD_BYTES]
                extended[head[-40:-8], head[-4:]] = encoded[at + 4 + _EXTENDED_HEAD_BYTES : at + 2 + size]
        elif marker == 0xED and encoded.startswith(_PHOTOSHOP, at + 4):
            found.iptc.append(encoded[at + 4 + len(_PHOTOSHOP) : at + 2 + size])
        elif marker == 0xEB and encoded.startswith(b"JP", at + 4):
            # Every piece of a JUMBF box repeats the size and type of the box after its number.
            instance, sequence = encoded[at + 6 : at + 8], encoded[at + 8 : at + 12]
            boxes[instance, sequence] = encoded[at + 20 : at + 2 + size]
        at += 2 + size
    if extended:
        found.xmp.append(b"".join(extended[key] for key in sorted(extended)))
    if boxes:
        found.c2pa.append(b"".join(boxes[key] for key in sorted(boxes)))


def _walk_chunks(encoded: bytes, at: int, found: Segments, *, is_png: bool) -> None:
    """Read the chunks of a PNG or WebP file from `at` on; if there are too many, search the rest."""
    for _ in range(_MAX_CHUNKS):
        if at + (12 if is_png else 8) > len(encoded):
            return
        size, kind = (
            struct.unpack_from(">I4s", encoded, at) if is_png else struct.unpack_from("<4sI", encoded, at)[::-1]
        )
        if kind in _METADATA_CHUNKS:
            _read_chunk(kind, encoded[at + 8 : at + 8 + size], found)
        at += 8 + size + (4 if is_png else size % 2)  # PNG: a checksum; WebP: padding
    _search(encoded[at:], found)


def _read_chunk(kind: bytes, content: bytes, found: Segments) -> None:
    if kind in _PNG_TEXTS:
        _read_png_text(kind, content, found)
    else:
        (found.xmp if kind == b"XMP " else found.c2pa).append(content)


def _read_png_text(kind: bytes, text: bytes, found: Segments) -> None:
    if kind == b"iTXt" and text.startswith(_PNG_XMP):
        is_compressed = text[len(_PNG_XMP) : len(_PNG_XMP) + 1] == b"\1"
        packet = text[len(_PNG_XMP) + 2 :].partition(b"\0")[2].partition(b"\0")[2]
        found.xmp.append(_inflate(packet) if is_compressed else packet)
    elif text.startswith(_PNG_PROFILES):
        keyword, _, profile = text.partition(b"\0")
        lines = (_inflate(profile[1:]) if kind == b"zTXt" else profile).split(b"\n")
        try:  # an empty line, the name, the size, then lines of hexadecimal digits
            content = bytes.fromhex(b"".join(lines[3:]).decode("ascii", "replace"))
        except ValueError:
            return
        (found.xmp if keyword.endswith(b"xmp") else found.iptc).append(content)


def _search(encoded: bytes, found: Segments) -> None:
    begin = encoded.find(b"<x:xmpmeta")
    if begin >= 0:
        end = encoded.find(b"</x:xmpmeta>", begin)
        found.xmp.append(encoded[begin : end + 12 if end >= 0 else begin + _MAX_METADATA_BYTES])
    elif (begin := encoded.find(b"<rdf:RDF")) >= 0:
        end = encoded.find(b"</rdf:RDF>", begin)
        found.xmp.append(encoded[begin : end + 10 if end >= 0 else begin + _MAX_METADATA_BYTES])
    begin = encoded.find(b"jumd")
    if begin >= 0:
        found.c2pa.append(encoded[begin : begin + _MAX_METADATA_BYTES])
    begin = encoded.find(b"8BIM\x04\x04")
    if begin >= 0:
        found.iptc.append(encoded[begin : begin + _MAX_METADATA_BYTES])


def _inflate(packed: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(packed, _MAX_METADATA_BYTES)
    except zlib.error:
        return b""
