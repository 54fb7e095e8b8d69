"""Counting a dump: the same counts as one by one, however it is cut; resumed where it stopped."""

import bz2
import json
import random
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.wiki_files import dump_xml, multistream, page, wordnet_folder

from pipeline.allowlist import count as stage
from pipeline.allowlist.build import Inputs, build_allowlist
from pipeline.allowlist.count import WikipediaInputs, count_wikipedia, find_site
from pipeline.beam.runner import parse_beam_options
from pipeline.engine.lock import build_lock
from pipeline.engine.progress import Progress
from pipeline.engine.run import Build
from pipeline.engine.workspace import Workspace
from pipeline.errors import ConfigError, UserError
from queries.allowlist import Allowlist
from queries.normal_form import normalize
from queries.origins.titles import title_queries
from queries.recipe import Recipe
from queries.wikipedia.dump import read_site

WORDS = [f"w{n}" for n in range(40)]


def article(n: int) -> str:
    rng = random.Random(n)
    return "\n\n".join(" ".join(rng.choices(WORDS, k=12)) for _ in range(3)) + f" [[ice cream]] {{{{t|hidden{n}}}}}"


PAGES = [
    *[page(f"Article {n}", article(n)) for n in range(30)],
    page("Category:X", "hidden", namespace=14),
    page("Alias", "#REDIRECT [[Article 1]]", redirect=True),
    page("Mercury", "ice cream {{disambig}}"),
]
VIEWS = b"""xx.wikipedia Article_1 1 desktop 5 A5
xx.wikipedia Article_1 1 mobile-web 6 A6
xx.wikipedia Article_2 1 desktop 9 A9
xx.wikipedia Alias null desktop 90 A90
xx.wikipedia Mercury 2 desktop 90 A90
xx.wikipedia Nowhere null desktop 90 A90
yy.wikipedia Article_3 1 desktop 70 A70
"""


def expected_counts() -> tuple[Counter[tuple[str, str]], int]:
    found: Counter[tuple[str, str]] = Counter()
    texts = [article(n).split(" [[")[0] + " ice cream" for n in range(30)] + ["ice cream"]
    for text in texts:
        for line in text.split("\n"):
            words = normalize(line).split()
            found.update((word, "") for word in words)
            found.update(pairwise(words))
    return found, sum(n for (_, second), n in found.items() if not second)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    paths = {name: tmp_path / name for name in ("dump-multistream.xml.bz2", "dump.xml", "views.bz2")}
    paths["dump-multistream.xml.bz2"].write_bytes(multistream(PAGES))
    paths["dump.xml"].write_bytes(dump_xml(PAGES))
    paths["views.bz2"].write_bytes(bz2.compress(VIEWS))
    paths["dict"] = wordnet_folder(tmp_path / "dict", {"noun": ["dog", "ice_cream frozen_dessert", "W1"]})
    return paths


def build_in(folder: Path) -> Build:
    return Build(Workspace(str(folder)), parse_beam_options([]), Progress(None))


def inputs_of(*dumps: Path, views: tuple[Path, ...] = (), min_count: int = 1) -> WikipediaInputs:
    site = find_site([str(path) for path in dumps])
    return WikipediaInputs(
        tuple(map(str, dumps)), tuple(map(str, views)), "xx.wikipedia", site, min_count, max_titles=100
    )


def as_counter(counts: pa.Table) -> Counter[tuple[str, str]]:
    columns = (counts[name].to_pylist() for name in ("first", "second", "count"))
    return Counter({(first, second): n for first, second, n in zip(*columns, strict=True)})


