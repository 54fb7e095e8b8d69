"""`fetch.resize` and `fetch.format`: img2dataset's sizes, the same pixels, and files that stay as they are."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.fetching import config
from support.recorded_web import picture

from dedup.decode import decode_rgb, file_suffix
from dedup.pdq import PDQ_BITS
from pipeline.config import ConfigError, load_config
from pipeline.fetching.images import StoredImage, store_image
from pipeline.fetching.outcome import FetchFailure
from pipeline.records import Reason

MODES = ("shorter_side", "longer_side", "center_crop", "pad", "none")
SIZE = 64


def encode(rgb: np.ndarray, image_format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, image_format, **options)
    return file.getvalue()


def waves(width: int, height: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.dstack([x * 255 / width, y * 255 / height, 127 + 99 * np.sin(x / 9) * np.cos(y / 7)]).astype(np.uint8)


def store(encoded: bytes, resize: str, image_format: str = "png", **changes: object) -> StoredImage:
    limits = {"max_aspect_ratio": 100.0, "image_size": SIZE, "min_image_size": 1}
    return store_image(encoded, config(**(limits | {"resize": resize, "format": image_format} | changes)))


def size_of_img2dataset(width: int, height: int, mode: str) -> tuple[int, int]:
    """Return the size that img2dataset's resizer gives an image, with `resize_only_if_bigger`."""
    side = min(width, height) if mode in ("shorter_side", "center_crop") else max(width, height)
    if mode == "none" or side <= SIZE:
        return width, height
    if mode in ("center_crop", "pad"):
        return SIZE, SIZE
    return round(width * SIZE / side), round(height * SIZE / side)


@given(width=st.integers(3, 220), height=st.integers(3, 220), mode=st.sampled_from(MODES))
def test_sizes_are_those_of_img2dataset(width: int, height: int, mode: str) -> None:
    stored = store(encode(waves(width, height)), mode)
    expected = size_of_img2dataset(width, height, mode)
    assert stored.original_size == (width, height)
    assert stored.size == Image.open(io.BytesIO(stored.file)).size
    assert stored.size == tuple(max(1, side) for side in expected)


