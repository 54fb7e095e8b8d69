"""Block lists as Bloom filters: what is on them is found, in the forms that people keep, and little else."""

import gzip
import hashlib
import pickle
from pathlib import Path

import poppy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.consent.block_lists import BlockLists
from pipeline.consent.bloom import BloomList
from pipeline.errors import UserError
from pipeline.fetching.block_files import read_block_lists

URL = "https://img.example.com/a%20b.jpg"
DIGITS = {"md5": 32, "sha1": 40, "sha256": 64}


def bloom(*texts: str, rate: float = 1e-9) -> bytes:
    made = poppy.BloomFilter.with_version(1, 10_000, rate)
    for text in texts:
        made.insert_str(text)
    return made.dumps()


def reference_bits(text: str, bits: int, hashes: int) -> set[int]:
    """Return the bits of an entry, as DCSO's format defines them: FNV-1 of 64 bits, then multiplications."""
    prime, factor = 18446744073709551557, 18446744073709550147
    value = 14695981039346656037
    for byte in text.encode():
        value = value * 1099511628211 % 2**64 ^ byte
    value %= prime
    places = set()
    for _ in range(hashes):
        value = value * factor % 2**64 % prime
        places.add(value % bits)
    return places


def test_the_format_is_that_of_dcso() -> None:
    content = bloom("abc", "def")
    version, capacity, _, hashes, bits, count = (int.from_bytes(content[n : n + 8], "little") for n in range(0, 48, 8))
    assert (version & 0xFF, capacity, count) == (1, 10_000, 2)
    expected = reference_bits("abc", bits, hashes) | reference_bits("def", bits, hashes)
    stored = int.from_bytes(content[48 : 48 + -(-bits // 64) * 8], "little")
    assert {n for n in range(bits) if stored >> n & 1} == expected


@pytest.mark.parametrize("name", DIGITS)
@pytest.mark.parametrize("case", [str.lower, str.upper])
@pytest.mark.parametrize("packed", [False, True])
def test_hashes_of_files_and_of_urls(tmp_path: Path, name: str, case, packed: bool) -> None:
    image, address = (case(hashlib.new(name, content).hexdigest()) for content in (b"image", URL.encode()))
    path = tmp_path / f"known.{name}.bloom{'.gz' * packed}"
    path.write_bytes((gzip.compress if packed else bytes)(bloom(image, address)))
    lists = read_block_lists({"image_hashes": [str(path)], "url_hashes": [str(path)]})
    for one in (lists, pickle.loads(pickle.dumps(lists))):
        assert bool(one)
        assert one.of_file(b"image", hashlib.sha256(b"image").hexdigest()) is not None
        assert one.of_file(b"other", hashlib.sha256(b"other").hexdigest()) is None
        found = one.of_fingerprints(hashlib.sha256(b"image").hexdigest(), bytes(32))
        assert (found is not None) == (name == "sha256")
        assert one.of_url(URL, "img.example.com") is not None
        assert one.of_url(URL.replace("https", "http"), "img.example.com") is not None
        assert one.of_url(f"{URL}?x", "img.example.com") is None


def test_urls_and_lists_of_lines_beside(tmp_path: Path) -> None:
    (tmp_path / "urls.bloom").write_bytes(bloom(URL.replace("https", "http")))
    (tmp_path / "more.txt").write_text("example.org/b.jpg\n")
    lists = read_block_lists({"urls": [str(tmp_path / "urls.bloom"), str(tmp_path / "more.txt")]})
    for url, is_listed in ((URL, True), ("http://example.org/b.jpg", True), ("http://example.org/c.jpg", False)):
        assert (lists.of_url(url, "x.example") is not None) == is_listed
    assert lists.of_file(b"image", hashlib.sha256(b"image").hexdigest()) is None


@given(st.sets(st.binary(min_size=1, max_size=8), max_size=50), st.binary(max_size=8))
def test_every_member_is_found(members: set[bytes], other: bytes) -> None:
    made = BloomList.parse(bloom(*(hashlib.sha256(member).hexdigest() for member in members)), 64)
    lists = BlockLists.read({}, {"image_hashes": [made]})
    for member in members:
        assert lists.of_file(member, hashlib.sha256(member).hexdigest()) is not None
    listed = lists.of_file(other, hashlib.sha256(other).hexdigest())
    assert (listed is not None) == (other in members)  # one in 10^9 is wrong


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("image_hashes", b"no filter", "block_image_hashes: .*known.bloom: not a Bloom filter of DCSO's format"),
        ("url_hashes", bloom("x")[:-100], "not a Bloom filter"),
        ("urls", b"", "not a Bloom filter"),
        ("domains", bloom("x"), "only lists of urls, url_hashes, image_hashes can be Bloom filters"),
    ],
)
def test_what_is_no_filter_is_one_line(tmp_path: Path, kind: str, content: bytes, message: str) -> None:
    (tmp_path / "known.bloom").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_block_lists({kind: [str(tmp_path / "known.bloom")]})
