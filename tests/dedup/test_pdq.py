import contextlib
import csv
import io
import struct
import tarfile
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pdqhash
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from support.shared_data import SHARED

from dedup import pdq
from dedup.decode import ImageDecodeError, decode_rgb
from dedup.pdq import VIEWS, Fingerprint, fingerprint, fingerprint_views

VECTORS = SHARED / "hashes" / "pdq_vectors.tar"


def distance(a: bytes, b: bytes) -> int:
    return int(np.bitwise_count(np.frombuffer(a, np.uint8) ^ np.frombuffer(b, np.uint8)).sum())


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth random picture: low-frequency noise, like a photo to PDQ."""
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encode(array: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def vectors() -> dict[str, bytes]:
    if not VECTORS.exists():
        pytest.skip("no PDQ reference images (../shared/data/hashes/pdq_vectors.tar)")
    with tarfile.open(VECTORS) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}  # type: ignore[union-attr]


def test_the_reference_images_have_nearly_their_reference_hash(vectors: dict[str, bytes]) -> None:
    rows = csv.DictReader(io.StringIO(vectors["pdq/pdq/wasm/test/TestData/PDQMD5TestData.csv"].decode()))
    bits = {}
    for row in rows:
        name = row["FilePath"].replace("../../../../", "pdq/pdq/")
        if name in vectors:
            bits[Path(name).name] = distance(fingerprint(decode_rgb(vectors[name])).pdq, bytes.fromhex(row["Hash"]))
    # Below 200 px the reference does not interpolate, so its own hash of a copy this small is off by as much.
    tiny = {"wee.jpg": 14, "shrink-a-lot.jpg": 12}
    assert len(bits) == 15
    assert {name: d for name, d in bits.items() if d > tiny.get(name, 6)} == {}


def test_edits_of_one_photo_stay_within_16_bits(vectors: dict[str, bytes]) -> None:
    mods = [fingerprint(decode_rgb(v)).pdq for k, v in vectors.items() if "/bridge-mods/" in k]
    assert len(mods) == 12
    assert max(distance(a, b) for a in mods for b in mods) <= 16


def test_a_turned_photo_is_found_by_the_view_of_that_name(vectors: dict[str, bytes]) -> None:
    folder = "pdq/pdq/data/reg-test-input/dih/bridge-"
    views = dict(fingerprint_views(decode_rgb(vectors[folder + "1-original.jpg"])))
    turned = {
        "2-rotate-90": "rotate90",
        "3-rotate-180": "rotate180",
        "4-rotate-270": "rotate270",
        "5-flipx": "flip",  # the test set names the axis that stays
        "6-flipy": "mirror",
        "7-flip-plus-1": "transpose",
        "8-flip-minus-1": "transverse",
    }
    for name, view in turned.items():
        pdq = fingerprint(decode_rgb(vectors[f"{folder}{name}.jpg"])).pdq
        distances = {v: distance(pdq, h) for v, h in views.items()}
        assert distances.pop(view) <= 6, name
        assert min(distances.values()) > 80, name


@pytest.mark.parametrize("size", [(32, 32), (64, 48), (128, 128), (200, 300), (512, 341)])
@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.LANCZOS])
def test_size_hardly_matters(size: tuple[int, int], resample: Image.Resampling) -> None:
    original = picture(600, 800)
    copy = np.asarray(Image.fromarray(original).resize(size, resample))
    assert distance(fingerprint(original).pdq, fingerprint(copy).pdq) <= 6


@pytest.mark.parametrize(("index", "name"), list(enumerate(name for name, _ in VIEWS)))
def test_a_view_is_the_fingerprint_of_the_turned_array(index: int, name: str) -> None:
    turned = {
        "upright": lambda a: a,
        "rotate90": lambda a: np.rot90(a),
        "rotate180": lambda a: np.rot90(a, 2),
        "rotate270": lambda a: np.rot90(a, 3),
        "mirror": lambda a: a[:, ::-1],
        "flip": lambda a: a[::-1],
        "transpose": lambda a: a.transpose(1, 0, 2),
        "transverse": lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    }
    rgb = picture(90, 131)
    view, pdq = fingerprint_views(rgb)[index]
    assert view == name
    assert pdq == fingerprint(np.ascontiguousarray(turned[name](rgb))).pdq


def test_quality_tells_flat_from_textured() -> None:
    assert fingerprint(np.full((80, 60, 3), 200, np.uint8)).quality == 0
    assert fingerprint(picture(300, 300)).quality > 50


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3))))
def test_any_image_has_a_fingerprint(rgb: np.ndarray) -> None:
    result = fingerprint(rgb)
    assert len(result.pdq) == 32
    assert 0 <= result.quality <= 100
    assert result == fingerprint(rgb.copy())


@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3)))
    | st.builds(picture, st.integers(1, 400), st.integers(1, 400), st.integers(0, 99))
    | st.builds(picture, st.integers(100, 2_000), st.integers(1, 8), st.integers(0, 99))
    | st.builds(picture, st.integers(1, 8), st.integers(100, 2_000), st.integers(0, 99))
)
@example(noise(9_000, 2))
@example(noise(4_000, 32))
@example(noise(2, 60_000))
def test_the_bits_are_those_of_the_library(rgb: np.ndarray) -> None:
    height, width, _ = rgb.shape
    right, down = width * 1.5 / 512, height * 1.5 / 512
    grey = np.asarray(Image.fromarray(rgb).convert("L"))
    padded = np.pad(grey, ((0, int(np.ceil(down))), (0, int(np.ceil(right)))), mode="edge")
    box = (right, down, width + right, height + down)
    small = Image.fromarray(padded).resize((64, 64), Image.Resampling.BICUBIC, box=box).convert("RGB")
    bits, quality = pdqhash.compute(np.asarray(small))
    assert fingerprint(rgb) == Fingerprint(np.packbits(bits).tobytes(), quality)


@given(
    shape=st.tuples(st.integers(1, 300), st.integers(1, 400)).filter(lambda sides: max(sides) <= 32 * min(sides)),
    seed=st.integers(0, 1 << 32),
    kind=st.sampled_from(["noise", "edges", "smooth"]),
)
@example(shape=(256, 512), seed=0, kind="edges")
@example(shape=(64, 2_048), seed=0, kind="noise")
@example(shape=(2_048, 64), seed=0, kind="edges")
@example(shape=(400, 255), seed=0, kind="edges")
def test_products_sample_the_same_values_as_pillow(shape: tuple[int, int], seed: int, kind: str) -> None:
    random = np.random.default_rng(seed)
    grey = random.integers(0, 256, shape, dtype=np.uint8)
    if kind == "edges":
        grey = np.where(grey < 128, 0, 255).astype(np.uint8)  # sums beyond 0 and 255
    elif kind == "smooth":
        grey = np.asarray(Image.fromarray(grey[:12, :12]).resize(shape[::-1], Image.Resampling.BICUBIC))
    image = Image.fromarray(grey)
    assert np.array_equal(pdq._sampled_by_products(image), pdq._sampled(image))


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3))))
def test_luma_is_that_of_pillow(rgb: np.ndarray) -> None:
    assert pdq._grey(rgb).tobytes() == Image.fromarray(rgb).convert("L").tobytes()
    turned = rgb.transpose(1, 0, 2)  # not contiguous
    assert pdq._grey(turned).tobytes() == Image.fromarray(turned).convert("L").tobytes()


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4), (0, 4, 3)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="uint8 image"):
        fingerprint(np.zeros(shape, np.uint8))


def test_exif_orientation_is_applied() -> None:
    rgb = picture(40, 80)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying down: turn clockwise to view
    sideways = np.ascontiguousarray(np.rot90(rgb))
    assert np.array_equal(decode_rgb(encode(sideways, exif=exif)), rgb)


def test_transparency_is_put_on_white() -> None:
    rgba = np.zeros((5, 7, 4), np.uint8)
    rgba[0, 0] = (10, 20, 30, 255)
    decoded = decode_rgb(encode(rgba))
    assert decoded[0, 0].tolist() == [10, 20, 30]
    assert (decoded[1:] == 255).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "I;16", "RGBA"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = Image.new(mode, (9, 4))
    buffer = io.BytesIO()
    image.save(buffer, "TIFF")
    assert decode_rgb(buffer.getvalue()).shape == (4, 9, 3)


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(1, 256)
    assert decode_rgb(encode(ramp))[0, :, 0].tolist() == (ramp[0] >> 8).tolist()
    assert decode_rgb(encode(ramp, "TIFF"))[0, :, 0].tolist() == (ramp[0] >> 8).tolist()
    tall = np.repeat(ramp.T, 3, axis=1).astype(np.int32)  # as a 32-bit file may have it, and more than a block of rows
    tall = np.vstack([[[-1] * 3], tall, [[2**30] * 3]]).astype(np.int32)
    assert decode_rgb(encode(tall, "TIFF"))[:, 1, 2].tolist() == [0, *(ramp[0] >> 8).tolist(), 255]


def test_16_bit_grey_takes_little_more_memory_than_colour() -> None:
    """NumPy's and Python's own; Pillow holds its pixels elsewhere."""
    peaks = []
    for array in (np.full((1_000, 1_000), 0x4000, np.uint16), np.zeros((1_000, 1_000, 3), np.uint8)):
        encoded = encode(array)
        tracemalloc.start()
        decode_rgb(encoded)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] < 1.5 * peaks[1]


def test_floating_point_pixels_are_refused() -> None:
    assert failure(encode(np.full((4, 4), 0.5, np.float32), "TIFF")) == "unsupported_format"


def png_header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBBI", 13, b"IHDR", width, height, 8, 2, 0, 0, 0, 0)


def failure(encoded: bytes, **options: int) -> str:
    with pytest.raises(ImageDecodeError) as caught:
        decode_rgb(encoded, **options)
    return caught.value.failure


def test_failures_are_told_apart() -> None:
    good = encode(picture(50, 50), "JPEG")
    assert failure(b"<html>no</html>") == "not_an_image"
    assert failure(b"") == "not_an_image"
    assert failure(good[: len(good) // 2]) == "broken_image"
    avif = encode(picture(50, 50), "AVIF")
    assert decode_rgb(avif).shape == (50, 50, 3)
    assert failure(avif[: avif.index(b"mdat") + 4] + bytes(2_000)) == "broken_image"
    assert failure(good, max_pixels=2_499) == "too_many_pixels"
    assert decode_rgb(good, max_pixels=2_500).shape == (50, 50, 3)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # pytest takes the module's own filter away
@pytest.mark.parametrize("side", [10_000, 20_000, 2**31 - 1])
def test_a_huge_size_is_refused_by_the_header_alone(side: int) -> None:
    rgb = picture(20, 20)
    body = encode(rgb)[33:]
    good_header = encode(rgb)[:33]
    assert decode_rgb(good_header + body).shape == (20, 20, 3)
    header = png_header(side, side)
    crc = struct.pack(">I", zlib.crc32(header[12:29]))
    assert failure(header[:29] + crc + body) == "too_many_pixels"


@pytest.mark.parametrize("kind", ["JPEG", "AVIF"])
@given(noise=st.binary(max_size=300), position=st.integers(0, 400))
def test_damaged_files_never_raise_anything_else(kind: str, noise: bytes, position: int) -> None:
    good = encode(picture(16, 16), kind)
    damaged = good[:position] + noise + good[position + len(noise) :]
    with contextlib.suppress(ImageDecodeError):  # the one exception that callers must expect
        assert decode_rgb(damaged).shape[2] == 3
