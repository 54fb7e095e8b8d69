"""Content codings, however a body is cut into packets and however far it unpacks."""

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.hostile_server import raw_deflate

from pipeline.fetching.content_coding import PIECE_BYTES, Inflater, UnsupportedCodingError, codings

PACKED = {
    "gzip": ("gzip", gzip.compress),
    "members": ("x-gzip", lambda data: gzip.compress(data[:5]) + gzip.compress(b"") + gzip.compress(data[5:])),
    "padded members": ("gzip", lambda data: gzip.compress(data[:5]) + bytes(9) + gzip.compress(data[5:])),
    "padded": ("gzip", lambda data: gzip.compress(data) + bytes(40)),
    "zlib": ("deflate", zlib.compress),
    "raw": ("deflate", raw_deflate),
    "mislabelled": ("deflate", gzip.compress),
}


@pytest.mark.parametrize("kind", PACKED)
@given(data=st.binary(max_size=2_000), size=st.integers(1, 500))
def test_it_unpacks_to_what_was_packed(kind: str, data: bytes, size: int) -> None:
    coding, pack = PACKED[kind]
    sent = pack(data)
    inflater = Inflater(coding)
    assert not inflater.is_whole
    got = [piece for at in range(0, len(sent), size) for piece in inflater.feed(sent[at : at + size])]
    assert b"".join(got) == data
    assert inflater.is_whole


@pytest.mark.parametrize("kind", ["gzip", "zlib", "raw"])
def test_what_is_cut_is_not_whole(kind: str) -> None:
    coding, pack = PACKED[kind]
    inflater = Inflater(coding)
    list(inflater.feed(pack(bytes(range(256)))[:-1]))
    assert not inflater.is_whole


def test_a_bomb_comes_in_pieces() -> None:
    pieces = Inflater("gzip").feed(gzip.compress(bytes(10 << 20)))
    assert max(len(piece) for piece in pieces) <= PIECE_BYTES


@pytest.mark.parametrize(
    ("header", "undone"),
    [
        ("", []),
        ("identity", []),
        ("none", []),
        ("UTF-8", []),
        ("image/jpeg", []),
        ("aws-chunked", []),
        ("aws-chunked,gzip", ["gzip"]),
        (" GZIP ", ["gzip"]),
        ("deflate, gzip", ["gzip", "deflate"]),
        ("gzip,,identity", ["gzip"]),
    ],
)
def test_values_of_content_encoding(header: str, undone: list[str]) -> None:
    assert codings(header) == undone


@pytest.mark.parametrize("header", ["br", "gzip, br", "zstd", "compress", ",".join(["gzip"] * 6)])
def test_codings_that_are_not_undone_are_named(header: str) -> None:
    with pytest.raises(UnsupportedCodingError):
        codings(header)
