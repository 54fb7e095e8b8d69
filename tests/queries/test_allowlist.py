import bz2
import gzip
import hashlib
import json
import os
import random
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from queries.allowlist import Allowlist, import_allowlist, manifest_path, merge_candidates
from queries.errors import InputError
from queries.list_files import CANDIDATES, SCHEMA, read_captions, read_list
from queries.normal_form import normalize


def write(path: Path, content: Any) -> str:
    """Write a list file of the kind its suffixes name."""
    kind = path.name.split(".")[1]
    if kind == "parquet":
        pq.write_table(content, path)
        return str(path)
    encoded = json.dumps(content).encode() if kind == "json" else content.encode()
    compress = {".gz": gzip.compress, ".bz2": bz2.compress}.get(path.suffix, bytes)
    path.write_bytes(compress(encoded))
    return str(path)


def imported(*sources: str, out: Path, **options: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    manifest = import_allowlist(list(sources), str(out), **options)
    return Allowlist.load(str(out)).table.to_pylist(), manifest


WORDS = pa.array(["dog", "", "Hot Dog", "DOG", "?!", "cat"])


@pytest.mark.parametrize(
    ("name", "content", "score"),
    [
        ("words.txt", "dog\n\n Hot Dog \r\nDOG\n?!\ncat", None),
        ("words.txt.gz", "\ufeffdog\n\nHot Dog\nDOG\n?!\ncat\n", None),
        ("words.txt.bz2", "dog\n\nHot Dog\nDOG\n?!\ncat\n", None),
        ("words.json", ["dog", "", "Hot Dog", "DOG", "?!", "cat"], None),
        ("words.json.gz", {"dog": 2, "": 2, "Hot Dog": 2.0, "DOG": 1, "?!": 2, "cat": 2}, 2.0),
        ("words.csv", 'query,score\ndog,2\n,2\n"Hot Dog",2\nDOG,1\n?!,2\ncat,2\n', 2.0),
        ("words.tsv", "id\tquery\n1\tdog\n2\t\n3\tHot Dog\n4\tDOG\n5\t?!\n6\tcat\n", None),
        ("words.parquet", pa.table({"query": ["dog", None, "Hot Dog", "DOG", "?!", "cat"], "score": [2] * 6}), 2.0),
        ("words.parquet", pa.table([WORDS.dictionary_encode()], ["query"]), None),
    ],
)  # fmt: skip
def test_every_kind_of_file_gives_the_same_list(tmp_path: Path, name: str, content: Any, score: float | None) -> None:
    rows, manifest = imported(write(tmp_path / name, content), out=tmp_path / "out.parquet")
    assert rows == [{"query": q, "origins": ["words"], "score": [score]} for q in ("dog", "Hot Dog", "cat")]
    assert manifest["count"] == 3
    assert manifest["dropped"] == {"blank": 1, "no_tokens": 1, "duplicate": 1}
    assert manifest["source"] == [{"path": str(tmp_path / name), "queries": 6}]


def test_words_that_look_like_other_values_stay_words(tmp_path: Path) -> None:
    path = write(tmp_path / "w.csv", "query\nnull\ntrue\n12\nNaN\n2020-01-01\n")
    rows, _ = imported(path, out=tmp_path / "out.parquet")
    assert [row["query"] for row in rows] == ["null", "true", "12", "NaN", "2020-01-01"]


def test_several_files_share_entries_and_keep_all_origins(tmp_path: Path) -> None:
    a = write(tmp_path / "a.txt", "dog\ncat\n")
    b = write(tmp_path / "b.json", {"Dog": 5, "cow": 1})
    rows, _ = imported(a, b, out=tmp_path / "both.parquet")
    assert rows == [
        {"query": "dog", "origins": ["a", "b"], "score": [None, 5.0]},
        {"query": "cat", "origins": ["a"], "score": [None]},
        {"query": "cow", "origins": ["b"], "score": [1.0]},
    ]
    c = write(tmp_path / "c.txt", "horse\n")
    again, _ = imported(str(tmp_path / "both.parquet"), c, out=tmp_path / "more.parquet")
    assert again == [*rows, {"query": "horse", "origins": ["c"], "score": [None]}]


def test_the_column_can_be_named(tmp_path: Path) -> None:
    rows, _ = imported(write(tmp_path / "w.csv", "word,n\ndog,1\n"), out=tmp_path / "out.parquet", column="word")
    assert [row["query"] for row in rows] == ["dog"]


ROWS = st.lists(
    st.tuples(st.text(st.sampled_from("aAbß -?\u0301"), max_size=4), st.sampled_from("xy"), st.integers(0, 9))
)


@given(ROWS)
def test_merging_keeps_each_normal_form_once_and_accounts_for_the_rest(rows: list[tuple[str, str, int]]) -> None:
    given_rows = [dict(zip(CANDIDATES.names, row, strict=True)) for row in rows]
    table, dropped = merge_candidates(pa.Table.from_pylist(given_rows, schema=CANDIDATES))
    expected: dict[str, tuple[str, dict[str, float]]] = {}
    for query, origin, score in rows:
        if normalize(query):
            expected.setdefault(normalize(query), (query.strip(), {}))[1].setdefault(origin, float(score))
    assert table.to_pylist() == [
        {"query": query, "origins": list(scores), "score": list(scores.values())} for query, scores in expected.values()
    ]
    assert table.num_rows + sum(dropped.values()) == len(rows)
    assert dropped["blank"] == sum(not query.strip() for query, _, _ in rows)


def test_the_same_input_gives_the_same_bytes_and_the_manifest_knows_them(tmp_path: Path) -> None:
    words = [f"word {n}" for n in range(1_000)]
    random.Random(1).shuffle(words)
    path = write(tmp_path / "w.txt", "\n".join(words))
    outs = [tmp_path / "1.parquet", tmp_path / "2.parquet"]
    manifests = [import_allowlist(path, str(out)) for out in outs]
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert manifests[0] == manifests[1] == json.loads(Path(manifest_path(str(outs[0]))).read_text())
    loaded = Allowlist.load(str(outs[0]))
    assert loaded.queries == words
    assert len(loaded) == 1_000
    assert loaded.sha256 == manifests[0]["sha256"] == hashlib.sha256(outs[0].read_bytes()).hexdigest()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"1.manifest.json", "1.parquet", "2.manifest.json", "2.parquet", "w.txt"}


