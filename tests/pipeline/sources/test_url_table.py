"""Candidates from tables: every kind and compression, in file order, damage counted."""

import bz2
import csv
import gzip
import io
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from support.warc_files import Rows, rows_of

from pipeline.config import PairsConfig
from pipeline.config.sources import SourceConfig
from pipeline.errors import UserError
from pipeline.records import Reason
from pipeline.sources import table_lines, url_table
from pipeline.sources.url_table import read_table
from queries import parquet_pages

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.compress,
}
ITEMS = [
    {"url": "http://a.example/1.jpg", "caption": "A dog, running", "page": "http://a.example/"},
    {"url": "http://b.example/2.jpg", "caption": 'The "big"\tcat', "page": ""},
    {"url": "http://c.example/3.jpg", "caption": "Café 東京 😀", "page": "javascript:alert(1)"},
]
EXPECTED = [
    ("http://a.example/1.jpg", "A dog, running", "caption", "http://a.example/"),
    ("http://b.example/2.jpg", 'The "big" cat', "caption", ""),
    ("http://c.example/3.jpg", "Café 東京 😀", "caption", ""),
]


def read(data: bytes, name: str, **options: object) -> tuple[Rows, Counter[Reason]]:
    source = SourceConfig.model_validate({"kind": "url-table", "paths": [name], **options})
    return rows_of(read_table(io.BytesIO(data), name, source, PairsConfig()))


def captions(data: bytes, name: str, **options: object) -> tuple[list[str], dict[Reason, int]]:
    rows, dropped = read(data, name, **options)
    return [row[1] for row in rows], dict(dropped)


def as_csv(items: list[dict[str, str]]) -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, ["caption", "page", "url"])
    writer.writeheader()
    writer.writerows(items)
    return out.getvalue().encode()


def as_tsv(items: list[dict[str, str]]) -> bytes:
    lines = [["caption", "page", "url"], *([i["caption"].replace("\t", " "), i["page"], i["url"]] for i in items)]
    return "\n".join("\t".join(line) for line in lines).encode()


def as_jsonl(items: list[dict[str, str]]) -> bytes:
    return b"".join(json.dumps(item).encode() + b"\n" for item in items)


def as_parquet(items: list[dict[str, str]]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(items), out)
    return out.getvalue()


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize(("kind", "write"), [("csv", as_csv), ("tsv", as_tsv), ("jsonl", as_jsonl)])
def test_kinds_and_compressions(kind, write, suffix):
    data = COMPRESS[suffix](write(ITEMS))
    assert read(data, f"T.{kind.upper()}{suffix}", page_url="page") == (EXPECTED, Counter())


@pytest.mark.parametrize("suffix", [s for s in COMPRESS if s])
def test_compressed_files_one_after_another_are_one_file(suffix):
    data = as_csv(ITEMS * 5_000)
    half = len(data) // 2
    rows, dropped = read(COMPRESS[suffix](data[:half]) + COMPRESS[suffix](data[half:]), f"t.csv{suffix}")
    assert (len(rows), dropped) == (15_000, Counter())


def test_parquet():
    assert read(as_parquet(ITEMS), "t.parquet", page_url="page") == (EXPECTED, Counter())
    assert read(as_parquet(ITEMS), "https://h.example/t.parquet?token=1")[1] == Counter()


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.dictionary(pa.int8(), pa.string())],
)
def test_parquet_column_types(kind):
    out = io.BytesIO()
    pq.write_table(pa.table({"url": pa.array(["http://a.example/", None], kind), "caption": ["x", "y"]}), out)
    rows, dropped = read(out.getvalue(), "t.parquet")
    assert (rows[0][0], dropped) == ("http://a.example/", Counter({Reason.NO_URL: 1}))


def test_parquet_text_that_is_not_utf8():
    bad = pa.array([b"good", b"\xff\xfe", None], pa.binary())
    out = io.BytesIO()
    pq.write_table(pa.table({"url": ["http://a.example/"] * 3, "caption": bad}), out)
    assert captions(out.getvalue(), "t.parquet") == (["good"], {Reason.DAMAGED_RECORD: 1, Reason.NO_CAPTION: 1})


def test_parquet_that_is_damaged_counts_once():
    data = as_parquet(ITEMS * 1_000)
    assert read(data[:-100], "t.parquet") == ([], Counter({Reason.DAMAGED_FILE: 1}))
    assert read(b"", "t.parquet") == ([], Counter({Reason.DAMAGED_FILE: 1}))
    zeroed = data[:40] + bytes(300) + data[340:]
    assert read(zeroed, "t.parquet")[1] == Counter({Reason.DAMAGED_FILE: 1})


