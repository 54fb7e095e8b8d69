"""What is kept of an image file: size, uprightness, colours, and a reason for every file that is none."""

import io
import json
import struct
import tarfile
import tracemalloc
import zlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngImageFile
from support.fetching import config
from support.shared_data import SHARED

from dedup.decode import decode_rgb
from dedup.image_files.exif import ORIENTATIONS
from dedup.image_files.jpeg import survey
from dedup.pdq import fingerprint
from pipeline.fetching.images import StoredImage, store_image
from pipeline.fetching.outcome import FetchFailure
from pipeline.records import RESIZE_REASONS, Reason

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin"),  # as the module itself does
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
]


def encode(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def gradient(width: int = 400, height: int = 300) -> Image.Image:
    """Red grows to the right, green downwards, blue is a soft pattern: every turn and mirroring shows."""
    y, x = np.mgrid[0:height, 0:width]
    blue = 127 + 60 * np.sin(x / 40) * np.cos(y / 30)
    return Image.fromarray(np.dstack([x * 255 / width, y * 255 / height, blue]).astype(np.uint8))


def pixels(stored: StoredImage) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(stored.file))).astype(int)


def reason_of(encoded: bytes, **changes: object) -> Reason:
    with pytest.raises(FetchFailure) as caught:
        store_image(encoded, config(**changes))
    return caught.value.reason


def store_or_reason(encoded: bytes, **changes: object) -> StoredImage | Reason:
    try:
        return store_image(encoded, config(**changes))
    except FetchFailure as failure:
        return failure.reason


FORMATS = [("JPEG", {"quality": 95}), ("PNG", {}), ("WEBP", {"quality": 95}), ("BMP", {}), ("TIFF", {}), ("AVIF", {})]


@pytest.mark.parametrize(("image_format", "options"), FORMATS)
def test_formats_of_the_web_are_kept_shrunk(image_format: str, options: dict[str, object]) -> None:
    image = gradient(600, 400)
    stored = store_image(encode(image, image_format, **options), config())
    expected = np.asarray(image.resize((384, 256), Image.Resampling.BOX)).astype(int)
    assert (stored.size, stored.original_size) == ((384, 256), (600, 400))
    assert np.abs(pixels(stored) - expected).mean() < 3


@given(width=st.integers(32, 700), height=st.integers(32, 700), is_jpeg=st.booleans())
def test_the_shorter_side_becomes_the_image_size_and_nothing_is_enlarged(
    width: int, height: int, is_jpeg: bool
) -> None:
    encoded = encode(Image.new("RGB", (width, height), "teal"), "JPEG" if is_jpeg else "PNG")
    stored = store_image(encoded, config(max_aspect_ratio=100.0))
    shorter = min(width, height)
    assert stored.original_size == (width, height)
    assert min(stored.size) == min(shorter, 256)
    scale = min(1.0, 256 / shorter)
    assert stored.size == (round(width * scale), round(height * scale))
    assert Image.open(io.BytesIO(stored.file)).size == stored.size


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_images_are_turned_upright(turn: int, image_format: str) -> None:
    upright = gradient()
    inverse = {5: 5, 6: 8, 7: 7, 8: 6}.get(turn, turn)
    lying = upright.transpose(ORIENTATIONS[inverse]) if turn != 1 else upright
    exif = Image.Exif()
    exif[0x0112] = turn
    stored = store_image(encode(lying, image_format, exif=exif, quality=95), config())
    assert (stored.size, stored.original_size) == ((341, 256), (400, 300))
    assert np.abs(pixels(stored) - np.asarray(upright.resize((341, 256)))).mean() < 4


def test_exif_is_kept_but_not_the_place() -> None:
    exif = Image.Exif()
    exif[0x0110] = "Camera \N{SNOWMAN} X"
    exif.get_ifd(0x8769)[0x829A] = 0.01
    exif.get_ifd(0x8825)[2] = (52.0, 30.0, 0.0)
    stored = store_image(encode(gradient(), "JPEG", exif=exif), config())
    tags = json.loads(stored.exif)
    assert tags["EXIF ExposureTime"] == "0.01"
    assert "Image Model" in tags
    assert "GPS" not in stored.exif
    assert b"Exif" not in stored.file
    assert store_image(encode(gradient(), "JPEG"), config()).exif == "{}"


