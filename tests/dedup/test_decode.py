"""One verdict and one upright picture for each image file, whoever asks; and what a small file may cost."""

import io
import mmap
import struct
import subprocess
import sys
import tarfile
from collections import Counter

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile
from support.fetching import config
from support.shared_data import SHARED
from support.torture_images import (
    GREY,
    PAGE,
    PICTURE,
    SIDE,
    damaged,
    dark_endings,
    encode,
    expensive,
    filled,
    good_colours,
    good_greys,
    grey_png,
    hidden_frames,
    jpeg,
    jpegs_in_tiffs,
    odd_greys,
    run_length_bmp,
    segment,
    tiff,
)

from dedup import decode
from dedup.decode import ImageDecodeError, decode_rgb
from dedup.eval_sets.index import _measure
from dedup.eval_sets.read import Example
from dedup.image_files import avif
from dedup.pdq import fingerprint_views
from pipeline.fetching.images import store_image
from pipeline.fetching.outcome import FetchFailure
from trainer.data import decode_crop
from trainer.errors import TrainerError

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's, about damaged files

COLOURS, GREYS, DAMAGED = dict(good_colours()), dict(good_greys()), dict(damaged())
EXPENSIVE, UNSUPPORTED = dict(expensive()), dict(odd_greys())


def verdict(encoded: bytes) -> np.ndarray | str:
    try:
        return decode_rgb(encoded)
    except ImageDecodeError as error:
        return error.failure


def verdict_of_the_fetcher(encoded: bytes) -> np.ndarray | str:
    try:
        return np.asarray(Image.open(io.BytesIO(store_image(encoded, config(image_size=SIDE)).file)))
    except FetchFailure as failure:
        return failure.reason.value


def verdict_of_the_trainer(encoded: bytes) -> np.ndarray | str:
    try:
        found = decode_crop(encoded, np.zeros(3), (1.0, 1.0), SIDE)
    except TrainerError as error:  # in one line, for the run that it ends
        raise error.__cause__ or error from None
    return found if isinstance(found, str) else found.pixels


def check_equal_verdicts(encoded: bytes) -> np.ndarray | str:
    """Return the verdict that the decoder, the fetcher, the index and the trainer share."""
    ours = verdict(encoded)
    fetched, trained = verdict_of_the_fetcher(encoded), verdict_of_the_trainer(encoded)
    row = _measure(None, Example("x", None, encoded)).row
    if isinstance(ours, str):
        assert (fetched, trained, row["reason"]) == (ours, ours, ours)
        return ours
    assert row["reason"] is None
    assert row["views"] == b"".join(pdq for _, pdq in fingerprint_views(ours))
    assert np.array_equal(trained, ours)
    assert np.abs(fetched.astype(int) - ours).mean() < 3  # it is a JPEG
    return ours


@pytest.mark.parametrize("name", COLOURS)
def test_pictures_are_upright_and_whole_for_all(name: str) -> None:
    found = check_equal_verdicts(COLOURS[name])
    assert not isinstance(found, str), found
    assert found.shape == PICTURE.shape
    assert np.abs(found.astype(int) - PICTURE).mean() < 8


@pytest.mark.parametrize("name", GREYS)
def test_greys_have_their_brightness_for_all(name: str) -> None:
    found = check_equal_verdicts(GREYS[name])
    assert not isinstance(found, str), found
    assert np.abs(found.astype(int) - GREY[..., None]).mean() < 2
    assert np.array_equal(found[..., 0], found[..., 2])


@pytest.mark.parametrize("name", DAMAGED)
def test_cut_and_damaged_files_are_broken_for_all(name: str) -> None:
    assert check_equal_verdicts(DAMAGED[name]) == "broken_image"


def test_files_that_were_cut_and_filled_up_are_broken() -> None:
    kept = [name for name, encoded in filled() if not isinstance(verdict(encoded), str)]
    assert not kept