@pytest.mark.parametrize(
    ("kind", "write"), [("csv", as_csv), ("tsv", as_tsv), ("jsonl", as_jsonl), ("parquet", as_parquet)]
)
def test_every_row_counts_once(kind, write):
    items = [
        {"url": "http://a.example/", "caption": "kept", "page": ""},
        {"url": "http://a.example/", "caption": " ", "page": ""},
        {"url": "", "caption": "x", "page": ""},
        {"url": "", "caption": "", "page": ""},
        {"url": "mailto:x", "caption": "x", "page": ""},
        {"url": "http://a.example/", "caption": "x" * 10_001, "page": ""},
        {"url": "http://a.example/", "caption": "kept", "page": ""},  # repeated pairs are the plan's business
    ]
    assert captions(write(items), f"t.{kind}") == (
        ["kept", "kept"],
        {Reason.NO_CAPTION: 2, Reason.NO_URL: 1, Reason.BAD_URL: 1, Reason.CAPTION_TOO_LONG: 1},
    )


def test_csv_with_quotes_and_line_ends_inside():
    data = b'\xef\xbb\xbfurl,caption\r\nhttp://a.example/,"one,\r\ntwo ""three"""\r\n\r\nhttp://b.example/,four'
    assert captions(data, "t.csv") == (['one, two "three"', "four"], {})


@pytest.mark.parametrize(
    ("lines", "kept", "damaged"),
    [
        (b"http://a.example/\nhttp://a.example/,x\n", ["x"], 1),  # too few columns
        (b"http://a.example/,x,y\nhttp://a.example/,x\n", ["x"], 1),  # too many
        (b"http://a.example/,\xff\nhttp://a.example/,x\n", ["x"], 1),  # no UTF-8
        (b'http://a.example/,"x\nhttp://a.example/,y\n', ["x http://a.example/,y"], 0),  # an open quote takes the rest
        (b'http://a.example/,"' + b"x" * 200_000 + b"\nhttp://a.example/,y\n", ["y"], 1),  # but not megabytes
    ],
)
def test_damaged_csv_lines(lines, kept, damaged):
    assert captions(b"url,caption\n" + lines, "t.csv") == (kept, {Reason.DAMAGED_RECORD: damaged} if damaged else {})


def test_damaged_jsonl_lines():
    lines = [
        b'{"url": "http://a.example/", "caption": "one"}',
        b'{"url": "http://a.example/", "caption": "one"',
        b"[1, 2]",
        b"\xff",
        b"",
        b'{"url": "http://a.example/", "caption": 5}',
        b'{"url": null, "caption": "x"}',
        b'{"caption": "x"}',
        b"[" * 100_000,
        b'{"url": "http://a.example/", "caption": "half \\ud83d"}',
    ]
    assert captions(b"\n".join(lines), "t.jsonl") == (
        ["one", "half"],
        {Reason.DAMAGED_RECORD: 5, Reason.NO_URL: 2},
    )


def test_a_line_without_end_is_one_damaged_record(monkeypatch):
    monkeypatch.setattr(table_lines, "MAX_LINE_BYTES", 100_000)
    line = b'{"url": "http://a.example/", "caption": "x"}\n'
    long = b'{"url": "' + b"x" * 500_000 + b'"}\n'
    assert captions(line + long + line, "t.jsonl") == (["x", "x"], {Reason.DAMAGED_RECORD: 1})
    assert captions(line + long[:-1], "t.jsonl") == (["x"], {Reason.DAMAGED_RECORD: 1})


def test_objects_without_any_key_are_rows_without_a_caption():
    assert captions(b"{}\n{}\n", "t.jsonl") == ([], {Reason.NO_CAPTION: 2})
    many = b"{}\n" * 2_000 + b'{"url": "http://a.example/1.jpg", "caption": "x"}\n'
    assert captions(many, "t.jsonl") == (["x"], {Reason.NO_CAPTION: 2_000})


