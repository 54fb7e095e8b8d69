"""Copies that other projects test duplicate finders with: what is found, and what PDQ cannot find."""

import tarfile

import numpy as np
import pytest
from support.shared_data import SHARED

from dedup.decode import ImageDecodeError, decode_rgb
from dedup.pdq import fingerprint, fingerprint_views
from pipeline.config.fetch import FetchConfig
from pipeline.fetching.images import store_image


def read_tar(name: str) -> dict[str, bytes]:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"no test pictures (../shared/data/{name})")
    with tarfile.open(path) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def pictures() -> dict[str, np.ndarray]:
    """Folder and name of each picture of two test suites -> its pixels."""
    files = read_tar("hashes/imagededup_images.tar") | read_tar("hashes/edited_groups.tar")
    decoded = {}
    for name, content in files.items():
        if "LICENSE" not in name and "corrupt" not in name:
            decoded["/".join(name.split("/")[-2:])] = decode_rgb(content)
    return decoded


def nearest_view(one: np.ndarray, other: np.ndarray) -> tuple[int, str]:
    """Return the least distance of `other` to a view of `one`, and that view."""
    pdq = np.frombuffer(fingerprint(other).pdq, np.uint8)
    views = fingerprint_views(one)
    return min((int(np.bitwise_count(np.frombuffer(h, np.uint8) ^ pdq).sum()), view) for view, h in views)


PHOTO = "base_images/ukbench00120.jpg"


@pytest.mark.parametrize(
    ("one", "other", "view"),
    [
        (PHOTO, "mixed_images/ukbench00120_resize.jpg", "upright"),
        (PHOTO, "data/ukbench00120_gray.jpg", "upright"),
        (PHOTO, "data/alpha_channel_image.png", "upright"),
        (PHOTO, "mixed_images/ukbench00120_hflip.jpg", "mirror"),
        ("formats_images/ukbench09380.jpeg", "formats_images/ukbench09380.webp", "upright"),
        ("forest/forest-high.jpg", "forest/forest-low.jpg", "upright"),
        ("forest/forest-high.jpg", "forest/forest-thumb.jpg", "upright"),
        ("forest/forest-high.jpg", "forest/forest-cropped.jpg", "upright"),  # a narrow strip less
    ],
)
def test_copies_within_15_bits(pictures: dict[str, np.ndarray], one: str, other: str, view: str) -> None:
    distance, found = nearest_view(pictures[one], pictures[other])
    assert found == view
    assert distance <= 8


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (PHOTO, "mixed_images/ukbench00120_rotation.jpg"),  # turned by an odd angle, black corners
        ("forest/forest-high.jpg", "forest/forest-copyright.jpg"),  # a mark across the whole picture
    ],
)
def test_copies_that_are_not_found(pictures: dict[str, np.ndarray], one: str, other: str) -> None:
    assert nearest_view(pictures[one], pictures[other])[0] > 31


def test_different_pictures_are_far_apart(pictures: dict[str, np.ndarray]) -> None:
    folders = ("base_images", "office")
    different = [fingerprint(rgb).pdq for name, rgb in pictures.items() if name.split("/")[0] in folders]
    assert len(different) == 13
    hashes = np.stack([np.frombuffer(pdq, np.uint8) for pdq in different])
    distances = np.bitwise_count(hashes[:, None] ^ hashes[None]).sum(axis=2)
    assert distances[~np.eye(13, dtype=bool)].min() > 60


def test_a_fetched_image_looks_like_the_same_file_in_an_index() -> None:
    """The fetcher decodes JPEG at a reduced scale and stores 256 px; an evaluation index decodes the whole file."""
    files = read_tar("hashes/pdq_vectors.tar")
    photos = [content for name, content in files.items() if "/bridge-" in name or "/labelme-subset/" in name]
    assert len(photos) > 20
    for photo in photos:
        stored = store_image(photo, FetchConfig(network=False))
        indexed = fingerprint(decode_rgb(photo))
        assert (int.from_bytes(stored.pdq) ^ int.from_bytes(indexed.pdq)).bit_count() <= 10
        assert abs(stored.pdq_quality - indexed.quality) <= 5


def test_a_damaged_picture_is_told() -> None:
    files = read_tar("hashes/imagededup_images.tar")
    with pytest.raises(ImageDecodeError):
        decode_rgb(files["imagededup/tests/data/mixed_images/ukbench09268_corrupt.jpg"])


@pytest.mark.slow
def test_tight_crops_are_not_found() -> None:
    files = read_tar("photos/caltech_faces_crop_pairs.tar")
    pairs = [(files[name], files[name.replace("/full/", "/crop/")]) for name in files if "/full/" in name]
    assert len(pairs) == 200
    near = [nearest_view(decode_rgb(full), decode_rgb(crop))[0] <= 31 for full, crop in pairs]
    assert np.mean(near) <= 0.01