@pytest.mark.parametrize("file_format", ["BMP", "PPM", "TIFF"])
def test_pictures_that_end_dark_or_look_like_letters_are_whole(file_format: str) -> None:
    """Also as grey, with a palette and in many strips: a row that ends early is no cut."""
    for name, picture in dark_endings():
        for mode in ("RGB", "L", "P"):
            if (file_format, mode) == ("PPM", "P"):
                continue
            image = picture.quantize(60) if mode == "P" else picture.convert(mode)
            for options in ({}, {"tiffinfo": {278: 7}}) if file_format == "TIFF" else ({},):
                found = verdict(encode(image, file_format, **options))
                assert not isinstance(found, str), (name, mode)
                assert np.array_equal(found, np.asarray(image.convert("RGB"))), (name, mode)


def test_a_page_or_zeros_behind_whole_pixels_are_no_damage() -> None:
    for whole in (encode(PICTURE, "BMP"), encode(PICTURE, "PPM"), run_length_bmp(), tiff(GREY.tobytes(), 8)):
        for more in (PAGE * 9, bytes(5_000)):
            assert np.array_equal(verdict(whole + more), verdict(whole))
    described = encode(PICTURE, "TIFF", tiffinfo={270: PAGE.decode() * 9}, compression="tiff_lzw")
    assert not isinstance(verdict(described), str)


def test_jpeg_data_in_a_tiff_may_lack_its_end_marker() -> None:
    for _, whole in jpegs_in_tiffs():
        assert not isinstance(verdict(whole), str)
    found, expected = verdict(tiff(jpeg(GREY)[:-2], 8, compression=7)), verdict(tiff(jpeg(GREY), 8, compression=7))
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "group4"])
@pytest.mark.parametrize("filling", [b"\0", PAGE])
def test_a_compressed_tiff_that_was_cut_and_filled_up_never_shows_other_pixels(
    compression: str, filling: bytes
) -> None:
    mode = "1" if compression == "group4" else "RGB"
    whole = encode(Image.fromarray(PICTURE).convert(mode), "TIFF", compression=compression)
    expected = verdict(whole)
    assert not isinstance(expected, str)
    for lost in (13, 40, 111, 400, len(whole) // 3, len(whole) // 2):
        found = verdict(whole[:-lost] + (filling * lost)[:lost])
        assert isinstance(found, str) or np.array_equal(found, expected)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_pictures_without_a_meaning_are_unsupported_for_all(name: str) -> None:
    assert check_equal_verdicts(UNSUPPORTED[name]) == "unsupported_format"


@pytest.mark.parametrize("name", EXPENSIVE)
def test_expensive_files_are_refused_before_a_pixel_is_decoded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        pytest.fail("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", refuse)
    assert check_equal_verdicts(EXPENSIVE[name]) in ("broken_image", "too_many_pixels")


@pytest.mark.parametrize("encoded", [b"<html></html>", b"P6 is a paper size", b"GIF", b"RIFF\0\0\0\0WAVE"], ids=repr)
def test_what_is_no_image_is_none_for_all(encoded: bytes) -> None:
    assert check_equal_verdicts(encoded) == "not_an_image"


def test_a_huge_header_is_too_many_pixels_for_all() -> None:
    whole = jpeg()
    frame = whole.index(b"\xff\xc0")
    assert check_equal_verdicts(whole[: frame + 5] + struct.pack(">2H", 9_500, 9_500) + whole[frame + 9 :]) == (
        "too_many_pixels"
    )


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_grey_is_white_at_every_depth(depth: int) -> None:
    most = (1 << depth) - 1
    values = np.tile(np.arange(64) % (most + 1) if depth < 16 else np.arange(64) * 1000, (SIDE, 4))[:, :SIDE]
    hidden = int(values[0, 1])
    found = check_equal_verdicts(grey_png(values, depth, hidden))
    assert not isinstance(found, str)
    expected = np.where(values == hidden, 255, values >> 8 if depth == 16 else values * 255 // most)
    assert np.array_equal(found[..., 0], expected)


def test_a_transparent_colour_of_16_bits_is_white() -> None:
    values = np.zeros((SIDE, SIDE, 3), np.uint16)
    values[:, 60:] = 0x4321
    found = decode_rgb(grey_png(values, 16, 0x4321, colour=2))
    assert (found[:, 60:] == 255).all()
    assert (found[:, :60] == 0).all()


@pytest.mark.parametrize("side", [16, 500, 2_000])
@pytest.mark.parametrize(
    ("file_format", "options"), [("WEBP", {}), ("WEBP", {"lossless": True}), ("AVIF", {}), ("JPEG", {})]
)
def test_flat_pictures_are_whole_though_their_data_is_nearly_zero(
    side: int, file_format: str, options: dict[str, object]
) -> None:
    for colour in ("black", "white", "teal"):
        encoded = encode(Image.new("RGB", (side, side), colour), file_format, **options)
        assert decode_rgb(encoded).shape == (side, side, 3)


def test_text_behind_the_pixels_of_webp_and_avif_is_no_damage() -> None:
    text = b"<x:xmpmeta>" + b" " * 2_000 + b"</x:xmpmeta>"
    for file_format in ("WEBP", "AVIF"):
        assert decode_rgb(encode(PICTURE, file_format, xmp=text)).shape == PICTURE.shape


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
@pytest.mark.parametrize("size", [(300, 200), (33, 47), (4096, 16)])
@pytest.mark.parametrize("options", [{}, {"quality": 100, "subsampling": "4:4:4"}, {"speed": 10}], ids=repr)
def test_the_frames_of_an_avif_are_counted_by_their_own_headers(
    mode: str, size: tuple[int, int], options: dict[str, object]
) -> None:
    encoded = encode(Image.new(mode, size), "AVIF", **options)
    assert avif.decoded_pixels(encoded) == size[0] * size[1] * (2 if mode == "RGBA" else 1)
    frames = [Image.new(mode, size, colour) for colour in ("black", "white")]
    animated = encode(frames[0], "AVIF", save_all=True, append_images=frames[1:])
    assert avif.decoded_pixels(animated) % (size[0] * size[1]) == 0
    assert decode_rgb(animated).shape[:2] == size[::-1]


def test_hidden_frames_of_an_avif_count() -> None:
    assert avif.decoded_pixels(hidden_frames(10)) == 11 * 900 * 900
    assert verdict(hidden_frames(0)).shape == (900, 900, 3)  # type: ignore[union-attr]


@given(position=st.integers(0, 10_000), noise=st.binary(max_size=40), cut=st.integers(0, 10_000))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "PPM"])
def test_damage_is_a_picture_or_a_failure(file_format: str, position: int, noise: bytes, cut: int) -> None:
    whole = encode(PICTURE[:60, :60], file_format)
    at = position % len(whole)
    encoded = whole[:at] + noise + whole[at + len(noise) :]
    found = verdict(encoded[: len(encoded) - cut % len(encoded)])
    assert isinstance(found, str) or found.shape[2] == 3


