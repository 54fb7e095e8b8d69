"""From the paths of the config to the candidates of a file."""

import os
import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pydantic import ValidationError
from support.warc_files import gzipped, image_link, page, rows_of, wat

from pipeline.config import PairsConfig
from pipeline.config.sources import SourceConfig
from pipeline.errors import ConfigError, UserError
from pipeline.sources import CANDIDATES, expand_paths, file_versions, read_source

ROW = ("http://a.example/dir/a.jpg", "A dog")


def source(kind: str, **options: object) -> SourceConfig:
    return SourceConfig.model_validate({"kind": kind, "paths": ["x"], **options})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b/2.csv", "b/1.csv", "b/c/3.csv", "a.warc.gz", "odd [1].csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"url,caption\n{ROW[0]},{ROW[1]}\n")
    return tmp_path


def names(folder: Path, *patterns: str) -> list[str]:
    return [str(Path(path).relative_to(folder)) for path in expand_paths(patterns, folder)]


def test_patterns_become_sorted_files_each_once(folder):
    assert names(folder, "b/*.csv") == ["b/1.csv", "b/2.csv"]
    assert names(folder, "b/**/*.csv", "b/2.csv") == ["b/1.csv", "b/2.csv", "b/c/3.csv"]
    assert names(folder, str(folder / "a.*"), f"file://{folder}/b/1.csv") == ["a.warc.gz", "b/1.csv"]
    assert names(folder, "odd [1].csv") == ["odd [1].csv"]
    assert names(folder, "*") == ["a.warc.gz", "odd [1].csv"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("missing/*.csv", r"sources\.paths: missing/\*\.csv matches no file \(looked for /.*/missing/\*\.csv\)"),
        ("nothing.csv", r"sources\.paths: nothing\.csv matches no file"),
        ("b", r"sources\.paths: b matches no file .*; use b/\* for the files of a folder"),
        ("nosuch://bucket/*", "sources.paths: nosuch://bucket/*: "),
    ],
)
def test_a_pattern_without_a_file_is_named(folder, pattern, message):
    with pytest.raises(ConfigError, match=message if "nosuch" not in pattern else "nosuch://bucket"):
        expand_paths(["b/*.csv", pattern], folder)


def test_links_to_files_are_files(folder):
    (folder / "link.csv").symlink_to(folder / "b/1.csv")
    (folder / "dead.csv").symlink_to(folder / "nowhere")
    (folder / "folder.csv").symlink_to(folder / "b")
    assert names(folder, "*.csv") == ["link.csv", "odd [1].csv"]


def test_paths_on_other_file_systems_keep_their_scheme(tmp_path):
    files = MemoryFileSystem()
    for name in ("/pool/2.jsonl", "/pool/1.jsonl"):
        files.pipe_file(name, b'{"url": "http://a.example/dir/a.jpg", "caption": "A dog"}\n')
    paths = expand_paths(["memory://pool/*.jsonl"], tmp_path)
    assert paths == ["memory:///pool/1.jsonl", "memory:///pool/2.jsonl"]
    rows, _ = rows_of(read_source(source("url-table"), paths[0], PairsConfig()))
    assert [row[:2] for row in rows] == [ROW]
    assert expand_paths(["zip://a.csv::memory://pool/b.zip"], tmp_path) == ["zip://a.csv::memory://pool/b.zip"]


def test_no_version_of_what_is_not_there(folder: Path) -> None:
    assert file_versions(str(folder / "absent.csv")) == file_versions(str(folder / "*.absent")) == []


def test_a_failing_store_is_not_another_version(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object, path: str, **keys: object) -> None:
        raise OSError("503")

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.info", fail)
    with pytest.raises(UserError, match="503"):
        file_versions(str(folder / "b/1.csv"))


@pytest.mark.parametrize("name", ["b/1.csv", "b", "b/*.csv", "odd [1].csv"])
def test_another_version_of_a_file_shows_though_its_size_is_the_same(folder: Path, name: str) -> None:
    before = file_versions(str(folder / name))
    assert file_versions(str(folder / name)) == before
    changed = folder / (name if name.endswith("].csv") else "b/1.csv")
    os.utime(changed, (1, 1))
    after = file_versions(str(folder / name))
    assert [v[:2] for v in after] == [v[:2] for v in before]
    assert sum(a != b for a, b in zip(after, before, strict=True)) == 1


def test_each_kind_of_source_gives_the_same_columns(tmp_path):
    (tmp_path / "t.csv").write_text(f"url,caption\n{ROW[0]},{ROW[1]}\n")
    (tmp_path / "t.warc.gz").write_bytes(gzipped([page("<img src=a.jpg alt='A dog'>")]))
    (tmp_path / "t.wat").write_bytes(wat([image_link("a.jpg", alt="A dog")]))
    for kind, name in (("url-table", "t.csv"), ("warc", "t.warc.gz"), ("wat", "t.wat")):
        batches = list(read_source(source(kind), str(tmp_path / name), PairsConfig()))
        assert [b.candidates.schema for b in batches] == [CANDIDATES]
        rows, dropped = rows_of(iter(batches))
        assert ([row[:2] for row in rows], dropped) == ([ROW], Counter())


def test_a_file_that_is_not_there(tmp_path):
    for path in (tmp_path / "t.csv", tmp_path):
        with pytest.raises(UserError, match=f"{path}: "):
            list(read_source(source("warc"), str(path), PairsConfig()))


def test_columns_without_a_header_must_be_numbers():
    assert source("url-table", header=False, url="2", caption="1").url == "2"
    for bad in ({"url": "2"}, {"url": "url", "caption": "1"}, {"url": "2", "caption": "0"}):
        with pytest.raises(ValidationError, match=r'must be a column number, counted from "1"'):
            source("url-table", header=False, **bad)


def test_batches_of_a_long_table_are_bounded(tmp_path):
    lines = "".join(f"http://a.example/{n},caption {n}\n" for n in range(40_000))
    (tmp_path / "t.csv").write_text("url,caption\n" + lines)
    sizes = [b.candidates.num_rows for b in read_source(source("url-table"), str(tmp_path / "t.csv"), PairsConfig())]
    assert sum(sizes) == 40_000
    assert max(sizes) <= 16_384


def test_the_examples_of_the_documentation_are_valid():
    page_of_docs = (Path(__file__).parents[3] / "docs" / "sources.md").read_text()
    examples = re.findall(r"```toml\n(.*?)```", page_of_docs, re.DOTALL)
    kinds = [
        SourceConfig.model_validate(table).kind for toml in examples for table in tomllib.loads(toml).get("sources", [])
    ]
    assert kinds == ["warc", "warc", "wat", "common-crawl", "webdataset", "url-table", "url-table", "url-table"]
