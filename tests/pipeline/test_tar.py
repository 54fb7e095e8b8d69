"""Tars are those of the standard library, byte by byte."""

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.shards.tar import TarWriter

NAMES = st.from_regex(r"[0-9a-f]{32}\.(jpg|txt|json)", fullmatch=True) | st.text(
    st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40
)
LONG = "/".join(["folder" * 8] * 3)
"""146 characters: it goes into two fields."""


def by_the_library(members: list[tuple[str, bytes]]) -> bytes:
    stream = io.BytesIO()
    with tarfile.TarFile(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT, encoding="utf-8") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o444
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


@given(st.lists(st.tuples(NAMES | st.just(LONG), st.binary(max_size=2_000)), max_size=30))
def test_the_bytes_are_those_of_the_standard_library(members: list[tuple[str, bytes]]) -> None:
    stream = io.BytesIO()
    with TarWriter(stream) as tar:
        starts = [tar.add(name, content) for name, content in members]
    assert stream.getvalue() == by_the_library(members)
    found = [
        stream.getvalue()[start : start + len(content)] for start, (_, content) in zip(starts, members, strict=True)
    ]
    assert found == [content for _, content in members]


@pytest.mark.parametrize("size", [0, 511, 512, 513, 8_192, 1_000_000])
def test_any_size(size: int) -> None:
    stream = io.BytesIO()
    with TarWriter(stream) as tar:
        tar.add("a.jpg", bytes(size))
    assert stream.getvalue() == by_the_library([("a.jpg", bytes(size))])


def test_offsets_count_from_the_start_of_the_file() -> None:
    stream = io.BytesIO()
    with TarWriter(stream) as tar:
        tar.add("a", b"1")
    with TarWriter(stream) as tar:
        start = tar.add("b", b"second")
    assert stream.getvalue()[start : start + 6] == b"second"


def test_a_name_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="too long"):
        TarWriter(io.BytesIO()).add("a" * 300, b"")
