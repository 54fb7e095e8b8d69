"""A stranger's Parquet file is read, or refused by an exception: the process lives, and its memory stays small."""

import io
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dedup.errors import DedupError
from dedup.eval_sets.read import read_examples
from queries import parquet_pages
from queries.errors import InputError
from queries.list_files import read_captions, read_list
from queries.parquet_pages import TEXT, GuardedParquet, PageLimits

Reader = Callable[[Path], object]


def parquet(columns: dict[str, object], **options: object) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, **options)
    return out.getvalue()


def read(data: bytes, columns: list[str], limits: PageLimits = TEXT) -> pa.Table:
    file = GuardedParquet(io.BytesIO(data), limits)
    return pa.Table.from_batches(file.batches(columns), pa.schema([file.schema.field(name) for name in columns]))


def example_names(path: Path) -> list[str]:
    return [example.eval_id for example in read_examples("parquet", str(path))]


@pytest.mark.parametrize(
    ("reader", "refusal"),
    [
        (example_names, (DedupError, FileNotFoundError)),
        (lambda path: read_list(str(path)), InputError),
        (lambda path: list(read_captions(str(path), "query")), InputError),
    ],
)
def test_no_byte_of_a_footer_ends_the_process(reader: Reader, refusal: type[Exception], tmp_path: Path) -> None:
    images, words = [b"image %d" % n for n in range(9)], [f"word {n}" for n in range(9)]
    good = parquet({"image": images, "query": words, "label": list(range(9))})
    footer = int.from_bytes(good[-8:-4], "little") + 8
    path = tmp_path / "t.parquet"

    def try_all() -> None:
        for place in range(len(good) - footer, len(good)):
            for value in {0, 0x15, 0x7F, 0xFF, good[place] ^ 1, good[place] ^ 16}:
                path.write_bytes(good[:place] + bytes([value]) + good[place + 1 :])
                with suppress(refusal):
                    reader(path)

    assert exit_status(try_all) == 0


def exit_status(work: Callable[[], object]) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


NESTED = {
    "query": [f"word {n}" for n in range(3_000)],
    "origins": [["a"] * (n % 4) for n in range(3_000)],
    "image": [{"bytes": b"x" * (n % 50), "path": None} for n in range(3_000)],
    "a.b": list(range(3_000)),
}


@pytest.mark.parametrize("options", [{}, {"row_group_size": 700, "data_page_size": 300, "write_page_checksum": True}])
@pytest.mark.parametrize("columns", [["query"], ["origins", "query"], ["image"], ["a.b", "image"]])
def test_nested_columns_are_read_whole(columns: list[str], options: dict[str, object]) -> None:
    assert read(parquet(NESTED, **options), columns).equals(pa.table(NESTED).select(columns))


def test_a_page_that_differs_from_its_checksum_is_refused() -> None:
    options = {"write_page_checksum": True, "write_statistics": False, "use_dictionary": False, "compression": "none"}
    data = parquet({"query": ["a word to be found"]}, **options)
    place = data.index(b"to be found")
    with pytest.raises(OSError, match=r"[Cc]hecksum|CRC"):
        read(data[:place] + b"T" + data[place + 1 :], ["query"])


def test_values_without_bytes_are_limited_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_pages, "_FREE_VALUES", 10_000)
    lists = pa.array([[None] * 300_000, []], pa.list_(pa.string()))
    with pytest.raises(pa.ArrowInvalid, match="values"):
        read(parquet({"origins": lists}), ["origins"])
    with pytest.raises(pa.ArrowInvalid, match="rows"):
        read(parquet({"query": pa.nulls(300_000, pa.string())}, row_group_size=1_000), ["query"])
    dense = [f"{n * n}" for n in range(300_000)]
    assert read(parquet({"query": dense}), ["query"]).num_rows == 300_000


def test_large_values_may_fill_a_page_that_holds_as_many_bytes() -> None:
    limits = PageLimits(page_bytes=100_000, batch_bytes=200_000, growth=2, rows=8)
    noise = [os.urandom(60_000) for _ in range(20)]
    assert read(parquet({"image": noise}, compression="zstd"), ["image"], limits)["image"].to_pylist() == noise
    with pytest.raises(pa.ArrowInvalid, match="a page of"):
        read(parquet({"image": [bytes(60_000 + n) for n in range(20)]}, compression="zstd"), ["image"], limits)