@pytest.mark.parametrize(("name", "part_bytes"), [("dump.xml", 1), ("dump-multistream.xml.bz2", 700)])
def test_counts_are_those_of_the_text_however_the_dump_is_cut(
    tmp_path: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, name: str, part_bytes: int
) -> None:
    monkeypatch.setattr(stage, "_BATCH_CHARS", 300)
    monkeypatch.setattr(stage, "_COUNTS_IN_MEMORY", 50)
    counted = count_wikipedia(build_in(tmp_path / "work"), inputs_of(files[name]), part_bytes)
    expected, words = expected_counts()
    assert as_counter(counted.counts) == expected
    assert counted.words == words
    assert counted.pages == {"inputs": 33, "kept": 30, "namespace": 1, "redirect": 1, "disambiguation": 1}


def test_rare_words_and_bigrams_are_left_out_but_counted(tmp_path: Path, files: dict[str, Path]) -> None:
    counted = count_wikipedia(build_in(tmp_path / "work"), inputs_of(files["dump.xml"], min_count=31))
    expected, words = expected_counts()
    assert as_counter(counted.counts) == Counter({key: n for key, n in expected.items() if n >= 31})
    assert counted.words == words


def test_views_of_articles_are_summed_and_others_dropped(tmp_path: Path, files: dict[str, Path]) -> None:
    counted = count_wikipedia(build_in(tmp_path / "work"), inputs_of(files["dump.xml"], views=(files["views.bz2"],)))
    assert title_queries(counted.views).to_pylist() == [
        {"query": "Article 1", "origin": "title", "score": 11},
        {"query": "Article 2", "origin": "title", "score": 9},
    ]