def test_broken_exif_does_not_spoil_the_picture() -> None:
    encoded = encode(gradient(), "JPEG")
    for garbage in (b"", b"II*\0", b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff" + b"\xff" * 40):
        segment = b"Exif\0\0" + garbage
        broken = encoded[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + encoded[2:]
        assert store_image(broken, config()).size == (341, 256)


def test_transparency_becomes_white() -> None:
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 32, 64))
    palette = image.convert("RGB").quantize(4)
    palette.info["transparency"] = palette.getpixel((60, 30))
    for encoded in (encode(image), encode(image, "WEBP", lossless=True), encode(palette, transparency=1)):
        stored = pixels(store_image(encoded, config()))
        assert (stored[:, 48] > 245).all() or (stored[:, 16] > 245).all()


def test_grey_in_8_and_16_bits_and_two_colours() -> None:
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    grey = np.tile(ramp, (64, 1))
    wide = Image.fromarray(grey.astype(np.uint16) * 257)
    for image in (Image.fromarray(grey), wide):
        for image_format in ("PNG", "TIFF"):
            stored = pixels(store_image(encode(image, image_format), config()))
            assert np.abs(stored - grey[..., None]).mean() < 2
    stored = pixels(store_image(encode(Image.fromarray(grey).convert("1")), config()))
    assert stored.min() < 60
    assert stored.max() > 200


@pytest.mark.parametrize(("kind", "image_format"), [(np.uint16, "PNG"), (np.int32, "TIFF")])
def test_deep_grey_is_scaled_without_copies_of_its_pixels(kind: type, image_format: str) -> None:
    deep = np.arange(1500 * 1500).reshape(1500, 1500) % 65_536
    picture = encode(Image.fromarray(deep.astype(kind)), image_format)
    tracemalloc.start()
    stored = store_image(picture, config(image_size=1500))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 10 * deep.size
    assert abs(pixels(stored)[..., 0].astype(int) - (deep >> 8)).mean() < 4


def test_cmyk_jpegs_have_their_colours() -> None:
    stored = pixels(store_image(encode(Image.new("CMYK", (64, 64), (255, 0, 0, 0)), "JPEG"), config()))
    assert np.abs(stored.reshape(-1, 3).mean(axis=0) - [0, 255, 255]).max() < 12


def test_only_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    encoded = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.abs(pixels(store_image(encoded, config())).reshape(-1, 3).mean(axis=0) - [255, 0, 0]).max() < 10


def test_nothing_of_the_file_but_its_pixels_is_kept_and_the_result_is_the_same_again() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    plain = encode(gradient(), "JPEG", quality=90)
    marked = encode(gradient(), "JPEG", quality=90, comment=b"secret", icc_profile=profile) + b"appended"
    assert store_image(plain, config()).file == store_image(marked, config()).file
    assert store_image(plain, config()) == store_image(plain, config())


def test_the_fingerprint_is_that_of_the_picture() -> None:
    texture = np.random.default_rng(7).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    encoded = encode(Image.fromarray(texture).resize((640, 480), Image.Resampling.BICUBIC), "JPEG", quality=95)
    stored = store_image(encoded, config())
    reference = fingerprint(decode_rgb(encoded)).pdq
    assert (int.from_bytes(stored.pdq) ^ int.from_bytes(reference)).bit_count() <= 10
    assert 0 <= stored.pdq_quality <= 100


def png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(bytes(10_000)))


