"""`wit sources check`: what the first rows of each source are."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.recorded_web import make_project

from pipeline.cli.main import main


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