def test_any_filesystem_will_do(tmp_path: Path) -> None:
    import_allowlist(write(tmp_path / "w.txt", "dog\n"), "memory://lists/queries.parquet")
    assert Allowlist.load("memory://lists/queries.parquet").queries == ["dog"]
    assert json.loads(fsspec.filesystem("memory").cat("/lists/queries.manifest.json"))["count"] == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "no such file"),
        ("a.docx", b"", "unknown file format"),
        ("a.txt", b"", "no usable query"),
        ("a.txt", b"\n?!\n", "no usable query"),
        ("a.txt", b"dog\nca\xff\n", "line 2 is not UTF-8 .byte 0xff."),
        ("a.txt.gz", gzip.compress(b"dog\n" * 9, mtime=0)[:-9], "truncated"),
        ("a.txt.bz2", bz2.compress(b"dog\n" * 9)[:-9], "truncated"),
        ("a.txt.gz", b"dog\n", "cannot be read"),
        ("a.json", b"[1]", "list of strings"),
        ("a.json", b'{"a": "b"}', "list of strings"),
        ("a.json", b'["dog"', "not JSON .line 1"),
        ("a.json", b"[" * 100_000, "list of strings|not JSON"),
        ("a.json", b'["\\ud800"]', "surrogate"),
        ("a.parquet", b"PAR1", "not a Parquet file"),
        ("a.csv", b"", "empty"),
        ("a.csv", b"word\ndog\n", "needs exactly one column 'query'; its columns are word"),
        ("a.csv", b"query,query\ndog,cat\n", "needs exactly one column 'query'"),
        ("a.csv", b"query,b\ndog\n", "Expected 2 columns"),
        ("a.csv", b"query,score\ndog,many\n", "not numbers"),
        ("nowhere://b.txt", None, "cannot be opened"),
    ],
)
def test_wrong_inputs_give_one_clear_line(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = name if "://" in name else str(tmp_path / name)
    if content is not None:
        Path(path).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        import_allowlist(path, str(tmp_path / "out.parquet"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.parquet").exists()


def test_wrong_columns_of_parquet(tmp_path: Path) -> None:
    numbers = write(tmp_path / "n.parquet", pa.table({"query": [1, 2]}))
    with pytest.raises(InputError, match="holds int64, not text"):
        import_allowlist(numbers, str(tmp_path / "out.parquet"))
    uneven = write(tmp_path / "u.parquet", pa.table([["a"], [["x"]], [[]]], schema=SCHEMA))
    with pytest.raises(InputError, match="as many scores as origins"):
        import_allowlist(uneven, str(tmp_path / "out.parquet"))


def test_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write"):
        import_allowlist(write(tmp_path / "w.txt", "dog"), str(tmp_path / "no" / "out.parquet"))


def test_a_file_that_is_not_an_allowlist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        Allowlist.load(str(tmp_path / "no.parquet"))
    with pytest.raises(InputError, match="not a Parquet file"):
        Allowlist.load(write(tmp_path / "w.txt", "dog"))
    with pytest.raises(InputError, match="needs a column 'origins'"):
        Allowlist.load(write(tmp_path / "w.parquet", pa.table({"query": ["dog"]})))
    with pytest.raises(InputError, match="has no queries"):
        Allowlist.load(write(tmp_path / "e.parquet", SCHEMA.empty_table()))
    with pytest.raises(InputError, match="1 null queries"):
        Allowlist.load(write(tmp_path / "z.parquet", pa.table([[None], [["x"]], [[1.0]]], schema=SCHEMA)))


def test_scores_beyond_what_a_double_counts_are_rounded(tmp_path: Path) -> None:
    for source in (
        write(tmp_path / "a.csv", f"query,score\ndog,{2**53 + 1}\n"),
        write(tmp_path / "b.parquet", pa.table({"query": ["dog"], "score": pa.array([2**64 - 1], pa.uint64())})),
    ):
        rows, _ = imported(source, out=tmp_path / "out.parquet")
        assert rows[0]["score"][0] in (2.0**53, 2.0**64)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"dog": 1' + b"0" * 400 + b"}", "a.json: the score of 'dog' is above 1.8e308"),
        (b'{"dog": ' + b"1" * 5_000 + b"}", "a.json: a number has thousands of digits"),
    ],
)
def test_numbers_too_large_are_one_clear_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=message):
        import_allowlist(str(tmp_path / "a.json"), str(tmp_path / "out.parquet"))