@pytest.mark.parametrize(("width", "height"), [(200, 130), (90, 301), (64, 64), (65, 64), (40, 30), (129, 64)])
def test_a_crop_is_the_middle_and_padding_is_white(width: int, height: int) -> None:
    encoded = encode(waves(width, height))
    whole = {mode: decode_rgb(store(encoded, mode).file) for mode in MODES}
    shorter, cropped = whole["shorter_side"], whole["center_crop"]
    top, left = ((one - two) // 2 for one, two in zip(shorter.shape, cropped.shape[:2], strict=False))
    assert np.array_equal(cropped, shorter[top : top + cropped.shape[0], left : left + cropped.shape[1]])
    longer, padded = whole["longer_side"], whole["pad"]
    top, left = ((two - one) // 2 for one, two in zip(longer.shape, padded.shape[:2], strict=False))
    inner = (slice(top, top + longer.shape[0]), slice(left, left + longer.shape[1]))
    assert np.array_equal(padded[inner], longer)
    outer = np.ones(padded.shape[:2], bool)
    outer[inner] = False
    assert (padded[outer] == 255).all()
    assert np.array_equal(whole["none"], waves(width, height))


def test_the_fingerprint_is_of_the_whole_image_in_every_form() -> None:
    photo = picture(5, (400, 250), 95)
    looks = {
        (mode, kind): int.from_bytes(store(photo, mode, kind, image_size=128).pdq)
        for mode in MODES
        for kind in ("jpg", "png", "webp")
    }
    looks["none", "original"] = int.from_bytes(store(photo, "none", "original", image_size=128).pdq)
    assert looks["shorter_side", "jpg"] == looks["center_crop", "webp"] == looks["none", "original"]
    assert looks["longer_side", "jpg"] == looks["pad", "png"]
    assert max((a ^ b).bit_count() for a in looks.values() for b in looks.values()) <= PDQ_BITS // 32


def test_quality_is_that_of_webp_too_and_png_loses_nothing() -> None:
    photo = picture(7, (300, 200))
    sizes = [len(store(photo, "none", "webp", jpeg_quality=quality).file) for quality in (40, 70, 95)]
    assert sizes == sorted(sizes)
    assert np.array_equal(decode_rgb(store(photo, "none", "png").file), decode_rgb(photo))
    for kind, image_format in (("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP")):
        stored = store(photo, "shorter_side", kind)
        assert Image.open(io.BytesIO(stored.file)).format == image_format
        assert file_suffix(stored.file) == kind
        assert stored == store(photo, "shorter_side", kind)


SUFFIXES = {
    "JPEG": "jpg",
    "PNG": "png",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tif",
    "AVIF": "avif",
    "PPM": "ppm",
}


@pytest.mark.parametrize(("image_format", "suffix"), SUFFIXES.items())
def test_an_original_stays_as_it_is(image_format: str, suffix: str) -> None:
    encoded = encode(waves(150, 90), image_format)
    stored = store(encoded, "none", "original")
    assert stored.file == encoded
    assert stored.size == stored.original_size == (150, 90)
    assert file_suffix(stored.file) == suffix


def test_an_original_keeps_its_metadata_and_is_counted_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    encoded = encode(waves(150, 90), "JPEG", exif=exif)
    stored = store(encoded, "none", "original")
    assert (stored.file, stored.size) == (encoded, (90, 150))
    assert decode_rgb(stored.file).shape == (150, 90, 3)


def test_an_original_is_checked_like_any_other() -> None:
    photo = picture(3, (500, 400), 95)
    for broken in (photo[: len(photo) // 2], photo[:-2000] + bytes(2000), b"<html>", b""):
        reasons = []
        for mode, kind in (("shorter_side", "jpg"), ("none", "original")):
            with pytest.raises(FetchFailure) as caught:
                store(broken, mode, kind)
            reasons.append(caught.value.reason)
        assert reasons[0] == reasons[1]


def test_what_a_format_cannot_hold_has_a_reason() -> None:
    long = encode(np.zeros((20, 16_384, 3), np.uint8), "PNG")
    with pytest.raises(FetchFailure) as caught:
        store(long, "none", "webp", max_aspect_ratio=1_000.0)
    assert caught.value.reason == Reason.TOO_MANY_PIXELS
    assert store(long, "none", "png", max_aspect_ratio=1_000.0).size == (16_384, 20)
    assert store(long, "longer_side", "webp", max_aspect_ratio=1_000.0).size == (SIZE, 1)
    noise = encode(np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8), "JPEG", quality=50)
    with pytest.raises(FetchFailure) as caught:
        store(noise, "none", "png", max_bytes=len(noise))
    assert caught.value.reason == Reason.TOO_LARGE


SMALLEST = """
workspace = "work"
[allowlist]
path = "queries.parquet"
[[sources]]
kind = "url-table"
paths = ["urls.parquet"]
[fetch]
"""


def test_the_default_is_what_it_was(tmp_path) -> None:
    (tmp_path / "wit.toml").write_text(SMALLEST)
    (tmp_path / "same.toml").write_text(SMALLEST + 'resize = "shorter_side"\nformat = "jpg"')
    (tmp_path / "other.toml").write_text(SMALLEST + 'format = "webp"')
    plain, same, other = (load_config(tmp_path / f"{name}.toml") for name in ("wit", "same", "other"))
    assert plain.fetch.content() == same.fetch.content() != other.fetch.content()
    assert plain.recipe() == same.recipe() != other.recipe()
    assert {"resize", "format"}.isdisjoint(plain.fetch.content())


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('format = "original"', 'set resize = "none" too'),
        ('format = "original"\nresize = "pad"', 'set resize = "none" too'),
        ('resize = "border"', 'the name of this mode is "pad" here'),
        ('resize = "keep_ratio"', 'the name of this mode is "shorter_side" here'),
        ('resize = "no"', 'the name of this mode is "none" here'),
        ('resize = "stretch"', "shorter_side"),
        ('format = "jpeg"', "jpg"),
    ],
)
def test_wrong_values_are_one_line(tmp_path, lines: str, words: str) -> None:
    (tmp_path / "wit.toml").write_text(SMALLEST + lines)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "wit.toml")
    assert "\n" not in str(caught.value)
    assert words in str(caught.value)
    assert "fetch" in str(caught.value)
