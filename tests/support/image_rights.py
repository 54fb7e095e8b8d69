"""Image files with statements about their use inside, written segment by segment as cameras and editors do."""

import io
import struct
import zlib

from PIL import Image

XMP_HEAD = b"http://ns.adobe.com/xap/1.0/\0"


def xmp(properties: str = "", attributes: str = "") -> bytes:
    """Return an XMP packet with properties as elements, as attributes of rdf:Description, or both."""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:plus="http://ns.useplus.org/ldf/xmp/1.0/" '
        'xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:xmpRights="http://ns.adobe.com/xap/1.0/rights/" '
        f'xmlns:cc="http://creativecommons.org/ns#" xmlns:tdm="http://www.w3.org/ns/tdmrep/" {attributes}>'
        f"{properties}</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end='w'?>"
    ).encode()


def data_mining(value: str) -> bytes:
    return xmp(f"<plus:DataMining>http://ns.useplus.org/ldf/vocab/{value}</plus:DataMining>")


def training_mining(label: str, entry: str, value: str) -> bytes:
    """Return JUMBF boxes with one training and data mining assertion, its content in CBOR."""

    def text(string: str) -> bytes:
        return bytes([0x60 + len(string)]) + string.encode() if len(string) < 24 else b"\x78" + _sized(string)

    def _sized(string: str) -> bytes:
        return bytes([len(string)]) + string.encode()

    prefix = label.partition(".")[0]
    content = b"\xa1" + text("entries") + b"\xa1" + text(f"{prefix}.{entry}") + b"\xa1" + text("use") + text(value)
    assertion = _superbox(b"cbor", label, _box(b"cbor", content))
    store = _superbox(b"c2as", "c2pa.assertions", assertion)
    return _superbox(b"c2pa", "c2pa", _superbox(b"c2ma", "urn:uuid:1", store))


def manifest_without_assertion() -> bytes:
    return _superbox(b"c2pa", "c2pa", _superbox(b"c2ma", "urn:uuid:1", b""))


def in_jpeg(jpeg: bytes, *, packet: bytes = b"", boxes: bytes = b"", iptc: bytes = b"", piece: int = 60_000) -> bytes:
    """Return a JPEG file with an APP1 (XMP), APP11 (JUMBF, in pieces) and APP13 (IPTC) segment before the others."""
    segments = b""
    if packet:
        segments += _segment(0xE1, XMP_HEAD + packet)
    if iptc:
        resource = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(iptc)) + iptc + b"\0" * (len(iptc) % 2)
        segments += _segment(0xED, b"Photoshop 3.0\0" + resource)
    if boxes:
        head, body = boxes[:8], boxes[8:]
        for number, start in enumerate(range(0, len(body), piece), 1):
            segments += _segment(0xEB, b"JP" + struct.pack(">HI", 1, number) + head + body[start : start + piece])
    return jpeg[:2] + segments + jpeg[2:]


def iptc_dataset(number: int, value: str) -> bytes:
    return struct.pack(">BBBH", 0x1C, 2, number, len(value.encode())) + value.encode()


def in_png(png: bytes, *, packet: bytes = b"", boxes: bytes = b"", compress: bool = False, last: bool = False) -> bytes:
    """Return a PNG file with an iTXt chunk (XMP) or a caBX chunk (C2PA) behind its header, or before its end."""
    chunks = b""
    if packet:
        text = zlib.compress(packet) if compress else packet
        chunks += _chunk(b"iTXt", b"XML:com.adobe.xmp\0" + bytes([compress]) + b"\0\0\0" + text)
    if boxes:
        chunks += _chunk(b"caBX", boxes)
    at = len(png) - 12 if last else 33
    return png[:at] + chunks + png[at:]


def in_webp(webp: bytes, kind: bytes, content: bytes) -> bytes:
    body = webp[8:] + kind + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def encode(image: Image.Image, file_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)  # type: ignore[arg-type]
    return file.getvalue()


def _segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", len(content) + 8, kind) + content


def _superbox(kind: bytes, label: str, content: bytes) -> bytes:
    uuid = kind + bytes.fromhex("00110010800000aa00389b71")
    return _box(b"jumb", _box(b"jumd", uuid + b"\x03" + label.encode() + b"\0") + content)