def test_bombs_are_found_in_the_header() -> None:
    assert reason_of(png_header(50_000, 50_000)) == Reason.TOO_MANY_PIXELS
    assert reason_of(png_header(12_000, 8_000)) == Reason.TOO_MANY_PIXELS
    jpeg = bytearray(encode(gradient(), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = b"\xff\xdc\xff\xdc"
    assert reason_of(bytes(jpeg)) == Reason.TOO_MANY_PIXELS


def test_exif_data_of_a_png_is_read_without_decoding_it(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = bytearray(png_header(12_000, 8_000))
    end_of_header = bomb.index(b"IDAT") - 4
    bomb[end_of_header:end_of_header] = png_chunk(b"tEXt", b"Comment\0eXIf")
    monkeypatch.setattr(PngImageFile, "load", lambda image: pytest.fail("decoded before its size was judged"))
    assert reason_of(bytes(bomb)) == Reason.TOO_MANY_PIXELS


def test_a_jpeg_of_endless_scans_is_not_decoded() -> None:
    progressive = encode(gradient(), "JPEG", progressive=True)
    assert store_image(progressive, config()).size == (341, 256)
    last = progressive[progressive.rindex(b"\xff\xda") : -2]
    assert reason_of(progressive[:-2] + last * 200 + progressive[-2:]) == Reason.BROKEN_IMAGE


def test_what_follows_the_end_of_a_jpeg_does_not_count_as_scans() -> None:
    stored = store_image(encode(gradient(), "JPEG"), config())
    with_film = encode(gradient(), "JPEG") + b"\xff\xda" * 200
    assert store_image(with_film, config()) == stored


def test_jpegs_that_take_passes_are_known() -> None:
    assert not survey(encode(gradient(), "JPEG")).takes_passes
    assert not survey(encode(gradient(), "JPEG", quality=100, restart_marker_blocks=1)).takes_passes
    assert survey(encode(gradient(), "JPEG", progressive=True)).takes_passes
    thumbnail = encode(gradient(32, 32), "JPEG", progressive=True)
    exif = Image.Exif()
    exif[0x9286] = thumbnail  # a picture within a segment
    assert not survey(encode(gradient(), "JPEG", exif=exif)).takes_passes


def test_sizes_that_are_not_wanted() -> None:
    assert reason_of(encode(gradient(31, 200))) == Reason.IMAGE_TOO_SMALL
    assert reason_of(encode(gradient(33, 200), "JPEG")) == Reason.ASPECT_RATIO
    with pytest.raises(FetchFailure) as caught:
        store_image(encode(gradient(33, 200)), config())
    assert caught.value.original_size == (33, 200)
    assert store_image(encode(gradient(40, 200)), config()).size == (40, 200)


NOT_IMAGES = {
    b"": Reason.NOT_AN_IMAGE,
    b"<!DOCTYPE html><html>": Reason.NOT_AN_IMAGE,
    b"%PDF-1.7": Reason.NOT_AN_IMAGE,
    b"GIF": Reason.NOT_AN_IMAGE,
    b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>': Reason.UNSUPPORTED_FORMAT,
    b"\0\0\0\x18ftypheic\0\0\0\0": Reason.UNSUPPORTED_FORMAT,
    b"\0\0\1\0\1\0\x10\x10": Reason.UNSUPPORTED_FORMAT,
    b"8BPS\0\1": Reason.UNSUPPORTED_FORMAT,
    b"\xff\xd8\xff": Reason.BROKEN_IMAGE,
    b"\x89PNG\r\n\x1a\n": Reason.BROKEN_IMAGE,
    b"GIF89a": Reason.BROKEN_IMAGE,
    b"BMxx": Reason.BROKEN_IMAGE,
    b"RIFF\0\0\0\0WEBPVP8 ": Reason.BROKEN_IMAGE,
    b"II*\0\xff\xff\xff\xff": Reason.BROKEN_IMAGE,
    b"\0\0\0\x18ftypavif\0\0\0\0": Reason.BROKEN_IMAGE,
}


@pytest.mark.parametrize("encoded", NOT_IMAGES, ids=repr)
def test_files_that_are_no_picture(encoded: bytes) -> None:
    assert reason_of(encoded) == NOT_IMAGES[encoded]


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
@given(data=st.data())
def test_damage_is_a_reason_never_a_crash(image_format: str, data: st.DataObject) -> None:
    encoded = bytearray(encode(gradient(80, 60), image_format))
    for position in data.draw(st.lists(st.integers(0, len(encoded) - 1), max_size=6)):
        encoded[position] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(encoded)))
    outcome = store_or_reason(bytes(encoded[:cut]), max_aspect_ratio=1e9, max_pixels=10_000_000)
    assert outcome in RESIZE_REASONS or pixels(outcome).ndim == 3


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "GIF", "BMP"])
def test_half_a_file_is_broken(image_format: str) -> None:
    encoded = encode(gradient(), image_format)
    assert reason_of(encoded[: len(encoded) // 2]) == Reason.BROKEN_IMAGE


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared test data")
def test_odd_and_broken_files_of_a_decoder_s_own_tests() -> None:
    reasons: Counter[Reason | None] = Counter()
    with tarfile.open(SHARED / "web" / "pillow_decoder_images_small.tar.gz") as tar:
        for member in (member for member in tar if member.isfile()):
            outcome = store_or_reason(tar.extractfile(member).read(), min_image_size=1)  # type: ignore[union-attr]
            reasons[outcome if isinstance(outcome, Reason) else None] += 1
    assert set(reasons) <= RESIZE_REASONS | {None}
    assert reasons[None] > 100


def test_what_no_jpeg_can_hold_has_a_reason():
    out = io.BytesIO()
    Image.new("L", (66_000, 1)).save(out, "PNG")
    with pytest.raises(FetchFailure) as refused:
        store_image(out.getvalue(), config(min_image_size=1, max_aspect_ratio=1e9))
    assert refused.value.reason == Reason.ASPECT_RATIO
