"""Image files that decoders disagree about, made here: each with what it shows, or why it is none.

All show `PICTURE`, red, green, blue and white quarters on a soft pattern, or are refused; greys show its luma.
"""

import io
import itertools
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


def tiff(
    pixels: bytes, bits: int, order: str = "<", *, photometric: int = 1, sample_format: int = 1, compression: int = 1
) -> bytes:
    """A grey TIFF of one strip behind its directory."""
    tags = [
        (256, 3, SIDE), (257, 3, SIDE), (258, 3, bits), (259, 3, compression), (262, 3, photometric),
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


def exif_data(turn: int, order: str = "<", kind: int = 3, count: int = 1) -> bytes:
    """EXIF data, as a TIFF structure, of an orientation only."""
    value = struct.pack(f"{order}HH" if kind == 3 else f"{order}I", *((turn, 0) if kind == 3 else (turn,)))
    head = b"II*\0" if order == "<" else b"MM\0*"
    return head + struct.pack(f"{order}IHHHI", 8, 1, 0x0112, kind, count) + value + bytes(4)


def png_with_exif(image: Image.Image, *chunks: bytes) -> bytes:
    """A PNG with these eXIf chunks."""
    whole = encode(image, "PNG")
    return whole[:33] + b"".join(png_chunk(b"eXIf", chunk) for chunk in chunks) + whole[33:]


def _jpeg_with_exif(image: Image.Image, *segments: bytes) -> bytes:
    whole = encode(image, "JPEG", quality=95)
    return whole[:2] + b"".join(segment(0xE1, content) for content in segments) + whole[2:]


def _webp_with_exif(image: Image.Image, content: bytes) -> bytes:
    """A WebP whose EXIF chunk has this content; Pillow removes one prefix."""
    return encode(image, "WEBP", quality=95, exif=b"Exif\0\0" + content)


def _odd_exif() -> Iterator[tuple[str, bytes]]:
    """EXIF data as it should not be written, as libpng, Blink (exif_reader.cc) and Gecko (EXIF.cpp) read it."""
    upright, lying_6, prefix = lying(1), lying(6), b"Exif\0\0"
    for order in "<>":
        turn_6, turn_3 = exif_data(6, order), exif_data(3, order)
        yield f"JPEG, a prefix too many {order}", _jpeg_with_exif(upright, prefix * 2 + turn_6)
        yield f"PNG, a prefix {order}", png_with_exif(upright, prefix + turn_6)
        yield f"WebP, a prefix {order}", _webp_with_exif(lying_6, prefix + turn_6)
        yield f"WebP, a prefix too many {order}", _webp_with_exif(upright, prefix * 2 + turn_6)
        yield f"PNG, two chunks {order}", png_with_exif(lying_6, turn_6, turn_3)
        yield f"PNG, the first chunk unreadable {order}", png_with_exif(lying_6, prefix + turn_3, turn_6)
        yield f"JPEG, two segments {order}", _jpeg_with_exif(lying_6, prefix + turn_6, prefix + turn_3)
        yield (
            f"JPEG, the first segment unreadable {order}",
            _jpeg_with_exif(lying_6, prefix * 2 + turn_3, prefix + turn_6),
        )
        for name, other in (("of 32 bits", exif_data(6, order, kind=4)), ("twice", exif_data(6, order, count=2))):
            yield f"JPEG, a turn {name} {order}", _jpeg_with_exif(upright, prefix + other)
            yield f"PNG, a turn {name} {order}", png_with_exif(upright, other)
        cut = turn_6[:20]  # within the value of the tag
        yield f"JPEG, a cut directory {order}", _jpeg_with_exif(lying_6, prefix + cut)
        yield f"PNG, a cut directory {order}", png_with_exif(lying_6, cut)
    whole = encode(upright, "PNG")
    yield "PNG, the chunk behind the pixels", whole[:-12] + png_chunk(b"eXIf", exif_data(6)) + whole[-12:]


def _twelve_bits(grey: np.ndarray) -> bytes:
    wide = grey.astype(np.uint16).reshape(-1, 2) << 4
    return (
        np.stack([wide[:, 0] >> 4, (wide[:, 0] & 15) << 4 | wide[:, 1] >> 8, wide[:, 1] & 255], 1)
        .astype(np.uint8)
        .tobytes()
    )


def _boxes_last(avif: bytes) -> bytes:
    """Move the box of the properties behind that of the pixels, and those 200 kB from the start."""
    at = avif.index(b"meta") - 4
    (size,) = struct.unpack_from(">I", avif, at)
    head, meta, pixels = avif[:at], avif[at : at + size], avif[at + size :]
    free = struct.pack(">I", 200_000) + b"free" + bytes(199_992)
    shift = len(free) - len(meta)
    changed = bytearray(meta)
    start = head + meta + pixels
    count_at = meta.index(b"iloc") + 4
    sizes, items = meta[count_at + 4 : count_at + 6], struct.unpack_from(">H", meta, count_at + 6)[0]
    assert sizes[:1] == b"\x44", start[:4]
    assert not sizes[1]
    entry = count_at + 8
    for _ in range(items):
        (offset,) = struct.unpack_from(">I", meta, entry + 6)
        struct.pack_into(">I", changed, entry + 6, offset + shift)
        entry += 14
    return head + free + pixels + bytes(changed)


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
    yield from _odd_exif()
    for file_format in ("JPEG", "PNG", "WEBP", "AVIF"):
        yield f"{file_format} XMP", encode(PICTURE, file_format, xmp=XMP_TURN * 3, quality=95)
    yield "AVIF turned 6, its boxes behind the pixels", _boxes_last(encode(lying(6), "AVIF", exif=orientation_tag(6)))
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


PAGE = b"""<html>\r
<head><title>504 Gateway Time-out</title></head>\r
<body>\r
<center><h1>504 Gateway Time-out</h1></center>\r
<hr><center>nginx</center>\r
</body>\r
</html>\r
"""
PROSE = b"upstream connect error or disconnect/reset before headers. reset reason: connection failure\n"
_FILLINGS = {
    "zeros": b"\0",
    "a page": PAGE,
    "a page in French": "<!DOCTYPE html><title>Délai dépassé</title><p>Le serveur n’a pas répondu.</p>\n".encode(),
    "prose": PROSE,
    "json": b'{"error": "timeout"}',
    "xml": b'<?xml version="1.0"?><Error><Code>SlowDown</Code></Error>',
}


def stored() -> Iterator[tuple[str, bytes, int, int]]:
    """Files whose pixels are stored as they are, with the start of their pixels and the bytes of a row."""
    row, grey_row = 3 * SIDE, SIDE
    bmp = encode(PICTURE, "BMP")
    yield "BMP", bmp, 54, row
    yield "BMP, top row first", bmp[:22] + struct.pack("<i", -SIDE) + bmp[26:], 54, row
    opaque = Image.fromarray(PICTURE).convert("RGBA")
    yield "32-bit BMP", (whole := encode(opaque, "BMP")), len(whole) - SIDE * 4 * SIDE, 4 * SIDE
    palette = Image.fromarray(GREY // 2 + 20)
    palette.putpalette([value for index in range(256) for value in (index, 255 - index, 9)])
    yield "8-bit BMP", (whole := encode(palette, "BMP")), len(whole) - SIDE * SIDE, grey_row
    yield "PPM", (whole := encode(PICTURE, "PPM")), len(whole) - SIDE * row, row
    yield "PGM", (whole := encode(GREY, "PPM")), len(whole) - SIDE * grey_row, grey_row
    wide = GREY.astype(np.uint16) * 257
    head = b"P5 %d %d 65535\n" % (SIDE, SIDE)
    yield "16-bit PGM", head + wide.astype(">u2").tobytes(), len(head), 2 * grey_row
    head = b"P6 %d %d 100\n" % (SIDE, SIDE)
    yield "PPM of 100 levels", head + (PICTURE // 3 + 10).tobytes(), len(head), row
    yield "TIFF", (whole := encode(PICTURE, "TIFF")), len(whole) - SIDE * row, row
    whole = encode(PICTURE, "TIFF", tiffinfo={278: 8})
    yield "TIFF of many strips", whole, len(whole) - SIDE * row, row
    for order in "<>":
        whole = tiff(GREY.tobytes(), 8, order)
        yield f"grey TIFF {order}", whole, len(whole) - SIDE * grey_row, grey_row
        whole = tiff(wide.astype(f"{order}u2").tobytes(), 16, order)
        yield f"16-bit TIFF {order}", whole, len(whole) - 2 * SIDE * grey_row, 2 * grey_row


def filled() -> Iterator[tuple[str, bytes]]:
    """Files that were cut within a row, and filled up to their length: `broken_image`."""
    for name, whole, start, row_bytes in stored():
        for row in (1, SIDE // 2, SIDE - 1):
            for share in (0.1, 0.5, 0.8):
                cut = start + row * row_bytes + int(share * row_bytes)
                rest = len(whole) - cut
                for filling, unit in _FILLINGS.items():
                    yield f"{name} cut in row {row} at {share}, {filling}", whole[:cut] + (unit * rest)[:rest]
                yield f"{name} cut in row {row} at {share}, a page and more", whole[:cut] + PAGE * (rest // 50 + 1)
    for name, whole in jpegs_in_tiffs():
        for lost in (12, 20, 30, 40, 300):
            for filling in (bytes(lost), (PAGE * 2)[:lost], bytes(5_000), PAGE * 20):
                yield f"{name} without {lost} bytes, {filling[:8]!r} x {len(filling)}", whole[:-lost] + filling
    runs = run_length_bmp()
    for cut in (2_000, len(runs) // 2, len(runs) - 400):
        yield f"run-length BMP cut at {cut}, a page", runs[:cut] + PAGE * 500


def jpegs_in_tiffs() -> Iterator[tuple[str, bytes]]:
    """TIFF files with JPEG data: at the end of the file, and before the directory, as libtiff writes it."""
    yield "JPEG in a TIFF", tiff(jpeg(GREY), 8, compression=7)
    yield "JPEG in a TIFF >", tiff(jpeg(GREY), 8, ">", compression=7)
    yield "grey JPEG in a TIFF by libtiff", encode(GREY, "TIFF", compression="jpeg", quality=95)
    yield "JPEG in a TIFF by libtiff", encode(PICTURE, "TIFF", compression="jpeg", quality=95)


def run_length_bmp() -> bytes:
    """An 8-bit BMP of runs, of GREY in 32 levels."""
    levels = GREY // 8
    lines = list[bytes]()
    for row in levels[::-1]:
        edges = [0, *(np.flatnonzero(np.diff(row)) + 1).tolist(), SIDE]
        runs = [(end - start, int(row[start])) for start, end in itertools.pairwise(edges)]
        lines.append(b"".join(bytes([count, value]) for count, value in runs) + b"\0\0")
    pixels = b"".join(lines) + b"\0\1"
    palette = b"".join(bytes([level * 8 + 4] * 3 + [0]) for level in range(32))
    start = 14 + 40 + len(palette)
    head = b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start)
    return head + struct.pack("<IiiHHIIiiII", 40, SIDE, SIDE, 1, 8, 1, len(pixels), 0, 0, 32, 0) + palette + pixels


def dark_endings() -> Iterator[tuple[str, Image.Image]]:
    """Whole pictures that are black at their end, or whose values are those of letters."""
    picture, black = Image.fromarray(PICTURE), Image.new("RGB", (SIDE, SIDE))
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    shapes = {
        "bars": abs(y - SIDE // 2) < 80,
        "bars on all sides": (abs(y - SIDE // 2) < 80) & (abs(x - SIDE // 2) < 80),
        "circle": (y - 120) ** 2 + (x - 120) ** 2 < 90**2,
        "slanted": abs(y - 120 + (x - 120) / 60) < 100,
        "very slanted": abs(y - 120 + (x - 120) / 3) < 60,
        "triangle": y + x < 300,
        "black corner": ~((y > 150) & (x > 120)),
        "black end of the last row": ~((y == SIDE - 1) & (x > SIDE - 5)),
    }
    for name, shape in shapes.items():
        mask = Image.fromarray((shape * 255).astype(np.uint8))
        for turned, method in (("", None), (", upside down", Image.Transpose.ROTATE_180)):
            whole = Image.composite(picture, black, mask)
            yield f"{name}{turned}", whole if method is None else whole.transpose(method)
    for low, high in ((32, 126), (97, 122), (60, 110)):
        yield f"values of {low} to {high}", picture.point(lambda v, low=low, high=high: low + v * (high - low) // 255)


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
