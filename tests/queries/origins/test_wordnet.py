from pathlib import Path

import pytest
from support.wiki_files import wordnet_folder

from queries.errors import InputError
from queries.origins.wordnet import wordnet_queries

DEBIAN = Path("/usr/share/wordnet")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    nouns = ["dog domestic_dog Canis_familiaris", "dog cad", "Ac/Dc", "hot_dog frank", "down"]
    return wordnet_folder(tmp_path / "dict", {"noun": nouns, "verb": ["chase dog"], "adj": ["out(p) away(ip)", "down"]})


def test_synsets_are_called_after_their_first_lemma_and_ranked_by_senses(folder: Path) -> None:
    assert wordnet_queries(str(folder)).to_pylist() == [
        {"query": query, "origin": "wordnet", "score": score}
        for query, score in [("dog", 3), ("down", 2), ("Ac/Dc", 1), ("chase", 1), ("hot dog", 1), ("out", 1)]
    ]


def test_synonyms_are_all_the_lemmas(folder: Path) -> None:
    found = wordnet_queries(str(folder), synonyms=True)["query"].to_pylist()
    assert found == ["dog", "down", "Ac/Dc", "away", "cad", "Canis familiaris", "chase", "domestic dog", "frank", "hot dog", "out"]  # fmt: skip  # noqa: E501


@pytest.mark.parametrize("missing", ["index.noun", "data.adj"])
def test_a_folder_without_a_file_is_one_clear_line(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(InputError, match=f"not a WordNet folder: it has no {missing}") as caught:
        wordnet_queries(str(folder))
    assert "\n" not in str(caught.value)


def test_no_folder_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the folder does not exist"):
        wordnet_queries(str(tmp_path / "dict"))


@pytest.mark.parametrize("name", ["index.noun", "data.noun"])
@pytest.mark.parametrize(
    "content",
    [
        b"<html>\n",
        b"00 03 n zz dog\n",
        b"\xff\xfe",
        b"one two three four five six\n",
        b"cat n " + b"9" * 5_000 + b" 1 @\n",
    ],
)
def test_files_that_are_not_wordnets_are_one_clear_line(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        wordnet_queries(str(folder))


@pytest.mark.skipif(not (DEBIAN / "index.noun").exists(), reason="needs Debian's wordnet-base")
def test_the_real_wordnet() -> None:
    names = wordnet_queries(str(DEBIAN))
    assert 86_000 < names.num_rows < 87_000  # MetaCLIP counts 86,654
    assert {"dog", "ice cream", "Alabama"} <= set(names["query"].to_pylist())
    assert wordnet_queries(str(DEBIAN), synonyms=True).num_rows > 140_000