@pytest.mark.parametrize(
    ("content", "line"),
    [('query\n"abc\ndef\n', 2), ('query\ndog\n"abc\n"def"\nghi\n', 3), ('query\n"the "best" dog"\n', 2)],
)
def test_a_quote_that_swallows_rows_is_refused(tmp_path: Path, content: str, line: int) -> None:
    with pytest.raises(InputError, match=f"a.csv: line {line}: a quoted field does not end"):
        import_allowlist(write(tmp_path / "a.csv", content), str(tmp_path / "out.parquet"))


@pytest.mark.parametrize("quote", ['"', ""])
def test_long_fields_are_read(tmp_path: Path, quote: str) -> None:
    long = "word " * 500_000
    (tmp_path / "a.csv").write_text(f"query,note\ndog,{quote}{long}{quote}\ncat,x\n")
    assert read_list(str(tmp_path / "a.csv"))["query"].to_pylist() == ["dog", "cat"]


def test_quotes_that_end_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'query,n\n"a ""big"" dog",1\n"two\nlines",2\n5" pipe,3\r\n')
    rows, _ = imported(path, out=tmp_path / "out.parquet")
    assert [row["query"] for row in rows] == ['a "big" dog', "two\nlines", '5" pipe']


def test_any_damage_to_a_parquet_file_is_one_clear_line(tmp_path: Path) -> None:
    good = Path(write(tmp_path / "a.parquet", pa.table({"query": [f"word {n}" for n in range(3_000)]}))).read_bytes()
    rng = random.Random(1)
    messages = []
    for _ in range(150):
        bad = bytearray(good)
        for _ in range(rng.randint(1, 5)):
            low = len(bad) - 400 if rng.random() < 0.6 else 0
            bad[rng.randrange(low, len(bad))] = rng.randrange(256)
        (tmp_path / "a.parquet").write_bytes(bad)
        for read in (read_list, Allowlist.load, lambda path: list(read_captions(path, "query"))):
            try:
                read(str(tmp_path / "a.parquet"))
            except InputError as error:
                messages.append(str(error))
    assert len(messages) > 100
    assert [line for line in messages if str(tmp_path / "a.parquet") not in line or "\n" in line] == []