@given(cut=st.integers(0, 10_000), end=st.sampled_from([b"", b"\xff\xd9", bytes(5_000), b"<p>Time out</p>" * 300]))
@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}, {"optimize": True}], ids=repr
)
def test_no_jpeg_that_lost_pixels_is_whole(options: dict[str, object], cut: int, end: bytes) -> None:
    """A cut through the coded pixels of noise is noticed, wherever it is and whatever follows it."""
    noise = np.random.default_rng(5).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    whole = jpeg(noise, **options)
    lost = 300 + cut % (len(whole) - whole.index(b"\xff\xda") - 320)
    # Zeros after a cut in a progressive scan are, at a few places, a valid end of it: they cannot be noticed.
    endings = [ending for ending in (end, bytes(lost)) if "progressive" not in options or any(ending) or not ending]
    for ending in endings:
        assert isinstance(verdict(whole[:-lost] + ending), str)


class _TooLittle:
    """Stands in for a machine without memory: every request for it fails."""

    def __init__(self, *_: object) -> None:
        raise OSError(12, "Cannot allocate memory")


@pytest.mark.parametrize("consumer", [decode_rgb, verdict_of_the_fetcher, verdict_of_the_trainer, verdict])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "GIF"])
def test_a_decoder_without_memory_says_nothing_about_the_image(
    consumer: object, file_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("broken data stream when reading image file")

    encoded = encode(PICTURE, file_format)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", fail)
    monkeypatch.setattr(Image, "open", fail)
    assert verdict(encoded) == "broken_image"
    monkeypatch.setattr(mmap, "mmap", _TooLittle)
    with pytest.raises(MemoryError):
        consumer(encoded)  # type: ignore[operator]


@pytest.mark.parametrize(
    "error",
    [MemoryError(), ValueError("Memory allocation failure"), OSError("out of memory when reading image file")],
    ids=repr,
)
def test_a_decoder_that_says_it_lacks_memory_is_asked_again(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """A malformed file can make it want any amount; other images may have had it, or the machine has none."""
    decode_jpeg, whole, tries = simplejpeg.decode_jpeg, decode_rgb(jpeg()), [0]

    def fail(*options: object) -> np.ndarray:
        tries[0] += 1
        if tries[0] <= failures:
            raise error
        return decode_jpeg(*options)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", fail)
    failures = 1
    assert np.array_equal(verdict(jpeg()), whole)
    failures = 9
    assert verdict(jpeg()) == "broken_image"
    monkeypatch.setattr(mmap, "mmap", _TooLittle)
    for consumer in (verdict, verdict_of_the_fetcher, verdict_of_the_trainer):
        with pytest.raises(MemoryError):
            consumer(jpeg())
    with pytest.raises(MemoryError):
        _measure(None, Example("x", None, jpeg()))


def test_shrinking_without_memory_is_no_fault_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        error = cv2.error("Failed to allocate 196608 bytes")
        error.code = cv2.Error.StsNoMem
        raise error

    monkeypatch.setattr(cv2, "resize", fail)
    with pytest.raises(MemoryError):
        store_image(jpeg(), config(image_size=100))


SHORT_OF_MEMORY = """
import io, resource, sys
from pathlib import Path
from PIL import Image
from dedup.decode import decode_rgb
stream = io.BytesIO()
Image.new("RGB", (5_000, 5_000)).save(stream, sys.argv[1], **({"progressive": True} if sys.argv[1] == "JPEG" else {}))
pages = int(Path("/proc/self/statm").read_text().split()[0])
limits = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (20 << 20), limits[1]))
try:
    decode_rgb(stream.getvalue())
except MemoryError:
    resource.setrlimit(resource.RLIMIT_AS, limits)
    print("no memory, then", decode_rgb(stream.getvalue()).shape)
"""


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_a_machine_that_is_really_short_of_memory_books_no_broken_image(file_format: str) -> None:
    command = [sys.executable, "-c", SHORT_OF_MEMORY, file_format]  # a new process has no freed memory to reuse
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("no memory, then (5000, 5000, 3)\n", "")


def test_exif_data_whose_tags_share_their_values_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = b"".join(struct.pack("<HHII", 40_000 + n, 7, 50_000, 8) for n in range(600))
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 600) + entries + bytes(50_000)
    whole = jpeg()
    monkeypatch.setattr(Image.Exif, "load", lambda *_: pytest.fail("read"))
    assert decode_rgb(whole[:2] + segment(0xE1, exif) + whole[2:]).shape == PICTURE.shape


def test_large_images_are_decoded_one_at_a_time() -> None:
    large = decode.read_header(encode(Image.new("1", (5_000, 4_000)), "PNG"))
    with decode._one_large_image:
        assert decode_rgb(jpeg()).shape == PICTURE.shape  # a small one does not wait
    assert decode.decode_pixels(large).size == (5_000, 4_000)  # type: ignore[union-attr]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared test data")
def test_the_odd_files_of_another_decoder_have_one_verdict() -> None:
    failures = Counter[str]()
    with tarfile.open(SHARED / "web" / "pillow_decoder_images_small.tar.gz") as tar:
        for member in (member for member in tar if member.isfile()):
            encoded = tar.extractfile(member).read()  # type: ignore[union-attr]
            ours = verdict(encoded)
            row = _measure(None, Example("x", None, encoded)).row
            trained = decode_crop(encoded, np.zeros(3), (1.0, 1.0), 8)
            trained = trained if isinstance(trained, str) else None
            assert row["reason"] == trained == (ours if isinstance(ours, str) else None), member.name
            assert _verdict_on_any_size(encoded) == (ours if isinstance(ours, str) else ours.shape[1::-1]), member.name
            failures[ours if isinstance(ours, str) else "kept"] += 1
    assert failures["kept"] > 100


def _verdict_on_any_size(encoded: bytes) -> str | tuple[int, int]:
    try:
        return store_image(encoded, config(min_image_size=1, max_aspect_ratio=1e9)).original_size
    except FetchFailure as failure:
        return failure.reason.value
