"""`wit queries`: what a user types and reads."""

import argparse
import shlex
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.wiki_files import dump_xml, page, wordnet_folder

from pipeline.cli import queries as cli_queries
from pipeline.errors import ConfigError, UserError
from queries.allowlist import Allowlist
from queries.normal_form import normalize


def wit(command: str) -> int:
    parser = argparse.ArgumentParser()
    cli_queries.add_parser(parser.add_subparsers())
    args = parser.parse_args(["queries", *shlex.split(command)])
    return int(args.func(args))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("words.txt").write_text("dog\nDog\n\n?!\nhot dog\n12\nthe\n")
    wordnet_folder(tmp_path / "dict", {"noun": ["dog", "ice_cream"]})
    Path("dump.xml").write_bytes(dump_xml([page("Dog", "the dog eats the ice cream " * 9)]))
    captions = ["the dog", "the cat", "a hot dog", "Dog's", None]
    pq.write_table(pa.table({"caption": captions}), "pairs.parquet")
    return tmp_path


def test_import_says_what_became_of_the_lines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert wit("import words.txt --out q.parquet") == 0
    assert capsys.readouterr().out == "q.parquet: 4 queries (dropped: 1 blank, 1 no tokens, 1 duplicate)\n"


def test_build_says_what_each_source_gave_and_what_is_missing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert wit("build --dump dump.xml --wordnet dict --size 5 --min-count 9 --out q.parquet --quiet") == 0
    out = capsys.readouterr().out
    assert out.startswith("q.parquet: 5 queries\n")
    assert "unigram" in out
    assert "lacks: no article titles by page views (--pageviews)" in out
    assert set(Allowlist.load("q.parquet").queries) == {"dog", "ice cream", "the", "eats", "cream"}
    assert Path("q.counts").is_dir()


def test_the_starter_list_says_what_it_lacks(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wordfreq")
    assert wit("build --starter --wordnet dict --size 1000 --out q.parquet") == 0
    assert "q.parquet: 1,000 queries" in capsys.readouterr().out
    queries = Allowlist.load("q.parquet").queries
    assert {"dog", "ice cream", "the"} <= set(queries)
    assert not any("00" in query for query in queries)
    assert [query for query in queries if " " in normalize(query)] == ["ice cream"]
    monkeypatch.setitem(sys.modules, "wordfreq", None)
    with pytest.raises(ValueError, match=r"\.\[starter\]"):
        wit("build --starter --wordnet dict --out q.parquet")


@pytest.mark.parametrize(
    "command", ["build --starter --out q", "build --starter --wordnet dict --dump dump.xml --out q"]
)
def test_starter_and_dump_exclude_each_other(folder: Path, command: str) -> None:
    with pytest.raises(ConfigError, match="--starter"):
        wit(command)


def test_a_place_that_is_not_there_is_refused_before_the_work(folder: Path) -> None:
    with pytest.raises(ConfigError, match="folder nowhere does not exist"):
        wit("build --dump dump.xml --out nowhere/q.parquet")


@pytest.mark.parametrize("option", ["--size 0", "--size many", "--min-count -1", "--bigrams 1.5"])
def test_numbers_are_checked(folder: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        wit(f"build --wordnet dict --out q.parquet {option}")
    assert option.split()[0] in capsys.readouterr().err


def test_lint_reports_and_fixes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wit("import words.txt --out q.parquet")
    capsys.readouterr()
    assert wit("lint --allowlist q.parquet") == 0
    out = capsys.readouterr().out
    assert "digits             1  '12'" in out
    assert "not measured" in out
    assert Allowlist.load("q.parquet").queries == ["dog", "hot dog", "12", "the"]
    wit("lint --allowlist q.parquet --captions pairs.parquet --max-share 0.3 --fix --keep digits --out fixed.parquet")
    assert "too_common         2  'dog' 60.0%, 'the' 40.0%" in capsys.readouterr().out
    assert Allowlist.load("fixed.parquet").queries == ["hot dog", "12"]
    wit("lint --allowlist q.parquet --fix")
    assert Allowlist.load("q.parquet").queries == ["dog", "hot dog", "the"]
    with pytest.raises(UserError, match="would leave no query"):
        wit("lint --allowlist q.parquet --captions pairs.parquet --max-share 0 --fix")


def test_a_file_that_is_named_twice_counts_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("views").write_text("xx.wikipedia Dog 1 desktop 5 A5\n")
    wit("build --dump dump.xml ./dump.xml --pageviews views views --size 9 --min-count 9 --out q.parquet --quiet")
    rows = {row["query"]: row for row in Allowlist.load("q.parquet").table.to_pylist()}
    assert rows["dog"]["origins"] == ["unigram", "title"]
    assert rows["dog"]["score"] == [9.0, 5.0]


def test_inputs_are_not_overwritten(folder: Path) -> None:
    wit("import words.txt --out q.parquet")
    for command in (
        "build --dump dump.xml --out dump.xml",
        "lint --allowlist q.parquet --captions words.txt --column query --fix --out words.txt",
    ):
        with pytest.raises(ValueError, match="would overwrite this input"):
            wit(command)


def test_show_explains_an_entry(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wit("import words.txt --out q.parquet")
    capsys.readouterr()
    assert wit("show 'HOT DOG' --allowlist q.parquet --pairs 'pair*.parquet'") == 0
    assert capsys.readouterr().out.splitlines() == [
        "'HOT DOG' is matched as 'hot dog'",
        "  entry 1, spelled 'hot dog': words",
        "  a caption with it also matches: 'dog'",
        "  found in 1 of 5 captions (20.00%)",
        "    a hot dog",
    ]
    wit("show cow --allowlist q.parquet")
    assert "not an entry" in capsys.readouterr().out
    wit("show '?!' --allowlist q.parquet")
    assert "never matches" in capsys.readouterr().out


def test_a_table_without_captions_is_one_clear_line(folder: Path) -> None:
    wit("import words.txt --out q.parquet")
    with pytest.raises(ValueError, match="needs exactly one column 'text'"):
        wit("show dog --allowlist q.parquet --pairs pairs.parquet --column text")
