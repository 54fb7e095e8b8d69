"""Source files as units: every file is read once, none is taken for another, and only a changed one is read again."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.warc_files import page

from pipeline.beam.runner import parse_beam_options
from pipeline.config import Config
from pipeline.engine.progress import Progress
from pipeline.engine.run import Build
from pipeline.engine.units import Marker, add_counts
from pipeline.engine.workspace import Workspace
from pipeline.errors import ConfigError
from pipeline.stages.pairs import pair_files, run_pairs
from queries.allowlist import Allowlist, import_allowlist

TWINS = ("data/009761/urls.csv", "data/016625/urls.csv")
"""The first 32 bits of their names' digests are equal."""


def run(folder: Path, *patterns: str, sources: Sequence[dict] = (), **fetch: object) -> dict[str, Marker]:
    (folder / "words.txt").write_text("dog")
    import_allowlist(str(folder / "words.txt"), str(folder / "queries.parquet"))
    sources = sources or [{"kind": "url-table", "paths": list(patterns)}]
    config = Config.model_validate(
        {
            "workspace": "work",
            "allowlist": {"path": "queries.parquet"},
            "sources": sources,
            "fetch": {"contact": "mailto:test@example.org", **fetch},
        }
    )
    build = Build(Workspace(str(folder / "work")), parse_beam_options([]), Progress(None))
    path = str(folder / "queries.parquet")
    return run_pairs(build, config, folder, Allowlist.load(path), path)


def write_csv(path: Path, *captions: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"http://a.example/{path.parent.name}/{i}.jpg,{caption}" for i, caption in enumerate(captions)]
    path.write_text("\n".join(["url,caption", *rows]) + "\n")


def sources_of(folder: Path, markers: dict[str, Marker]) -> list[str]:
    """Return the `source` of every row written."""
    return sorted(
        s for name in pair_files(markers) for s in pq.read_table(folder / "work" / name)["source"].to_pylist()
    )


def test_files_with_alike_names_are_units_of_their_own(tmp_path: Path) -> None:
    for name in TWINS:
        write_csv(tmp_path / name, "a dog", "two dogs and a dog")
    markers = run(tmp_path, "data/*/urls.csv")
    assert add_counts(markers.values()) == {"inputs": 4, "kept": 4}
    assert sources_of(tmp_path, markers) == sorted(TWINS * 2)


@pytest.mark.parametrize("name", ["a[1].csv", "två hundar.csv", f"{'long' * 20}.csv"])
def test_any_name_is_a_unit(tmp_path: Path, name: str) -> None:
    write_csv(tmp_path / "in" / name, "a dog")
    markers = run(tmp_path, f"in/{name}")
    assert sources_of(tmp_path, markers) == [f"in/{name}"]
    assert run(tmp_path, f"in/{name}") == markers


def test_a_file_named_twice_is_read_once(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", "a dog")
    assert add_counts(run(tmp_path, "a.csv", "*.csv", str(tmp_path / "a.csv")).values()) == {"inputs": 1, "kept": 1}


def test_a_file_of_two_tables_is_refused(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", "a dog")
    tables = [{"kind": "url-table", "paths": ["a.csv"]}, {"kind": "url-table", "paths": ["*.csv"], "caption": "text"}]
    with pytest.raises(ConfigError, match=r"a\.csv is listed by two \[\[sources\]\] tables"):
        run(tmp_path, sources=tables)


def test_only_what_changed_is_read_again_and_what_left_goes(tmp_path: Path) -> None:
    for name in "abc":
        write_csv(tmp_path / "in" / f"{name}.csv", "a dog")
    first = run(tmp_path, "in/*.csv")
    written = {name: at_of(tmp_path, name) for name in pair_files(first)}
    write_csv(tmp_path / "in/b.csv", "a dog", "another dog", "a cat")
    (tmp_path / "in/c.csv").unlink()
    second = run(tmp_path, "in/*.csv")
    assert add_counts(second.values()) == {"inputs": 4, "kept": 3, "no_match": 1}
    same = [name for name, at in written.items() if (tmp_path / "work" / name).exists() and at_of(tmp_path, name) == at]
    assert [name.split("/")[1][0] for name in same] == ["a"]
    assert len(list((tmp_path / "work/pairs").iterdir())) == 2
    assert len(list((tmp_path / "work/dropped").iterdir())) == 2


def test_what_decides_about_pages_reads_files_with_pages_again_and_no_others(tmp_path: Path) -> None:
    write_csv(tmp_path / "in" / "table.csv", "a dog")
    markup = "<meta name=gptbot content=noai><img src=a.jpg alt='a dog'>"
    (tmp_path / "in" / "pages.warc").write_bytes(page(markup))
    sources = [{"kind": "url-table", "paths": ["in/*.csv"]}, {"kind": "warc", "paths": ["in/*.warc"]}]
    first = run(tmp_path, sources=sources)
    assert add_counts(first.values()) == {"inputs": 2, "kept": 1, "opted_out": 1}
    written = {name: at_of(tmp_path, name) for name in pair_files(first)}
    for fetch in ({"consent": {"pages": False}}, {"also_obey": ["CCBot"]}, {"consent": {"x_robots_tag": False}}):
        assert add_counts(run(tmp_path, sources=sources, **fetch).values()) == {"inputs": 2, "kept": 2}
        again = run(tmp_path, sources=sources)
        assert add_counts(again.values()) == {"inputs": 2, "kept": 1, "opted_out": 1}
    same = [name for name, at in written.items() if at_of(tmp_path, name) == at]
    assert [name.split("/")[1][:5] for name in same] == ["table"]


def at_of(folder: Path, name: str) -> int:
    return (folder / "work" / name).stat().st_mtime_ns