@pytest.mark.parametrize("suffix", [".gz", ".bz2"])
@pytest.mark.parametrize(("kind", "write"), [("csv", as_csv), ("tsv", as_tsv), ("jsonl", as_jsonl)])
def test_a_file_that_breaks_off_keeps_the_lines_before(kind, write, suffix):
    items = [{"url": f"http://a.example/{n}", "caption": f"number {n * n} of {n}", "page": ""} for n in range(30_000)]
    data = COMPRESS[suffix](write(items))
    rows, dropped = read(data[: len(data) * 9 // 10], f"t.{kind}{suffix}")
    assert dropped == Counter({Reason.DAMAGED_FILE: 1})
    assert 10_000 < len(rows) < 30_000
    assert rows == [(item["url"], item["caption"], "caption", "") for item in items[: len(rows)]]


def test_a_quoted_field_that_breaks_off_is_no_row():
    data = b"url,caption\nhttp://a.example/,one\n" + b'http://b.example/,"first line\n' + b"second line\n" * 100_000
    rows, dropped = read(gzip.compress(data)[:-20], "t.csv.gz")
    assert [row[1] for row in rows] == ["one"]
    assert dropped[Reason.DAMAGED_FILE] == 1


def test_damaged_compression_counts_once():
    data = bytearray(gzip.compress(as_jsonl(ITEMS * 20_000)))
    data[len(data) // 2] ^= 0xFF
    rows, dropped = read(bytes(data), "t.jsonl.gz")
    assert dropped[Reason.DAMAGED_FILE] == 1
    assert len(rows) > 1_000
    assert captions(b"not compressed at all", "t.jsonl.gz") == ([], {Reason.DAMAGED_FILE: 1})


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r", b"\r\r\n"])
@pytest.mark.parametrize(("kind", "write"), [("csv", as_csv), ("tsv", as_tsv), ("jsonl", as_jsonl)])
@pytest.mark.parametrize("chunk_bytes", [1, 7, 1 << 16])
def test_lines_end_as_any_system_ends_them(kind, write, end, chunk_bytes, monkeypatch):
    monkeypatch.setattr(table_lines, "_READ_BYTES", chunk_bytes)
    data = write(ITEMS).replace(b"\r\n", b"\n").replace(b"\n", end)
    for raw in (data, data.rstrip(b"\r\n"), data + end * 3, b"\xef\xbb\xbf" + data):
        assert read(raw, f"t.{kind}", page_url="page") == (EXPECTED, Counter())


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize(("kind", "write"), [("csv", as_csv), ("tsv", as_tsv), ("jsonl", as_jsonl)])
@pytest.mark.parametrize("chunk_bytes", [1, 7, 1 << 16])
def test_the_unicode_text_of_spreadsheets_is_read(codec, kind, write, chunk_bytes, monkeypatch):
    monkeypatch.setattr(table_lines, "_READ_BYTES", chunk_bytes)
    for end in ("\r\n", "\r"):
        text = write(ITEMS).decode().replace("\r\n", "\n").replace("\n", end)
        assert read(("\ufeff" + text).encode(codec), f"t.{kind}", page_url="page") == (EXPECTED, Counter())


def test_csv_whose_line_ends_differ():
    data = b'url,caption\r\nhttp://a.example/,one\rhttp://a.example/,"two\nlines"\nhttp://a.example/,three'
    assert captions(data, "t.csv") == (["one", "two lines", "three"], {})


def test_a_first_line_that_cannot_be_read_is_named():
    for data in (b'url,caption,"' + b"x" * 200_000 + b'"\n', b"url,caption" + b",c" * 10_000 + b"\n"):
        with pytest.raises(UserError, match=r"t\.csv: .*the first line"):
            read(data, "t.csv")
    names = ",".join(f"column_{number}" for number in range(9_000))
    with pytest.raises(
        UserError, match=r"no column 'url'; its columns are 'column_0', .*'column_19', 8,980 more"
    ) as error:
        read(names.encode() + b"\n", "t.csv")
    assert len(str(error.value)) < 1_000


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst"])
@pytest.mark.parametrize("filler", [b"\n", b"x", b'"a\n",'])
@pytest.mark.parametrize(("kind", "write"), [("csv", as_csv), ("jsonl", as_jsonl)])
def test_a_table_that_unpacks_for_ever_is_left(kind, write, filler, suffix, monkeypatch):
    monkeypatch.setattr(table_lines, "_FREE_BYTES", 1_000_000)
    monkeypatch.setattr(table_lines, "MAX_LINE_BYTES", 300_000)
    bomb = COMPRESS[suffix](write(ITEMS) + b"\n" + filler * (3_000_000 // len(filler)) + b"\n")
    rows, dropped = read(bomb, f"t.{kind}{suffix}")
    assert len(rows) == 3
    if len(bomb) < 3_000_000 / 500:
        assert dropped[Reason.DAMAGED_FILE] == 1


def test_a_row_of_endless_lines_is_a_damaged_record(monkeypatch):
    monkeypatch.setattr(table_lines, "MAX_LINE_BYTES", 10_000)
    monkeypatch.setattr(url_table, "MAX_LINE_BYTES", 10_000)
    row = b'"http://a.example/","x"\n'
    rows, dropped = read(b"url,caption\n" + row + b'"a\n",' * 9_000 + b"\n" + row, "t.csv")
    assert rows[0][1] == "x"
    assert dropped[Reason.DAMAGED_RECORD] >= 1


def parquet_of(captions: list[str], **options: object) -> bytes:
    out = io.BytesIO()
    urls = [f"http://a.example/{number}" for number in range(len(captions))]
    pq.write_table(pa.table({"url": urls, "caption": captions}), out, **options)
    return out.getvalue()


@pytest.mark.parametrize(
    ("limit", "value", "options"),
    [
        ("page_bytes", "x" * 200_000, {"use_dictionary": False}),
        ("page_bytes", "x" * 200_000, {}),
        ("page_bytes", "x" * 200_000, {"use_dictionary": False, "data_page_version": "2.0"}),
        ("batch_bytes", "x" * 20_000, {"use_dictionary": False, "data_page_size": 1_000}),
        ("delta_page_bytes", "x" * 200_000, {"use_dictionary": False, "column_encoding": "DELTA_BYTE_ARRAY"}),
    ],
)
def test_pages_are_looked_at_before_they_are_unpacked(limit, value, options, monkeypatch):
    data = parquet_of([value] * 50, compression="zstd", **options)
    assert read(data, "t.parquet")[1] == Counter({Reason.CAPTION_TOO_LONG: 50})
    monkeypatch.setattr(url_table, "TEXT", replace(parquet_pages.TEXT, **{limit: 100_000}))
    assert read(data, "t.parquet") == ([], Counter({Reason.DAMAGED_FILE: 1}))


def test_a_long_text_in_every_row_is_held_a_few_rows_at_a_time(monkeypatch):
    monkeypatch.setattr(url_table, "TEXT", replace(parquet_pages.TEXT, batch_bytes=3 << 20))
    sizes: list[int] = []
    texts = url_table._texts
    monkeypatch.setattr(url_table, "_texts", lambda column: (sizes.append(column.nbytes), texts(column))[1])
    data = parquet_of(["x" * 1_000_000] * 300, compression="zstd")
    assert len(data) < 20_000
    assert read(data, "t.parquet")[1] == Counter({Reason.CAPTION_TOO_LONG: 300})
    assert max(sizes) <= 3 << 20


@pytest.mark.parametrize("rows_per_group", [100_000, 900_000])
def test_more_rows_than_bytes_can_tell(rows_per_group, monkeypatch):
    monkeypatch.setattr(parquet_pages, "_FREE_VALUES", 1_000)
    out, rows = io.BytesIO(), 900_000
    table = pa.table({"url": pa.repeat("http://a.example/", rows), "caption": pa.nulls(rows, pa.string())})
    pq.write_table(table, out, row_group_size=rows_per_group)
    assert read(out.getvalue(), "t.parquet") == ([], Counter({Reason.DAMAGED_FILE: 1}))


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd", "brotli", "lz4"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"row_group_size": 100, "data_page_size": 500, "write_page_index": True, "write_page_checksum": True},
        {"use_dictionary": False, "column_encoding": "DELTA_LENGTH_BYTE_ARRAY", "data_page_version": "2.0"},
        {"use_dictionary": False, "column_encoding": "DELTA_BYTE_ARRAY", "store_schema": False},
    ],
)
def test_every_way_to_write_parquet_is_read(compression, options):
    words = [f"{number * number} dogs" for number in range(3_000)]
    assert captions(parquet_of(words, compression=compression, **options), "t.parquet") == (words, {})


@given(st.binary(max_size=60))
def test_any_bytes_are_a_page_header_or_none(raw: bytes):
    try:
        header = parquet_pages.parse_page_header(raw)
    except (IndexError, pa.ArrowInvalid):
        return
    assert 0 < header.bytes <= len(raw)


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.csv.gz"])
def test_an_empty_table_has_no_rows(name):
    data = gzip.compress(b"") if name.endswith(".gz") else b""
    assert read(data, name) == ([], Counter())


def test_a_table_of_a_header_has_no_rows():
    assert read(b"url,caption\n", "t.csv") == ([], Counter())
    assert read(empty_parquet(), "t.parquet") == ([], Counter())


def empty_parquet() -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"url": pa.array([], pa.string()), "caption": pa.array([], pa.string())}), out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("kind", "write"), [("csv", as_csv), ("tsv", as_tsv), ("jsonl", as_jsonl), ("parquet", as_parquet)]
)
def test_a_missing_column_is_named_with_those_there_are(kind, write):
    with pytest.raises(UserError, match=rf"t\.{kind}: no column 'TEXT'; its columns are .*'caption'.*"):
        read(write(ITEMS), f"t.{kind}", caption="TEXT")


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_a_column_that_is_there_twice_is_refused(kind):
    if kind == "parquet":
        out = io.BytesIO()
        pq.write_table(pa.table([["x"], ["y"], ["z"]], names=["url", "caption", "url"]), out)
        data = out.getvalue()
    else:
        data = b"url,caption,url\nx,y,z\n".replace(b",", b"," if kind == "csv" else b"\t")
    with pytest.raises(UserError, match=rf"t\.{kind}: 2 columns have the name 'url'"):
        read(data, f"t.{kind}")