def not_utf8() -> pa.Array:
    offsets = pa.array([0, 3, 6], pa.int32()).buffers()[1]
    return pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"\xff\xfeadog")])


def test_text_that_is_not_utf8_is_refused_with_the_name_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", pa.table({"query": not_utf8()}))
    for read in (read_list, lambda path: list(read_captions(path, "query"))):
        with pytest.raises(InputError, match=r"a\.parquet: .*UTF8"):
            read(path)


@pytest.mark.parametrize("values", [[1, 2], [["a"]], [{"a": "dog"}], [b"dog"], [1.5]])
def test_captions_that_are_not_text_are_refused_with_their_type(tmp_path: Path, values: list[Any]) -> None:
    table = pa.table({"caption": values})
    kind = str(table.schema.field("caption").type).split("<")[0]
    with pytest.raises(InputError, match=f"column 'caption' holds {kind}.*, not text"):
        list(read_captions(write(tmp_path / "c.parquet", table)))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_captions_of_any_type_of_text_are_read(tmp_path: Path, kind: pa.DataType) -> None:
    path = write(tmp_path / "c.parquet", pa.table({"caption": pa.array(["dog", None], kind)}))
    assert [batch.to_pylist() for batch in read_captions(path)] == [["dog", None]]


def test_a_list_does_not_overwrite_its_inputs(tmp_path: Path) -> None:
    words = write(tmp_path / "w.txt", "dog\ncat\n")
    table = write(tmp_path / "t.parquet", pa.table({"query": ["dog"]}))
    facts = str(tmp_path / "q.manifest.json")
    Path(facts).write_text('["dog"]')
    (tmp_path / "link.txt").symlink_to(words)
    for source, out in ((words, words), (table, table), (str(tmp_path / "link.txt"), words), (facts, "q.parquet")):
        before = Path(source).read_bytes()
        with pytest.raises(InputError, match="would overwrite this input"):
            import_allowlist(source, str(tmp_path / out))
        assert Path(source).read_bytes() == before
    import_allowlist(words, table)
    import_allowlist([table, words], table)
    assert Allowlist.load(table).queries == ["dog", "cat"]


@pytest.mark.parametrize(("origins", "score"), [(None, None), ([None], [1.0])])
def test_entries_without_an_origin_are_refused_not_lost(tmp_path: Path, origins: Any, score: Any) -> None:
    table = pa.table([["dog", "cat"], [origins, ["x"]], [score, [1.0]]], schema=SCHEMA)
    with pytest.raises(InputError, match=r"a\.parquet: .*origin"):
        import_allowlist(write(tmp_path / "a.parquet", table), str(tmp_path / "out.parquet"))


def test_an_unpaired_surrogate_is_refused_with_the_name_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'["\\ud800"]')
    with pytest.raises(InputError, match=r"a\.json: a query contains an unpaired surrogate"):
        import_allowlist(str(tmp_path / "a.json"), str(tmp_path / "out.parquet"))


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
def test_a_small_list_that_unpacks_to_gigabytes_is_one_line(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("queries.list_files.MAX_LIST_BYTES", 100_000)
    pack = {".gz": "gzip", ".bz2": "bz2", ".xz": "lzma"}[suffix]
    path = tmp_path / f"bomb.txt{suffix}"
    path.write_bytes(__import__(pack).compress(b"a\n" * 100_000))
    with pytest.raises(InputError, match="larger than 100,000 bytes when unpacked"):
        read_list(str(path))


def test_a_table_of_very_many_columns_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "wide.csv").write_bytes(b"query" + b",x" * 1_000_000 + b"\n")
    with pytest.raises(InputError, match="1,000,001 columns; the limit is 1,000"):
        read_list(str(tmp_path / "wide.csv"))


@pytest.mark.timeout(60)
def test_pipes_and_devices_are_no_lists(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "endless.txt").symlink_to("/dev/zero")
    for name in ("pipe.txt", "endless.txt"):
        with pytest.raises(InputError, match="not a regular file"):
            read_list(str(tmp_path / name))