def test_a_run_that_was_cut_off_goes_on_where_it_stopped(
    tmp_path: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    read_pages = stage.read_pages
    broken = True

    def reading(part: Any) -> Iterator[Any]:
        read.append(part.start)
        if broken and len(read) == 3:
            raise SystemError("killed")
        return read_pages(part)

    monkeypatch.setattr(stage, "read_pages", reading)
    inputs = inputs_of(files["dump-multistream.xml.bz2"])
    with pytest.raises(UserError, match="killed"):
        count_wikipedia(build_in(tmp_path / "work"), inputs, 700)
    broken = False
    first = len(read)
    counted = count_wikipedia(build_in(tmp_path / "work"), inputs, 700)
    assert as_counter(counted.counts) == expected_counts()[0]
    parts = len(set(read))
    assert len(read) - first <= parts - 2
    count_wikipedia(build_in(tmp_path / "work"), inputs, 700)
    assert len(read) - first <= parts - 2
    assert not (tmp_path / "work/.wit/words").exists()


def build(folder: Path, inputs: Inputs, **asked: int) -> tuple[bytes, dict[str, Any]]:
    folder.mkdir()
    out, work = str(folder / "queries.parquet"), str(folder / "work")
    recipe = Recipe(**asked)  # type: ignore[arg-type]
    manifest = build_allowlist(inputs, recipe, out, work=work, options=parse_beam_options([]), progress=Progress(None))
    assert manifest == json.loads((folder / "queries.manifest.json").read_text())
    return (folder / "queries.parquet").read_bytes(), manifest


def test_a_list_of_all_sources_twice(tmp_path: Path, files: dict[str, Path]) -> None:
    inputs = Inputs((str(files["dump-multistream.xml.bz2"]),), (str(files["views.bz2"]),), str(files["dict"]))
    asked = {"size": 30, "min_count": 5, "min_bigram_count": 2, "unigrams": 10, "bigrams": 4}
    one, manifest = build(tmp_path / "1", inputs, **asked)
    other, _ = build(tmp_path / "2", inputs, **asked)
    assert one == other
    assert manifest["count"] == 30
    assert manifest["lacks"] == []
    rows = Allowlist.load(str(tmp_path / "1/queries.parquet")).table.to_pylist()
    entries = {row["query"]: dict(zip(row["origins"], row["score"], strict=True)) for row in rows}
    counts, words = expected_counts()
    assert entries["dog"] == {"wordnet": 1}
    assert entries["W1"] == {"wordnet": 1, "unigram": counts["w1", ""]}
    assert set(entries["ice cream"]) == {"wordnet", "bigram"}
    assert entries["Article 1"] == {"title": 11}
    assert manifest["words"] == words
    assert sum(fared["given"] for fared in manifest["origins"].values()) == 30


def test_a_list_of_another_size_needs_no_new_count(
    tmp_path: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = Inputs((str(files["dump-multistream.xml.bz2"]),), (str(files["views.bz2"]),))
    options, progress = parse_beam_options([]), Progress(None)
    changes: list[dict[str, int]] = [{}, {"size": 9}, {"min_views": 8}, {"min_count": 30, "min_bigram_count": 30}]
    expected = [build(tmp_path / str(n), inputs, **{"size": 30, **change})[0] for n, change in enumerate(changes)]
    for name in ("read_pages", "read_views"):
        monkeypatch.delattr(stage, name)
    for change, same in zip(changes, expected, strict=True):
        out = str(tmp_path / "again.parquet")
        recipe = Recipe(**{"size": 30, **change})  # type: ignore[arg-type]
        build_allowlist(inputs, recipe, out, work=str(tmp_path / "0/work"), options=options, progress=progress)
        assert Path(out).read_bytes() == same


def test_two_counts_at_once_are_refused(tmp_path: Path, files: dict[str, Path]) -> None:
    build = build_in(tmp_path / "work")
    with build_lock(build.workspace), pytest.raises(UserError, match="another build is running"):
        count_wikipedia(build, inputs_of(files["dump.xml"]))


def test_missing_sources_are_listed(tmp_path: Path, files: dict[str, Path]) -> None:
    _, manifest = build(tmp_path / "1", Inputs(wordnet=str(files["dict"])), size=5)
    assert manifest["count"] == 3
    assert len(manifest["lacks"]) == 4
    assert "2 of 5 entries: the sources have no more" in manifest["lacks"][-1]
    inputs = Inputs(page_views=(str(files["views.bz2"]),), project="yy.wikipedia")
    _, manifest = build(tmp_path / "2", inputs, size=5)
    assert any("against a dump" in what for what in manifest["lacks"])


def test_wrong_inputs_are_one_clear_line(tmp_path: Path, files: dict[str, Path]) -> None:
    html = tmp_path / "dump.html"
    html.write_text("<!DOCTYPE html>\n<html>")
    cut = tmp_path / "cut-multistream.xml.bz2"
    cut.write_bytes(files["dump-multistream.xml.bz2"].read_bytes()[:-100])
    (files["dict"] / "index.noun").unlink()
    other = dump_xml(PAGES).replace(b"xxwiki", b"yywiki")
    (tmp_path / "other.xml").write_bytes(other)
    dump, views = str(files["dump.xml"]), str(files["views.bz2"])
    for number, (inputs, message) in enumerate(
        [
            (Inputs((str(html),)), "dump.html: not a MediaWiki XML dump"),
            (Inputs((str(cut),)), "cut-multistream.xml.bz2: truncated"),
            (Inputs((dump, str(tmp_path / "other.xml"))), "dumps of different wikis"),
            (Inputs((dump,), (views,), project="zz.wikipedia"), "no views of zz.wikipedia"),
            (Inputs((dump,), (str(html),)), "dump.html: not a page-view file"),
            (Inputs((dump,), (str(tmp_path / "gone"),)), "gone: no such file"),
            (Inputs(wordnet=str(files["dict"])), "it has no index.noun"),
            (Inputs(), "no inputs for a list"),
        ]
    ):
        with pytest.raises((UserError, ValueError), match=message) as caught:
            build(tmp_path / str(number), inputs)
        assert "\n" not in str(caught.value)
        assert isinstance(caught.value, ConfigError) == (inputs == Inputs())
        assert not (tmp_path / str(number) / "queries.parquet").exists()


def test_the_site_is_read_from_the_dump(files: dict[str, Path]) -> None:
    assert find_site([]) is None
    assert find_site([str(files["dump.xml"])]) == read_site(str(files["dump.xml"]))