def test_any_damaged_byte_of_a_parquet_footer_is_a_damaged_file_or_a_users_error():
    data = bytearray(as_parquet(ITEMS[:1]))
    told = Counter()
    for place, byte in product(range(int.from_bytes(data[-8:-4], "little")), (0xFF, ord("x"))):
        spoilt = data.copy()
        spoilt[-9 - place] = byte
        try:
            told.update(read(bytes(spoilt), "t.parquet")[1])
        except UserError:
            told["no such column"] += 1
    assert told[Reason.DAMAGED_FILE] > 50
    assert told["no such column"] > 5


def test_a_column_that_is_no_text():
    out = io.BytesIO()
    pq.write_table(pa.table({"url": ["x"], "caption": [1]}), out)
    with pytest.raises(UserError, match="column 'caption' is int64, not text"):
        read(out.getvalue(), "t.parquet")


@pytest.mark.parametrize("name", ["t", "t.txt", "t.gz", "t.parquet.gz", "t.csv.xz"])
def test_a_name_that_says_nothing(name):
    with pytest.raises(UserError, match=r"unknown table format; the file name must end in \.parquet"):
        read(b"", name)


def test_without_a_header_columns_are_numbers():
    data = b"A dog\thttp://a.example/1.jpg\nA cat\thttp://a.example/2.jpg\n"
    rows, dropped = read(data, "t.tsv", header=False, url="2", caption="1")
    assert [row[:2] for row in rows] == [("http://a.example/1.jpg", "A dog"), ("http://a.example/2.jpg", "A cat")]
    assert dropped == Counter()
    with pytest.raises(UserError, match="no column '3'; its columns are '1', '2'"):
        read(data, "t.tsv", header=False, url="3", caption="1")
    with pytest.raises(UserError, match="header = false is only for csv and tsv; jsonl files have column names"):
        read(data, "t.jsonl", header=False, url="2", caption="1")
    with pytest.raises(UserError, match="header = false is only for csv and tsv; parquet files have column names"):
        read(data, "t.parquet", header=False, url="2", caption="1")


