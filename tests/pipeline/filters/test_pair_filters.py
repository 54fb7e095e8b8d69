"""Filters as a build applies them to pairs: each counted, none silent, and only what changed is read again."""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.beam.runner import parse_beam_options
from pipeline.config import Config
from pipeline.config.filters import FiltersConfig
from pipeline.engine.progress import Progress
from pipeline.engine.run import Build
from pipeline.engine.units import Marker, add_counts
from pipeline.engine.workspace import Workspace
from pipeline.errors import ConfigError, UserError
from pipeline.filters.examples import EXAMPLES_PER_REASON, Examples
from pipeline.filters.pairs import PairFilters
from pipeline.filters.python_rules import rule_reasons, rule_version
from pipeline.records import Reason
from pipeline.stages.pairs import run_pairs
from queries.allowlist import Allowlist, import_allowlist

ROWS = [
    ("http://a.example/1.jpg", "A dog runs along the beach in the evening sun"),
    ("http://a.example/2.jpg", "dog_001.jpg"),
    ("http://a.example/3.jpg", "dog"),
    ("http://bad.example/4.jpg", "A dog runs along the beach in the evening sun"),
    ("http://a.example/5.jpg", "<b>dog</b> of the week"),
    ("http://a.example/6.jpg", "Ein Hund namens dog läuft am Strand entlang und bellt laut"),
    ("http://a.example/7.jpg", "A cat sleeps all day long"),
    ("http://a.example/8.jpg", "DOG DOG DOG shouts the man in the street"),
]
FILTERS = {
    "block_hosts": ["bad.example"],
    "file_names": True,
    "markup": True,
    "min_words": 2,
    "languages": ["en"],
    "python": [{"call": "own_rules:keep"}],
}
RULE = """
import pyarrow as pa
import pyarrow.compute as pc

def keep(pairs: pa.RecordBatch):
    assert pairs.schema.names[0] == "uid"
    return pc.invert(pc.match_substring_regex(pairs.column("caption"), "[A-Z ]{10}")), "shouting"
"""


def run(folder: Path, filters: dict, beam: tuple[str, ...] = ()) -> dict[str, Marker]:
    (folder / "words.txt").write_text("dog")
    import_allowlist(str(folder / "words.txt"), str(folder / "queries.parquet"))
    if not (folder / "rows.parquet").exists():
        pq.write_table(
            pa.table({"url": [u for u, _ in ROWS], "caption": [c for _, c in ROWS]}), folder / "rows.parquet"
        )
    config = Config.model_validate(
        {
            "workspace": "work",
            "allowlist": {"path": "queries.parquet"},
            "sources": [{"kind": "url-table", "paths": ["rows.parquet"]}],
            "fetch": {"network": False},
            "filters": filters,
        }
    )
    build = Build(Workspace(str(folder / "work")), parse_beam_options(list(beam)), Progress(None))
    path = str(folder / "queries.parquet")
    return run_pairs(build, config, folder, Allowlist.load(path), path)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_rules.py").write_text(RULE)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "own_rules", raising=False)
    return tmp_path


def table(folder: Path, name: str) -> pa.Table:
    (path,) = (folder / "work" / name).glob("*.parquet")
    return pq.read_table(path)


@pytest.mark.parametrize("beam", [(), ("--direct_running_mode", "multi_processing", "--direct_num_workers", "2")])
def test_every_row_is_kept_or_has_the_reason_of_its_filter(folder: Path, beam: tuple[str, ...]) -> None:
    counts = add_counts(run(folder, FILTERS, beam).values())
    expected = Counter(
        {
            "inputs": 8,
            "kept": 1,
            Reason.NO_MATCH: 1,
            Reason.BLOCKED_HOST: 1,
            Reason.FILE_NAME_CAPTION: 1,
            Reason.MARKUP: 1,
            Reason.TOO_FEW_WORDS: 1,
            Reason.LANGUAGE: 1,
            "python:shouting": 1,
        }
    )
    assert counts == expected
    assert table(folder, "pairs")["url"].to_pylist() == ["http://a.example/1.jpg"]
    shown = table(folder, "dropped").to_pylist()
    assert {row["reason"] for row in shown} == expected.keys() - {"inputs", "kept", Reason.BLOCKED_HOST}
    assert "bad.example" not in str(shown)


def test_without_filters_the_pairs_and_their_unit_are_what_they_were(folder: Path) -> None:
    (off,) = run(folder, {}).values()
    (same,) = run(folder, {"languages": [], "markup": False}).values()
    assert off == same
    assert off.counts == {"inputs": 8, "kept": 7, Reason.NO_MATCH: 1}


