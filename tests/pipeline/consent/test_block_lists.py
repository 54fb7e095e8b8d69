"""Block lists: what each kind of entry finds, in the forms that people keep."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.consent.block_lists import PDQ_MAX_BITS, BlockLists, DigestSet, EntryError

URL = "https://img.example.com/a%20b.jpg"


def test_an_entry_may_name_its_own_distance() -> None:
    listed = np.zeros(32, np.uint8)
    far = np.full(32, 255, np.uint8)
    lists = BlockLists.read(
        {"image_hashes": [f"pdq:{listed.tobytes().hex()} 12", f"PDQ:{far.tobytes().hex()}".lower()]}
    )
    for start, bits in ((listed, 12), (far, PDQ_MAX_BITS)):
        for flipped in (0, bits, bits + 1):
            look = np.unpackbits(start)
            look[:flipped] ^= 1
            assert (lists.of_pdq(np.packbits(look).tobytes()) is not None) == (flipped <= bits)


@pytest.mark.parametrize(
    ("kind", "entry", "is_found"),
    [
        ("domains", "example.com", True),
        ("domains", "img.example.com", True),
        ("domains", "*.Example.COM", True),
        ("domains", ".example.com", True),
        ("domains", "||example.com^", True),
        ("domains", "0.0.0.0 img.example.com", True),
        ("domains", "www.example.com", False),
        ("domains", "ample.com", False),
        ("urls", URL, True),
        ("urls", "http://img.example.com/a b.jpg", True),
        ("urls", "img.example.com/a%20b.jpg", True),
        ("urls", "https://img.example.com/a%20b.jpg?x", False),
        ("url_hashes", hashlib.sha256(URL.encode()).hexdigest(), True),
        ("url_hashes", hashlib.sha1(URL.encode()).hexdigest().upper(), True),
        ("url_hashes", "md5:" + hashlib.md5(URL.replace("https", "http").encode()).hexdigest(), True),
        ("url_hashes", hashlib.sha256(b"other").hexdigest(), False),
    ],
)
def test_urls(kind: str, entry: str, is_found: bool) -> None:
    lists = BlockLists.read({kind: ["# a comment", "", f"  {entry}  "]})
    assert bool(lists)
    found = lists.of_url(URL, "img.example.com")
    assert (found is not None) == is_found
    if found is not None:
        assert entry not in str(found)


@pytest.mark.parametrize("name", ["sha256", "sha1", "md5"])
def test_images_by_their_bytes(name: str) -> None:
    lists = BlockLists.read({"image_hashes": [hashlib.new(name, b"image").hexdigest()]})
    sha256 = hashlib.sha256(b"image").hexdigest()
    assert lists.of_file(b"image", sha256) is not None
    assert lists.of_file(b"other", hashlib.sha256(b"other").hexdigest()) is None
    assert (lists.of_fingerprints(sha256, bytes(32)) is not None) == (name == "sha256")


def test_images_by_their_look() -> None:
    listed = bytes(range(32))
    lists = BlockLists.read({"image_hashes": [f"pdq:{listed.hex()}"]})
    bits = np.unpackbits(np.frombuffer(listed, np.uint8))
    for flipped in (0, PDQ_MAX_BITS, PDQ_MAX_BITS + 1):
        near = bits.copy()
        near[:flipped] ^= 1
        assert (lists.of_pdq(np.packbits(near).tobytes()) is not None) == (flipped <= PDQ_MAX_BITS)


@pytest.mark.parametrize(
    ("kind", "entry"),
    [
        ("domains", "two words"),
        ("urls", "ftp://x/y"),
        ("url_hashes", "abc"),
        ("image_hashes", "pdq:12"),
        ("image_hashes", f"pdq:{'0' * 64} 65"),
        ("image_hashes", f"pdq:{'0' * 64} x"),
    ],
)
def test_a_line_that_is_no_entry_is_refused_and_not_shown(kind: str, entry: str) -> None:
    with pytest.raises(EntryError) as error:
        BlockLists.read({kind: [entry]})
    assert entry not in str(error.value)


def test_without_lists_nothing_is_blocked() -> None:
    assert not BlockLists.read({})
    assert BlockLists().of_url(URL, "img.example.com") is None


@given(st.sets(st.binary(min_size=8, max_size=8)), st.binary(min_size=8, max_size=8))
def test_a_digest_set_is_a_set(members: set[bytes], other: bytes) -> None:
    digests = DigestSet.of(members)
    assert all(member in digests for member in members)
    assert (other in digests) == (other in members)
