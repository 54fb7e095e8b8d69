"""Find XMP, IPTC and C2PA data in image files without decoding the pixels.

JPEG, PNG and WebP are read segment by segment, which touches few bytes; GIF, TIFF and AVIF files are searched for the
bytes that XMP and C2PA data start with.
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
    else:
        _search(encoded, found)
    return found


def _walk_jpeg(encoded: bytes, found: Segments) -> None:
    at, extended, boxes = 2, {}, {}
    while encoded[at : at + 1] == b"\xff" and at + 4 <= len(encoded):
        marker = encoded[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in (0xDA, 0xD9):  # the pixels begin, or the file ends
            break
        size = int.from_bytes(encoded[at + 2 : at + 4])
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
