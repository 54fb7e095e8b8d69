"""Cutting WARC files into records: every form, and every kind of damage, with what must survive it."""

import gzip
import io
import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.warc_files import gzipped, record

from pipeline.records import Reason
from pipeline.web import warc_records
from pipeline.web.warc_records import WarcRecord, read_records

DAMAGED, CUT = Reason.DAMAGED_RECORD, Reason.DAMAGED_FILE


def numbered(number: int, **options: object) -> bytes:
    return record("metadata", b'{"n": %d}' % number * 30, f"http://a.example/{number}", **options)


RECORDS = [numbered(n) for n in range(5)]


def read(data: bytes) -> list[int | Reason]:
    """Return, for each record, the number in its URI; a `Reason` stays."""
    return [_number(found) for found in read_records(io.BytesIO(data))]


def _number(found: WarcRecord | Reason) -> int | Reason:
    if isinstance(found, Reason):
        return found
    number = int(found.field("WARC-Target-URI").rpartition("/")[2])
    assert found.block == b'{"n": %d}' % number * 30
    return number


def with_second(raw: bytes) -> list[bytes]:
    return [RECORDS[0], raw, *RECORDS[2:]]


@pytest.mark.parametrize("version", ["WARC/0.17", "WARC/0.18", "WARC/1.0", "WARC/1.1"])
def test_versions(version):
    raw = [numbered(n, version=version) for n in range(3)]
    assert read(b"".join(raw)) == read(gzipped(raw)) == [0, 1, 2]


def test_line_ends_of_unix():
    raw = [numbered(n, eol="\n") for n in range(3)]
    assert read(b"".join(raw)) == read(gzipped(raw)) == [0, 1, 2]


def test_a_whole_file_in_one_member():
    assert read(gzip.compress(b"".join(RECORDS))) == [0, 1, 2, 3, 4]


def test_several_records_in_a_member():
    assert read(gzipped([RECORDS[0] + RECORDS[1], *RECORDS[2:]])) == [0, 1, 2, 3, 4]


def test_nothing():
    assert read(b"") == []
    assert read(gzip.compress(b"")) == []


def test_field_names_ignore_case_and_wgets_angle_brackets_go():
    raw = record("response", b"x").replace(
        b"WARC-Target-URI: http://a.example/", b"warc-target-uri:<http://b.example/>"
    )
    (found,) = read_records(io.BytesIO(raw))
    assert found.field("WARC-Target-URI") == "http://b.example/"
    assert found.field("WARC-Date") is None


@pytest.mark.parametrize("length", [10, 300, 1000, 10**9])
@pytest.mark.parametrize("pack", [b"".join, gzipped])
def test_a_wrong_length_costs_one_record(pack, length):
    assert read(pack(with_second(numbered(1, content_length=length)))) == [0, DAMAGED, 2, 3, 4]


@pytest.mark.parametrize("pack", [b"".join, gzipped])
@pytest.mark.parametrize(
    "raw",
    [
        b"garbage\r\nmore\r\n\r\n",
        RECORDS[1].replace(b"Content-Length", b"X-Length"),
        RECORDS[1].replace(b"\r\n\r\n", b"\r\n", 1),
        RECORDS[1][:200],
    ],
    ids=["garbage", "no length", "no header end", "cut"],
)
def test_damage_costs_one_record(pack, raw):
    assert read(pack(with_second(raw))) == [0, DAMAGED, 2, 3, 4]


@pytest.mark.parametrize("offset", [12, 60, -6, -2])
def test_a_damaged_member_costs_one_record(offset):
    members = [bytearray(gzip.compress(raw, mtime=0)) for raw in RECORDS]
    members[1][offset] ^= 0xFF
    assert read(b"".join(members)) == [0, DAMAGED, 2, 3, 4]


def test_foreign_bytes_between_members():
    members = [gzip.compress(raw) for raw in RECORDS[:3]]
    assert read(members[0] + b"junk" * 30 + members[1] + members[2]) == [0, DAMAGED, 1, 2]
    assert read(b"".join(members) + b"junk" * 30) == [0, 1, 2, CUT]


def test_zero_padding_is_no_damage():
    members = [gzip.compress(raw) for raw in RECORDS[:2]]
    assert read(members[0] + bytes(1000) + members[1] + bytes(1_000_000)) == [0, 1]


