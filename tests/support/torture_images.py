"""Image files that decoders disagree about, made here: each with what it shows, or why it is none.

All show `PICTURE`, red, green, blue and white quarters on a soft pattern, or are refused; greys show its luma.
"""

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

SIDE = 240


def _picture() -> np.ndarray:
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    pattern = 40 * np.sin(x / 9) * np.cos(y / 7) + 10 * np.sin(x * y / 500)
    quarters = np.zeros((SIDE, SIDE, 3))
    half = SIDE // 2
    for rows, columns, colour in (
        (slice(0, half), slice(0, half), (200, 40, 40)),
        (slice(0, half), slice(half, SIDE), (40, 200, 40)),
        (slice(half, SIDE), slice(0, half), (40, 40, 200)),
        (slice(half, SIDE), slice(half, SIDE), (215, 215, 215)),
    ):
        quarters[rows, columns] = colour
    return np.clip(quarters + pattern[..., None], 0, 255).astype(np.uint8)


PICTURE = _picture()
GREY = np.asarray(Image.fromarray(PICTURE).convert("L"))
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How a picture lies whose tag says so: the inverse of what makes it upright."""
XMP_TURN = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def encode(image: Image.Image | np.ndarray, file_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, file_format, **options)
    return file.getvalue()


def jpeg(image: np.ndarray = PICTURE, **options: object) -> bytes:
    return encode(image, "JPEG", **{"quality": 95, **options})


def lying(turn: int) -> Image.Image:
    image = Image.fromarray(PICTURE)
    return image.transpose(_TURNS[turn]) if turn in _TURNS else image


def orientation_tag(turn: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = turn
    return exif


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def tiff(pixels: bytes, bits: int, order: str = "<", *, photometric: int = 1, sample_format: int = 1) -> bytes:
    """A grey TIFF of one strip behind its directory."""
    tags = [
        (256, 3, SIDE), (257, 3, SIDE), (258, 3, bits), (259, 3, 1), (262, 3, photometric),
        (273, 4, 8 + 2 + 10 * 12 + 4), (277, 3, 1), (278, 3, SIDE), (279, 4, len(pixels)), (339, 3, sample_format),
    ]  # fmt: skip
    directory = struct.pack(f"{order}H", len(tags))
    for tag, kind, value in tags:
        directory += struct.pack(f"{order}HHI", tag, kind, 1)
        directory += struct.pack(f"{order}HH" if kind == 3 else f"{order}I", *((value, 0) if kind == 3 else (value,)))
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(f"{order}I", 8) + directory + bytes(4) + pixels


def png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def grey_png(values: np.ndarray, depth: int, transparent: int | None = None, colour: int = 0) -> bytes:
    """A PNG of any depth; `values` are those of the file."""
    height, width = values.shape[:2]
    if depth == 16:
        rows = values.astype(">u2").reshape(height, -1).view(np.uint8)
    else:
        bits = values[..., None] >> np.arange(depth)[::-1] & 1
        rows = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    hidden = b"" if transparent is None else png_chunk(b"tRNS", struct.pack(">H", transparent) * (3 if colour else 1))
    return (
        b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + hidden
        + png_chunk(b"IDAT", zlib.compress(raw)) + png_chunk(b"IEND", b"")
    )  # fmt: skip


def _twelve_bits(grey: np.ndarray) -> bytes:
    wide = grey.astype(np.uint16).reshape(-1, 2) << 4
    return (
        np.stack([wide[:, 0] >> 4, (wide[:, 0] & 15) << 4 | wide[:, 1] >> 8, wide[:, 1] & 255], 1)
        .astype(np.uint8)
        .tobytes()
    )


def good_colours() -> Iterator[tuple[str, bytes]]:
    """Files that show PICTURE."""
    plain, progressive, restarts = jpeg(), jpeg(progressive=True), jpeg(restart_marker_rows=1)
    yield from (("jpeg", plain), ("progressive", progressive), ("restarts", restarts))
    yield "optimised", jpeg(optimize=True)
    for turn in range(1, 9):
        exif = orientation_tag(turn)
        for file_format in ("JPEG", "PNG", "WEBP"):
            yield f"{file_format} turned {turn}", encode(lying(turn), file_format, exif=exif, quality=95)
        yield f"TIFF turned {turn}", encode(lying(turn), "TIFF", tiffinfo={274: turn})
        yield f"TIFF LZW turned {turn}", encode(lying(turn), "TIFF", tiffinfo={274: turn}, compression="tiff_lzw")
        turned = encode(lying(turn), "AVIF", exif=exif, quality=95)  # Pillow writes irot and imir
        yield f"AVIF turned {turn}", turned
    png = encode(lying(6), "PNG", exif=orientation_tag(6))
    yield "PNG turned 6, behind a long text", png[:33] + png_chunk(b"teXt", bytes(200_000)) + png[33:]
    for file_format in ("JPEG", "PNG", "WEBP", "AVIF"):
        yield f"{file_format} XMP", encode(PICTURE, file_format, xmp=XMP_TURN * 3, quality=95)
    yield "TIFF XMP", encode(PICTURE, "TIFF", tiffinfo={700: XMP_TURN})
    for name, whole in (("jpeg", plain), ("progressive", progressive), ("restarts", restarts)):
        yield f"{name} without its end marker", whole[:-2]
        yield f"{name} with half an end marker", whole[:-1]
        yield f"{name} without its end marker, zeros", whole[:-2] + bytes(5_000)
        yield f"{name}, zeros, end marker", whole[:-2] + bytes(5_000) + whole[-2:]
        yield f"{name} with an odd byte", whole[:-2] + b"\x2a" + whole[-2:]
        yield f"{name} and a page", whole + b"<html>" * 500
        yield f"{name} and zeros", whole + bytes(5_000)
    yield "unknown JFIF revision", plain.replace(b"JFIF\0\x01\x01", b"JFIF\0\x09\x09")
    yield "bad profile", plain[:2] + segment(0xE2, b"ICC_PROFILE\0\x07\x02nothing") + plain[2:]
    yield "odd bytes between segments", plain[:2] + plain[2:20] + b"\0\0\0" + plain[20:]
    cmyk = Image.merge("CMYK", [*Image.fromarray(255 - PICTURE).split(), Image.new("L", (SIDE, SIDE))])
    yield "CMYK", encode(cmyk, "JPEG", quality=95)
    yield "CMYK without its end marker", encode(cmyk, "JPEG", quality=95)[:-2]
    yield "mif1", encode(PICTURE, "AVIF", quality=95).replace(b"ftypavif", b"ftypmif1")
    yield "lossless WebP", encode(PICTURE, "WEBP", lossless=True)
    yield "WebP and zeros", encode(PICTURE, "WEBP", lossless=True) + bytes(1_000)
    yield "PNG without its last chunk", encode(PICTURE, "PNG")[:-12]
    yield "BMP", encode(PICTURE, "BMP")
    yield "PPM", encode(PICTURE, "PPM")
    opaque = np.dstack([PICTURE, np.full((SIDE, SIDE), 255, np.uint8)])
    yield from (("RGBA PNG", encode(opaque, "PNG")), ("RGBA WebP", encode(opaque, "WEBP", lossless=True)))
    yield "RGBA AVIF", encode(opaque, "AVIF", quality=95)
    yield "16-bit colour PNG", grey_png(PICTURE.astype(np.uint16) * 257, 16, colour=2)


def good_greys() -> Iterator[tuple[str, bytes]]:
    """Files that show GREY."""
    wide = GREY.astype(np.uint16) * 257
    yield from (("PNG", encode(GREY, "PNG")), ("16-bit PNG", encode(wide, "PNG")), ("JPEG", jpeg(GREY)))
    yield "JPEG without its end marker", jpeg(GREY)[:-2]
    yield "16-bit PNG by hand", grey_png(wide, 16)
    yield from (("8-bit TIFF", tiff(GREY.tobytes(), 8)), ("12-bit TIFF", tiff(_twelve_bits(GREY), 12)))
    yield "16-bit TIFF", tiff(wide.astype("<u2").tobytes(), 16)
    yield "16-bit TIFF, big-endian", tiff(wide.astype(">u2").tobytes(), 16, ">")
    yield "8-bit TIFF, white is zero", tiff((255 - GREY).tobytes(), 8, photometric=0)
    yield "16-bit TIFF, white is zero", tiff((65535 - wide).astype("<u2").tobytes(), 16, photometric=0)
    yield "32-bit TIFF", tiff((GREY.astype("<u4") * 0x01010101).tobytes(), 32)
    yield "32-bit TIFF of 16 bits", tiff(wide.astype("<i4").tobytes(), 32, sample_format=2)
    yield "16-bit PGM", b"P5 %d %d 65535\n" % (SIDE, SIDE) + wide.astype(">u2").tobytes()


def _cuts(name: str, whole: bytes) -> Iterator[tuple[str, bytes]]:
    for share in (0.2, 0.5, 0.9, 0.97):
        head, rest = whole[: int(len(whole) * share)], len(whole) - int(len(whole) * share)
        yield f"{name} cut at {share}", head
        yield f"{name} cut at {share}, zeros", head + bytes(rest)
        yield f"{name} cut at {share}, ones", head + b"\xff" * rest
        yield f"{name} cut at {share}, a page", head + (b"<html>504 Gateway Time-out</html>\n" * rest)[:rest]
        if whole[:2] == b"\xff\xd8":
            yield f"{name} cut at {share}, end marker", head + b"\xff\xd9"
            yield f"{name} cut at {share}, zeros, end marker", head + bytes(rest) + b"\xff\xd9"
            yield f"{name} cut at {share}, a page, end marker", head + b"<html>timed out</html>" * 40 + b"\xff\xd9"


def damaged() -> Iterator[tuple[str, bytes]]:
    """Files that are `broken_image`."""
    cmyk = encode(Image.fromarray(PICTURE).convert("CMYK"), "JPEG", quality=95)
    for name, whole in (
        ("jpeg", jpeg()), ("progressive", jpeg(progressive=True)), ("restarts", jpeg(restart_marker_rows=1)),
        ("grey jpeg", jpeg(GREY)), ("CMYK", cmyk),
        ("WebP", encode(PICTURE, "WEBP", quality=90)), ("lossless WebP", encode(PICTURE, "WEBP", lossless=True)),
        ("AVIF", encode(PICTURE, "AVIF", quality=90)), ("GIF", encode(PICTURE, "GIF")), ("PNG", encode(PICTURE, "PNG")),
    ):  # fmt: skip
        yield from _cuts(name, whole)
    progressive = jpeg(progressive=True)
    for scan in range(1, progressive.count(b"\xff\xda")):
        start = 0
        for _ in range(scan + 1):
            start = progressive.index(b"\xff\xda", start + 1)
        yield f"progressive without scans from {scan} on", progressive[:start] + b"\xff\xd9"
    restarts = jpeg(restart_marker_rows=1)
    fourth, fifth = restarts.index(b"\xff\xd3"), restarts.index(b"\xff\xd4")
    yield "a restart is missing", restarts[:fourth] + restarts[fifth:]
    flipped = bytearray(encode(PICTURE, "PNG"))
    flipped[len(flipped) // 2] ^= 1
    yield "PNG with a flipped bit", bytes(flipped)


def expensive() -> Iterator[tuple[str, bytes]]:
    """Small files that would take long or much memory."""
    png = encode(PICTURE, "PNG")
    yield "PNG of empty chunks", png[:33] + png_chunk(b"teXt", b"") * 60_000 + png[33:]
    end = png.index(b"IEND") - 4
    yield "PNG of empty pixels", png[:end] + png_chunk(b"IDAT", b"") * 60_000 + png[end:]
    progressive = jpeg(progressive=True)
    last = progressive[progressive.rindex(b"\xff\xda") : -2]
    yield "JPEG of 150 scans", progressive[:-2] + last * 150 + progressive[-2:]
    frame = progressive.index(b"\xff\xc2")
    large = progressive[: frame + 5] + struct.pack(">2H", 9_000, 9_000) + progressive[frame + 9 :]
    yield "JPEG of many large scans", large[:-2] + last * 60 + large[-2:]
    plain = jpeg()
    yield "JPEG of comments", plain[:2] + segment(0xFE, b"") * 6_000 + plain[2:]
    gif = encode(PICTURE, "GIF")
    tables = gif[: 13 + (3 << (gif[10] & 7) + 1)]
    rest = gif[len(tables) :]
    yield "GIF of comments", tables + (b"\x21\xfe" + (b"\xff" + bytes(255)) * 5_000 + b"\0") + rest
    yield "GIF of extensions", tables + b"\x21\xfe\0" * 60_000 + rest
    tags = b"".join(struct.pack("<HHII", 60_000 + n, 1, 50_000, 8) for n in range(4_000))
    directory = struct.pack("<H", 4_000) + tags + bytes(4)
    yield "TIFF whose tags share their values", b"II*\0" + struct.pack("<I", 60_008) + bytes(60_000) + directory
    yield "text as pixels", b"P3 2000 2000 255\n" + b"0 " * 5_000_000
    yield "AVIF of hidden frames", hidden_frames()


def hidden_frames(count: int = 900) -> bytes:
    """An AVIF whose one picture has the same AV1 frame many times over."""
    whole = encode(np.full((900, 900, 3), 90, np.uint8), "AVIF")
    start = whole.index(b"mdat") + 4
    data = whole[start:]
    at = data.index(b"\x32")  # the frame, behind the sequence header
    longer = data + data[at:] * count
    size = struct.pack(">I", len(data))
    assert whole.count(size) == 1
    head = whole[: start - 8] + struct.pack(">I", len(longer) + 8) + b"mdat"
    return head.replace(size, struct.pack(">I", len(longer))) + longer


def odd_greys() -> Iterator[tuple[str, bytes]]:
    """Files that are `unsupported_format`."""
    half = np.full((SIDE, SIDE), 0.5, np.float32)
    yield "floating point", encode(half, "TIFF")
    yield "signed 16-bit TIFF", tiff(GREY.astype("<i2").tobytes(), 16, sample_format=2)
    yield "16-bit TIFF, white is zero, big-endian", tiff(GREY.astype(">u2").tobytes(), 16, ">", photometric=0)
    yield "HEIC", b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(100)
    yield "JPEG XL", b"\xff\x0a" + bytes(100)