def test_another_version_of_a_function_is_another_unit(folder: Path) -> None:
    first, second = (rule_version("own_rules:keep", str(folder)) for _ in range(2))
    assert first == second
    (folder / "own_rules.py").write_text(RULE.replace("{10}", "{20}"))
    assert rule_version("own_rules:keep", str(folder)) != first


@pytest.mark.parametrize(
    ("call", "line"),
    [("no_such_module:keep", "No module named 'no_such_module'"), ("own_rules:none", "has no attribute 'none'")],
)
def test_a_function_that_is_not_there_is_one_line(folder: Path, call: str, line: str) -> None:
    with pytest.raises(ConfigError, match=rf"filters\.python: {call}: .*{line}"):
        run(folder, {"python": [{"call": call}]})


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (([True], "short"), "must return 2 bools"),
        (([[True], [True, False]], "ragged"), "must return 2 bools"),
        (([1, 0], "numbers"), "must return 2 bools"),
        (([True, False], "Not A Name"), "'Not A Name' must be of a-z"),
        (([True, False], ["one"]), "one reason, or 2"),
        (([True, False], None), "must return one reason, or 2; it returned None"),
        (([True, None], "null"), "must return 2 bools"),
        (([True, False], [None, None]), "'None' must be of a-z"),
        (None, "must return two things, a mask and reasons; it returned one NoneType"),
        (pa.array([True, False]), "must return two things, a mask and reasons; it returned one BooleanArray"),
    ],
)
def test_what_a_function_returns_is_checked(answer, line: str) -> None:
    batch = pa.RecordBatch.from_pydict({"uid": ["a", "b"]})
    with pytest.raises(UserError, match=line):
        rule_reasons(lambda pairs: answer, "m:f", [batch])


def test_a_function_may_return_arrow_or_lists_and_a_reason_each() -> None:
    batch = pa.RecordBatch.from_pydict({"uid": ["a", "b", "c"]})
    for mask in (pa.array([True, False, False]), [True, False, False], np.array([True, False, False])):
        for reasons in (["x", "y", "z"], pa.array(["x", "y", "z"])):
            assert rule_reasons(lambda _, m=mask, r=reasons: (m, r), "m:f", [batch]).tolist() == [
                "",
                "python:y",
                "python:z",
            ]


def test_languages_and_what_is_not_certain(folder: Path) -> None:
    captions = pa.array(
        ["A dog runs along the beach in the evening", "Le chien court le long de la plage", "Nikon D80"]
    )
    pairs = pa.RecordBatch.from_pydict({"caption": captions})

    def stay(languages: list[str], probability: float) -> list[bool]:
        config = FiltersConfig(languages=languages, min_language_probability=probability)
        filters = PairFilters.of(config, folder).open()
        shown, sure = filters.languages(captions)
        assert shown.to_pylist() == ["en", "fr", "und"]
        return [not reason for reason in filters.pair_reasons(pairs, sure).tolist()]

    assert stay(["en"], 0.5) == [True, False, False]
    assert stay(["en", "und"], 0.5) == [True, False, True]
    assert stay(["fr", "en"], 0.5) == [True, True, False]
    assert stay(["en"], 1.0) == [False, False, False]
    assert stay(["en", "und"], 1.0) == [True, True, True]


def test_hosts_come_from_files_too(folder: Path) -> None:
    (folder / "hosts.txt").write_text("# bad ones\nbad.example\n")
    first = PairFilters.of(FiltersConfig(block_host_files=("hosts.txt",)), folder)
    assert first.block.at_and_below == {"bad.example"}
    (folder / "hosts.txt").write_text("bad.example\nworse.example\n")
    assert PairFilters.of(FiltersConfig(block_host_files=("hosts.txt",)), folder).version != first.version
    (folder / "hosts.txt").write_text("com\n")
    with pytest.raises(ConfigError, match=r"filters\.block_host_files: .*hosts\.txt: 'com' is a public suffix"):
        PairFilters.of(FiltersConfig(block_host_files=("hosts.txt",)), folder)


def test_examples_are_a_uniform_sample_in_any_batches() -> None:
    seen: Counter[str] = Counter()
    for unit in range(300):
        examples = Examples(f"unit {unit}", "s")
        for start in range(0, 60, 15):
            names = pa.array([str(number) for number in range(start, start + 15)])
            examples.add(np.array([Reason.MARKUP] * 15, "U64"), names, names)
        found = examples.table()["caption"].to_pylist()
        assert len(set(found)) == EXAMPLES_PER_REASON
        seen.update(found)
    mean = 300 * EXAMPLES_PER_REASON / 60
    assert len(seen) == 60
    assert max(abs(count - mean) for count in seen.values()) < 5 * np.sqrt(mean * (1 - EXAMPLES_PER_REASON / 60))