@given(st.binary(max_size=300), st.sampled_from(["csv", "tsv", "jsonl", "parquet", "csv.gz", "jsonl.bz2", "tsv.zst"]))
def test_any_bytes_are_a_table_or_a_users_error(data: bytes, kind: str):
    try:
        rows, dropped = read(
            data, f"t.{kind}", **({"header": False, "url": "1", "caption": "1"} if "sv" in kind else {})
        )
    except UserError:
        return
    assert len(rows) + dropped.total() <= data.count(b"\n") + data.count(b"\r") + 2


@given(st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), min_size=1, max_size=5))
def test_csv_rows_that_python_writes_are_all_accounted_for(pairs: list[tuple[str, str]]):
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerows([("url", "caption"), *pairs])
    rows, dropped = read(out.getvalue().encode("utf-8", "replace"), "t.csv")
    assert len(rows) + dropped.total() == len(pairs)


def test_conceptual_captions_without_a_header(shared_data):
    path = shared_data / "text" / "cc3m_validation.tsv.gz"
    lines = [line.split("\t") for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
    rows, dropped = read(path.read_bytes(), str(path), header=False, url="2", caption="1")
    assert (len(rows), dropped) == (15_833, Counter())
    assert [row[1] for row in rows] == [" ".join(caption.split()) for caption, _ in lines]


def test_laion(shared_data):
    path: Path = shared_data / "text" / "laion400m_1000.parquet"
    rows, dropped = read(path.read_bytes(), path.name, url="URL", caption="TEXT")
    assert len(rows) + dropped.total() == 1_000
    assert len(rows) >= 995
