"""`wit sources check`: what the first rows of each source are."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.recorded_web import make_project

from pipeline.cli.main import main


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_every_source_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_project(tmp_path)
    rows = {"URL": ["http://a.example/1.jpg"] * 3, "TEXT": ["A dog on the grass", "nothing here", ""], "n": [1, 2, 3]}
    pq.write_table(pa.table(rows), tmp_path / "list.parquet")
    extra = '[[sources]]\nkind = "url-table"\npreset = "laion2b"\npaths = ["list.parquet"]\nkeep = ["n"]\n[balance]'
    config.write_text(config.read_text().replace("[balance]", extra))
    assert main(["sources", "check", "-c", str(config)]) == 0
    shown = capsys.readouterr().out
    assert "warc web-*.warc.gz: 3 files" in shown
    assert "url-table laion2b: 1 files" in shown
    assert "rows read      3, of which 2 (66.7%) have a URL and a text" in shown
    assert "no_caption             1 (33.3%)" in shown
    assert "match a query  1 (50.0%)" in shown
    assert "columns        URL, TEXT, n" in shown
    assert "kept           n" in shown
    assert "    A dog on the grass\n      http://a.example/1.jpg" in shown
    assert not (tmp_path / "work/pairs").exists()
    (tmp_path / "queries.parquet").unlink()
    assert main(["sources", "check", "-c", str(config), "--rows", "5"]) == 0
    assert "matches are not counted" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["list.csv", "list.tsv.gz", "list.jsonl", "list.tar", "beside.tar"])
def test_the_names_that_a_table_or_tar_has_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    config = make_project(tmp_path)
    row = {"url": "http://a.example/1.jpg", "caption": "a dog", "similarity": "0.3"}
    kind = "webdataset" if name.endswith(".tar") else "url-table"
    if kind == "webdataset":
        beside = {"1.json": json.dumps(row).encode()} if name == "list.tar" else {}
        write_tar(tmp_path / name, {"1.jpg": b"x", "1.txt": b"a dog"} | beside)
        pq.write_table(
            pa.table({"key": ["1"]} | {key: [value] for key, value in row.items()}), tmp_path / "beside.parquet"
        )
    elif "jsonl" in name:
        (tmp_path / name).write_text(json.dumps(row) + "\n")
    else:
        lines = "".join(("," if "csv" in name else "\t").join(line) + "\n" for line in (row, row.values())).encode()
        (tmp_path / name).write_bytes(gzip.compress(lines) if name.endswith(".gz") else lines)
    text = config.read_text().replace(
        'kind = "warc"\npaths = ["web-*.warc.gz"]', f'kind = "{kind}"\npaths = ["{name}"]'
    )
    config.write_text(text)
    assert main(["sources", "check", "-c", str(config)]) == 0
    shown = capsys.readouterr().out
    assert f"columns        {'key, ' if name == 'beside.tar' else ''}url, caption, similarity" in shown
    assert "match a query  1 (100.0%)" in shown


@pytest.mark.parametrize(
    ("name", "content", "columns"),
    [
        ("a.jsonl", b"5\n", None),
        ("a.jsonl", b'[{"a": 1}]\n', None),
        ("a.jsonl", b'"abc"\n', None),
        ("a.csv", "url,caption\nhttp://a.example/1.jpg,a dog\n".encode("utf-16"), "url, caption"),
        ("a.csv", b"\r\nurl,caption\rhttp://a.example/1.jpg,a dog\r", "url, caption"),
        ("a.csv.gz", gzip.compress(b"url,caption\n" + bytes(200_000))[:-60], "url, caption"),
        ("a.tar", b"[1, 2]", None),
        ("a.tar", b"5", None),
    ],
)
def test_a_first_row_that_names_no_columns_is_only_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, columns: str | None
) -> None:
    config = make_project(tmp_path)
    if name == "a.tar":
        write_tar(tmp_path / name, {"1.json": content, "1.jpg": b"x", "1.txt": b"a dog"})
    else:
        (tmp_path / name).write_bytes(content)
    kind = "webdataset" if name == "a.tar" else "url-table"
    old = 'kind = "warc"\npaths = ["web-*.warc.gz"]'
    names = "" if kind == "webdataset" else '\nurl = "url"\ncaption = "caption"'
    config.write_text(config.read_text().replace(old, f'kind = "{kind}"\npaths = ["{name}"]{names}'))
    main(["sources", "check", "-c", str(config)])
    shown = capsys.readouterr().out
    assert "rows read" in shown
    assert ("columns  " in shown) == (columns is not None)
    assert columns is None or f"columns        {columns}" in shown


FILTERS = """
[filters]
min_words = 3
urls = true
block_hosts = ["b.example"]
languages = ["en", "und"]
max_images_per_caption = 2
max_pairs_per_family = 4
single_colour = true
max_urls_per_image = 5
[[filters.python]]
call = "rules:keep"
"""


def test_each_filter_shows_what_it_drops_also_where_that_is_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_project(tmp_path)
    captions = ["a dog", "www.dog.example dog", "the dog of b", "a dog shouts"]
    captions += ["every dog has it"] * 3 + ["every dog has it too"] * 2
    captions += [f"dog bed number {i}, washable and blue" for i in range(6)]
    urls = [f"http://{'b' if 'of b' in caption else 'a'}.example/{i}.jpg" for i, caption in enumerate(captions)]
    pq.write_table(pa.table({"url": urls[:9], "caption": captions[:9]}), tmp_path / "one.parquet")
    # The pairs of the second source count with those of the first: the same pairs once, others of a family.
    pq.write_table(pa.table({"url": urls[6:], "caption": captions[6:]}), tmp_path / "two.parquet")
    text = config.read_text().replace(
        'kind = "warc"\npaths = ["web-*.warc.gz"]', 'kind = "url-table"\npaths = ["one.parquet"]'
    )
    text = text.replace("[balance]", '[[sources]]\nkind = "url-table"\npaths = ["two.parquet"]\n[balance]')
    config.write_text(text + FILTERS)
    (tmp_path / "rules.py").write_text(
        "def keep(pairs):\n    return ['shouts' not in t for t in pairs['caption'].to_pylist()], 'loud'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["sources", "check", "-c", str(config)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    first, second = lines[: lines.index("url-table two.parquet: 1 files")], lines
    for line in (
        'block_hosts = ["b.example"] 1 (11.1%) blocked_host',
        "urls = true 1 (11.1%) url_caption",
        "min_words = 3 1 (11.1%) too_few_words",
        'languages = ["en","und"] 0 (0.0%) language',
        "python rules:keep 1 (11.1%) python:loud",
    ):
        assert line in first
    assert "python rules:keep 0 (0.0%)" in second
    pool = lines[lines.index("over the whole pool, estimated on these 11 pairs alone (the whole pool has more)") :]
    assert pool[1:3] == ["max_images_per_caption = 2 3 (27.3%) frequent_caption", "3 x every dog has it"]
    assert pool[3] == "max_pairs_per_family = 4 2 (25.0%) near_equal_caption"
    assert pool[-1] == "decided once there are images: single_colour = true, max_urls_per_image = 5"


def test_filters_over_the_pool_bear_sources_without_a_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_project(tmp_path)
    pq.write_table(pa.table({"url": ["http://a.example/1"], "caption": ["xyz"]}), tmp_path / "one.parquet")
    text = config.read_text().replace(
        'kind = "warc"\npaths = ["web-*.warc.gz"]', 'kind = "url-table"\npaths = ["one.parquet"]'
    )
    config.write_text(text + "[filters]\nmax_images_per_caption = 2\nmax_pairs_per_family = 4\n")
    assert main(["sources", "check", "-c", str(config)]) == 0
    assert "estimated on these 0 pairs alone" in capsys.readouterr().out


def test_a_source_that_cannot_be_read_is_named_after_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_project(tmp_path)
    (tmp_path / "list.csv").write_text("address,text\nhttp://a.example/1.jpg,a dog\n")
    extra = '[[sources]]\nkind = "url-table"\npaths = ["list.csv"]\n[balance]'
    config.write_text(config.read_text().replace("[balance]", extra))
    assert main(["sources", "check", "-c", str(config)]) == 1
    shown = capsys.readouterr().out
    assert "PROBLEM" in shown
    assert "no column 'url'; its columns are 'address', 'text'" in shown
    assert main(["sources", "check", "-c", str(config), "--rows", "0"]) == 2


def test_several_allowlists_are_one(tmp_path: Path) -> None:
    config = make_project(tmp_path, count=30, parts=1)
    main(["build", "-c", str(config), "--quiet", "--to", "pairs"])
    alone = pairs_of(tmp_path)
    for name, words in (("one", ["dog", "tree"]), ("two", ["Dog", "river", "cat"])):
        (tmp_path / f"{name}.txt").write_text("\n".join(words))
        main(["queries", "import", str(tmp_path / f"{name}.txt"), "--out", str(tmp_path / f"{name}.parquet")])
    config.write_text(config.read_text().replace('path = "queries.parquet"', 'path = ["one.parquet", "two.parquet"]'))
    assert main(["build", "-c", str(config), "--quiet", "--to", "pairs"]) == 0
    merged = pq.read_table(tmp_path / "work/allowlist/merged.parquet")
    assert merged["query"].to_pylist() == ["dog", "tree", "river", "cat"]
    assert merged["origins"].to_pylist()[0] == ["one", "two"]
    words = ("dog", "tree", "river", "cat")
    assert set(pairs_of(tmp_path)) == {text for text in alone if any(word in text for word in words)}


def pairs_of(folder: Path) -> list[str]:
    return [
        text
        for path in (folder / "work/pairs").glob("*.parquet")
        for text in pq.read_table(path)["caption"].to_pylist()
    ]