@pytest.mark.parametrize("pack", [b"".join, gzipped])
def test_a_file_that_breaks_off(pack):
    assert read(pack(RECORDS)[:-30]) == [0, 1, 2, 3, CUT]


@pytest.mark.parametrize("rest", [b"", b"\xff" * 100_000], ids=["breaks off", "damaged"])
def test_a_large_member_keeps_what_came_before_the_damage(rest):
    noise = random.Random(0).randbytes(600_000)
    whole = gzip.compress(b"".join([*RECORDS, record("resource", noise), *RECORDS]))
    assert read(whole[:-100_000] + rest) == [0, 1, 2, 3, 4, CUT]


def test_no_warc_file():
    assert read(b"<html>" * 100) == [CUT]
    assert read(gzip.compress(b"<html>" * 100)) == [DAMAGED]


def test_an_oversized_block_is_cut_and_the_next_record_found(monkeypatch):
    monkeypatch.setattr(warc_records, "MAX_BLOCK_BYTES", 1000)
    large = record("response", b"x" * 700_000, "http://a.example/large")
    for data in (RECORDS[0] + large + RECORDS[2], gzipped([RECORDS[0], large, RECORDS[2]])):
        first, second, third = read_records(io.BytesIO(data))
        assert (first.is_whole, second.is_whole, third.is_whole) == (True, False, True)
        assert second.block == b"x" * 1000


class Stream(io.BytesIO):
    """A stream that cannot be sought, as of a web server without ranges."""

    def seek(self, *_: object) -> int:
        raise io.UnsupportedOperation


@pytest.mark.parametrize("pack", [b"".join, gzipped])
def test_sound_files_are_not_sought(pack):
    assert [_number(found) for found in read_records(Stream(pack(RECORDS)))] == [0, 1, 2, 3, 4]


def test_a_file_with_a_damaged_start():
    assert read(b"junk" * 100_000 + b"".join(RECORDS)) == [DAMAGED, 0, 1, 2, 3, 4]
    assert read(b"junk" * 100_000 + gzipped(RECORDS)) == [DAMAGED, 0, 1, 2, 3, 4]
    assert read(b"\r\n\r\n" + b"".join(RECORDS)) == [0, 1, 2, 3, 4]


