"""Spill and gather: every row comes back, in its bucket, in a fixed order."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engine import shuffle, sorted_rows
from pipeline.engine.shuffle import Pieces, gather, gather_pieces, gather_some, spill
from pipeline.engine.sorted_rows import Cut, Fewer
from pipeline.engine.units import UnitOutput
from pipeline.engine.workspace import Workspace
from pipeline.errors import DamagedFileError

SCHEMA = pa.schema([("n", pa.int64()), ("words", pa.list_(pa.string()))])


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.integers(0, 5), max_size=40), max_size=6), st.integers(1, 1_000))
def test_every_row_lands_in_its_bucket(tmp_path_factory, files, chunk_bytes):
    workspace = Workspace(str(tmp_path_factory.mktemp("w")))
    expected: dict[int, list[int]] = {b: [] for b in range(6)}
    names, n = [], 0
    original, sorted_rows.CHUNK_BYTES = sorted_rows.CHUNK_BYTES, chunk_bytes
    try:
        for i, buckets in enumerate(files):
            batches = []
            for start in range(0, len(buckets), 7):
                part = buckets[start : start + 7]
                rows = list(range(n, n + len(part)))
                for row, bucket in zip(rows, part, strict=True):
                    expected[bucket].append(row)
                batches.append((pa.table([rows, [[str(r)] for r in rows]], schema=SCHEMA), np.array(part, np.int32)))
                n += len(part)
            names.append(f"spill/{i}.rows")
            assert spill(UnitOutput(workspace), names[-1], SCHEMA, 6, batches) == len(buckets)
    finally:
        sorted_rows.CHUNK_BYTES = original
    for bucket, rows in expected.items():
        found = gather(workspace, names, bucket, SCHEMA)
        assert found["n"].to_pylist() == rows
        assert found["words"].to_pylist() == [[str(r)] for r in rows]


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.lists(st.integers(0, 22), max_size=40), max_size=5),
    st.integers(1, 23),
    st.integers(1, 9),
    st.integers(1, 1_000),
)
def test_two_levels_give_each_piece_what_one_level_gives(tmp_path_factory, files, count, most_buckets, chunk_bytes):
    workspace = Workspace(str(tmp_path_factory.mktemp("w")))
    tables = [
        pa.table([[number % count for number in file], [[f"{i}-{n}"] for n in range(len(file))]], schema=SCHEMA)
        for i, file in enumerate(files)
    ]

    def piece_of(rows: pa.Table) -> np.ndarray:
        return rows["n"].to_numpy().astype(np.int32)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sorted_rows, "CHUNK_BYTES", chunk_bytes)
        patched.setattr(shuffle, "MAX_BUCKETS", most_buckets)
        pieces = Pieces(count)
        assert pieces.buckets <= most_buckets
        for i, table in enumerate(tables):
            one = [(table, piece_of(table))] if table.num_rows else []
            two = [(table, pieces.bucket_of(piece_of(table)))] if table.num_rows else []
            spill(UnitOutput(workspace), f"one/{i}.rows", SCHEMA, count, one)
            spill(UnitOutput(workspace), f"two/{i}.rows", SCHEMA, pieces.buckets, two)
        seen = 0
        for bucket in range(pieces.buckets):
            names = [f"two/{i}.rows" for i in range(len(files))]
            found = gather_pieces(workspace, names, bucket, SCHEMA, pieces.of_bucket(bucket), piece_of)
            for piece, rows in zip(pieces.of_bucket(bucket), found, strict=True):
                expected = gather(workspace, [f"one/{i}.rows" for i in range(len(files))], piece, SCHEMA)
                assert rows.equals(expected)
                seen += 1
        assert seen == count


def test_a_bucket_is_read_without_the_rest_of_the_file(tmp_path, monkeypatch):
    workspace = Workspace(str(tmp_path))
    rows = pa.table([range(60_000), [["word"]] * 60_000], schema=SCHEMA)
    spill(UnitOutput(workspace), "all.rows", SCHEMA, 100, [(rows, np.arange(60_000, dtype=np.int32) % 100)])
    read = []
    ranges = Workspace.read_ranges
    monkeypatch.setattr(Workspace, "read_ranges", lambda self, asked: read.extend(ranges(self, asked)) or read[-1:])
    assert gather(workspace, ["all.rows"], 7, SCHEMA)["n"].to_pylist() == list(range(7, 60_000, 100))
    assert sum(map(len, read)) < (tmp_path / "all.rows").stat().st_size / 50


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.integers(0, 3), max_size=60), max_size=5), st.integers(1, 4_000), st.integers(1, 4_000))
def test_some_rows_at_a_time_are_all_rows_in_order(tmp_path_factory, files, written_bytes, read_bytes):
    workspace = Workspace(str(tmp_path_factory.mktemp("w")))
    names = [f"{i}.rows" for i in range(len(files))]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sorted_rows, "CHUNK_BYTES", written_bytes)
        for i, (name, buckets) in enumerate(zip(names, files, strict=True)):
            batches = [(pa.table([[n], [[f"{i}"] * n]], schema=SCHEMA), np.array([b])) for n, b in enumerate(buckets)]
            spill(UnitOutput(workspace), name, SCHEMA, 4, batches)
        patched.setattr(sorted_rows, "CHUNK_BYTES", read_bytes)
        for bucket in range(4):
            some = list(gather_some(workspace, names, bucket, SCHEMA))
            assert pa.concat_tables([SCHEMA.empty_table(), *some]).equals(gather(workspace, names, bucket, SCHEMA))


def test_a_large_range_is_read_batch_by_batch_and_its_damage_is_found(tmp_path, monkeypatch):
    workspace = Workspace(str(tmp_path))
    monkeypatch.setattr(sorted_rows, "CHUNK_BYTES", 10_000)
    rows = pa.table([range(50_000), [["word"]] * 50_000], schema=SCHEMA)
    batches = [(rows.slice(start, 1_000), np.zeros(1_000, np.int32)) for start in range(0, 50_000, 1_000)]
    spill(UnitOutput(workspace), "all.rows", SCHEMA, 1, batches)
    found = list(gather_some(workspace, ["all.rows"], 0, SCHEMA))
    assert len(found) > 20
    assert pa.concat_tables(found).equals(rows)
    path = tmp_path / "all.rows"
    whole = path.read_bytes()
    for damaged in (whole[:-3], whole[:-1] + bytes([whole[-1] ^ 1]), whole[:5_000] + b"x" + whole[5_001:]):
        path.write_bytes(damaged)
        with pytest.raises(DamagedFileError, match=r"all\.rows"):
            list(gather_some(workspace, ["all.rows"], 0, SCHEMA))


@settings(max_examples=300)
@given(at=st.integers(16, 1 << 30), bit=st.integers(0, 7))
def test_any_flipped_bit_of_a_large_range_is_damage(tmp_path_factory, at, bit):
    """Not a lack of memory, which a length in the file may ask for, and no error of the system."""
    folder = tmp_path_factory.getbasetemp() / "flipped"
    workspace = Workspace(str(folder))
    if not (folder / "all.rows").exists():
        rows = pa.table([range(300), [["word", str(n)] for n in range(300)]], schema=SCHEMA)
        batches = [(rows.slice(start, 100), np.zeros(100, np.int32)) for start in range(0, 300, 100)]
        spill(UnitOutput(workspace), "all.rows", SCHEMA, 1, batches)
    content = bytearray((folder / "all.rows").read_bytes())
    content[16 + at % (len(content) - 16)] ^= 1 << bit
    with workspace.create("changed.rows") as out:
        out.write(content)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sorted_rows, "CHUNK_BYTES", 10)
        with pytest.raises(DamagedFileError, match=r"changed\.rows"):
            list(gather_some(workspace, ["changed.rows"], 0, SCHEMA))


def test_repeated_rows_are_made_fewer_while_they_are_read():
    held = []

    def distinct(rows: pa.Table) -> pa.Table:
        held.append(rows.num_rows)
        return pa.table([rows["n"].unique().sort(), [["w"]] * len(rows["n"].unique())], schema=SCHEMA)

    tables = [pa.table([[n % 7] * 50, [["w"]] * 50], schema=SCHEMA) for n in range(200)]
    rows = Fewer(100, distinct).read(iter(tables), SCHEMA)
    assert set(rows["n"].to_pylist()) == set(range(7))
    assert max(held) <= 157
    different = [pa.table([[n], [["w"]]], schema=SCHEMA) for n in range(1_000)]
    held.clear()
    assert sorted(Fewer(100, distinct).read(iter(different), SCHEMA)["n"].to_pylist()) == list(range(1_000))
    assert len(held) < 6


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 12), st.integers(1, 70))
def test_a_piece_is_cut_so_that_rows_of_one_number_stay_together(numbers, rows_of_table, at_once):
    starts = range(0, len(numbers), rows_of_table)
    tables = [
        pa.table([some, [[str(at)] for at, _ in enumerate(some)]], schema=SCHEMA)
        for some in (numbers[start : start + rows_of_table] for start in starts)
    ]
    cut = Cut(at_once, lambda rows: rows["n"].to_numpy().astype(np.uint64))
    with cut.read(iter(tables), SCHEMA) as cuts:
        found, again = list(cuts), list(cuts)
    assert sorted(n for rows in found for n in rows["n"].to_pylist()) == sorted(numbers)
    assert all(one.equals(other) for one, other in zip(found, again, strict=True))
    cuts_of = {n: {i for i, rows in enumerate(found) if n in rows["n"].to_pylist()} for n in numbers}
    assert all(len(places) == 1 for places in cuts_of.values())
    assert len(found) == (1 if len(numbers) <= at_once else -(-len(numbers) // at_once))
