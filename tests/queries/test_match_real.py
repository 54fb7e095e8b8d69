"""A large list of real queries against real captions: every id of every caption looked at, as by asking one by one."""

import gzip
import random
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest
from support.shared_data import SHARED

from queries.allowlist import Allowlist, import_allowlist
from queries.match import QueryMatcher
from queries.normal_form import normalize

SAMPLE = 150

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (SHARED / "queries").is_dir(), reason="needs the folder of real data (WIT_SHARED_DATA)"),
]


def unpacked(path: Path) -> str:
    return gzip.decompress(path.read_bytes()).decode()


@pytest.fixture(scope="module")
def queries(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """WordNet's nouns, LAION's words and bigrams, art phrases; and wordfreq's words where that package is."""
    folder = tmp_path_factory.mktemp("lists")
    synsets = unpacked(SHARED / "queries/wordnet_nouns.txt.gz").splitlines()
    texts = {"wordnet": "\n".join(lemma for line in synsets for lemma in line.split("\t")[1].split(", "))}
    for name in ("laion_vocabulary", "phrases"):
        with tarfile.open(SHARED / f"queries/{name}.tar.gz") as archive:
            files = [archive.extractfile(member) for member in archive if member.isfile()]
            texts[name] = "\n".join(file.read().decode(errors="replace") for file in files if file)
    try:
        from wordfreq import get_frequency_dict

        texts["wordfreq"] = "\n".join(get_frequency_dict("en", wordlist="large"))
    except ImportError:
        pass
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text)
    import_allowlist([str(folder / f"{name}.txt") for name in texts], str(folder / "all.parquet"))
    return Allowlist.load(str(folder / "all.parquet")).queries


@pytest.fixture(scope="module")
def captions() -> list[str]:
    """English captions, and captions in German, French and Czech."""
    found = [line.split("\t")[0] for line in unpacked(SHARED / "text/cc3m_validation.tsv.gz").splitlines()]
    with tarfile.open(SHARED / "text/multi30k_parallel_29k.tar.gz") as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file:
                found += gzip.decompress(file.read()).decode().splitlines()[:5_000]
    return found


def test_all_ids_of_a_sample_of_captions(queries: list[str], captions: list[str]) -> None:
    sample = random.Random(7).sample(captions, SAMPLE)
    padded = [f" {normalize(query)} " for query in queries]
    texts = [f" {normalize(caption)} " for caption in sample]
    expected = [[i for i, query in enumerate(padded) if query in text] for text in texts]
    assert QueryMatcher(queries).match(pa.array(sample)).to_pylist() == expected


def test_the_list_is_large_and_matches_most_captions(queries: list[str], captions: list[str]) -> None:
    assert len(queries) > 200_000
    found = QueryMatcher(queries).match(pa.array(captions))
    assert sum(map(bool, found.to_pylist())) > 0.95 * len(captions)