class Trickle(io.BytesIO):
    """A stream whose reads return less than they are asked for, as those of a network may."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(size or 0, 7) if size and size > 0 else size)


@pytest.mark.parametrize("pack", [b"".join, gzipped, lambda raw: gzip.compress(b"".join(raw))])
@pytest.mark.parametrize("raw", [RECORDS, with_second(numbered(1, content_length=999))], ids=["sound", "damaged"])
def test_records_do_not_depend_on_how_much_a_read_returns(pack, raw):
    data = pack(raw)
    assert [_number(found) for found in read_records(Trickle(data))] == read(data)


@given(st.binary(max_size=400))
def test_any_bytes_are_read_to_the_end(data: bytes):
    for raw in (data, gzip.compress(data), b"WARC/1.0\r\n" + data, gzip.compress(b"WARC/1.0\r\n" + data)[:-3]):
        list(read_records(io.BytesIO(raw)))


@given(st.integers(0, 10**9), st.integers(1, 255))
def test_one_damaged_byte_costs_at_most_the_records_it_touches(position: int, mask: int):
    data = bytearray(gzipped(RECORDS))
    position %= len(data)
    data[position] ^= mask
    found = read_numbers_leniently(bytes(data))
    starts = member_starts(RECORDS)
    touched = max(n for n, start in enumerate(starts) if start <= position)
    assert set(range(5)) - {touched} <= set(found)


@given(st.integers(0, 10**9))
def test_what_lies_before_the_cut_is_kept(position: int):
    data = gzipped(RECORDS)
    position %= len(data)
    found = read(data[:position])
    whole = sum(start <= position for start in member_starts([*RECORDS, b""])[1:])
    kept = [item for item in found if item is not CUT]
    assert kept in (list(range(whole)), list(range(whole + 1)))  # the last may lack no more than its checksum
    assert found == kept + ([] if position in member_starts(RECORDS) else [CUT])


def read_numbers_leniently(data: bytes) -> list[int]:
    """Return the numbers of sound records; a flipped byte of a gzip header field goes unnoticed, as it should."""
    found = (item for item in read_records(io.BytesIO(data)) if isinstance(item, WarcRecord))
    return [_number(item) for item in found]


def member_starts(raw: Iterable[bytes]) -> list[int]:
    starts, position = [], 0
    for member in raw:
        starts.append(position)
        position += len(gzip.compress(member, mtime=0))
    return starts


@pytest.mark.parametrize("form", ["plain", "by record", "as a whole", "damaged"])
def test_a_record_can_be_read_again_from_its_offset(form):
    plain = b"".join(RECORDS)
    data = {"plain": plain, "by record": gzipped(RECORDS), "as a whole": gzip.compress(plain)}.get(form)
    if data is None:
        data = gzipped(RECORDS[:1]) + b"\0noise\0" + gzipped(RECORDS[1:])
    found = [item for item in read_records(io.BytesIO(data)) if isinstance(item, WarcRecord)]
    assert len(found) == 5
    if form == "as a whole":
        assert [one.offset for one in found] == [0, None, None, None, None]
        return
    for one in found:
        stream = io.BytesIO(data)
        stream.seek(one.offset)
        assert next(read_records(stream, one.offset)) == one


def test_offsets_after_a_length_that_swallows_the_file_are_right_or_not_known(monkeypatch):
    monkeypatch.setattr(warc_records, "MAX_BLOCK_BYTES", 1_000)
    monkeypatch.setattr(warc_records, "_READ_BYTES", 1_500)
    lying = RECORDS[0].replace(b"Content-Length: ", b"Content-Length: 9")
    data = lying + b"".join(RECORDS[1:] * 9)
    found = [one for one in read_records(io.BytesIO(data)) if isinstance(one, WarcRecord)]
    known = [one for one in found if one.offset is not None]
    assert len(found) > len(known) > 10
    for one in known:
        assert data[one.offset :].startswith(one.header)


_MEMBER = gzip.compress(b"WARC/1.0\r\nA: b\r\nContent-Length: 3\r\n\r\nabc\r\n\r\n", mtime=0)


@pytest.mark.parametrize(
    "unit",
    [
        b"WARC/1.0",
        b"WARC/1.0\r\nA:",
        b"WARC/1.0\r\nContent-Length: 99999999\r\n\r\n",
        b"WARC/1.0\r\nContent-Length: 300000\r\n\r\n",
        b"WARC/1.0\r\nContent-Length: 5\r\n\r\n",
        b"\x1f\x8b\x08",
        _MEMBER[:-8],
        _MEMBER[:-8] + b"crc?" + _MEMBER[-4:],
    ],
)
def test_repeated_starts_cost_what_their_bytes_cost(unit):
    """Read in time that grows with the square, each of these would take hours."""
    found = list(read_records(io.BytesIO(unit * (1_000_000 // len(unit)))))
    assert sum(isinstance(item, WarcRecord) for item in found) <= 1  # the last member may lack its checksum


def test_many_wrong_lengths_swallow_no_sound_record():
    wrong = b"WARC/1.0\r\nA: b\r\nContent-Length: %d\r\n\r\n"
    raw = b"".join(wrong % length for length in (1, 50, 400, 10_000, 300_000)) + record("response", b"block")
    found = [item for item in read_records(io.BytesIO(raw)) if isinstance(item, WarcRecord)]
    assert [item.block for item in found] == [b"block"]
    assert raw[found[0].offset :].startswith(b"WARC/1.0\r\nWARC-Type: response")


def test_nested_gzip_members_are_not_read_for_ever(monkeypatch):
    monkeypatch.setattr(warc_records, "_MAX_BYTES_AGAIN", 10_000)
    damaged = b"".join(gzip.compress(b"WARC/1.0\r\nA: b\r\n" + bytes(999), 0)[:-9] for _ in range(99))
    found = list(read_records(io.BytesIO(damaged + gzip.compress(record("response", b"block")))))
    assert isinstance(found[-1], WarcRecord)
    assert set(found[:-1]) == {Reason.DAMAGED_RECORD}
