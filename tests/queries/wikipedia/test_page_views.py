import bz2
import gzip
import os
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from queries import files
from queries.errors import InputError
from queries.wikipedia import page_views
from queries.wikipedia.page_views import VIEWS, read_views

HOURLY = b"""de Hund 9 0
en Dog 10 0
en Ice_cream 3 0
en.b Dog 100 0
en.m Dog 5 0
en.m.b Dog 70 0
en.zero Dog 1 0
en Caf\xe9 4 0
en.wikipedia Dog 1000 0
enx Dog 9 0
"""
DAILY = b"""de.wikipedia Hund 5 desktop 9 A9
en.wikibooks Dog 5 desktop 100 A100
en.wikipedia Dog 5 desktop 10 A4B6
en.wikipedia Dog 5 mobile-web 6 A6
en.wikipedia Ice_cream null desktop 3 A3
en.wikipedia Caf\xe9 null desktop 4 A4
"""


def total(path: Path, project: str) -> Counter[str]:
    views: Counter[str] = Counter()
    for table in read_views(str(path), project):
        assert table.schema == VIEWS
        for title, count in zip(table["title"].to_pylist(), table["views"].to_pylist(), strict=True):
            views[title] += count
    return views


@pytest.mark.parametrize("crlf", [False, True])
@pytest.mark.parametrize("content", [HOURLY, DAILY])
def test_views_of_a_project_are_summed_over_ways_of_access(tmp_path: Path, content: bytes, crlf: bool) -> None:
    path = tmp_path / "pageviews.gz"
    path.write_bytes(gzip.compress(content.replace(b"\n", b"\r\n") if crlf else content))
    assert total(path, "en.wikipedia") == {"Dog": 16, "Ice_cream": 3}
    assert total(path, "de.wikipedia") == {"Hund": 9}


def test_other_families_have_codes_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "hourly").write_bytes(HOURLY)
    (tmp_path / "daily").write_bytes(DAILY)
    assert total(tmp_path / "hourly", "en.wikibooks") == {"Dog": 170}
    assert total(tmp_path / "daily", "en.wikibooks") == {"Dog": 100}


@pytest.mark.parametrize("block", [1, 7, 40, 10_000])
def test_blocks_and_pieces_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(page_views, "_READ_BYTES", block)
    monkeypatch.setattr(page_views, "_TITLES_IN_MEMORY", 2)
    path = tmp_path / "views.bz2"
    path.write_bytes(bz2.compress(DAILY.rstrip(b"\n")))
    assert total(path, "en.wikipedia") == {"Dog": 16, "Ice_cream": 3}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none", None, "no such file"),
        ("a", HOURLY, "no views of fr.wikipedia; the file has views of en, de, en.b: set the project"),
        (
            "a.bz2",
            bz2.compress(DAILY),
            "no views of fr.wikipedia; the file has views of en.wikipedia, de.wikipedia, en.wikibooks",
        ),
        ("a", b"", "no views of fr.wikipedia; the file has views of no project"),
        ("a.html", b"<html>\n<body>", "not a page-view file; it begins with b'<html>'"),
        ("a.gz", gzip.compress(HOURLY * 99)[:-9], "truncated"),
        ("a.bz2", bz2.compress(DAILY)[:-9], "truncated"),
    ],
)
def test_wrong_files_are_one_clear_line(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        list(read_views(str(tmp_path / name), "fr.wikipedia"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("digits", [13, 20, 5_000])
@pytest.mark.parametrize("line", [b"en Dog %s 0\n", b"en.wikipedia Dog 5 desktop %s A1\n"])
def test_impossible_numbers_of_views_name_the_file(tmp_path: Path, digits: int, line: bytes) -> None:
    (tmp_path / "views").write_bytes(line % b"5" + line % (b"9" * digits))
    with pytest.raises(InputError, match=f"views: the views of 'Dog' have {digits} digits"):
        list(read_views(str(tmp_path / "views"), "en.wikipedia"))


def test_an_unknown_family_is_refused_for_hourly_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(HOURLY)
    with pytest.raises(InputError, match="unknown project 'en\\.wikifunctions'"):
        list(read_views(str(tmp_path / "a"), "en.wikifunctions"))


def test_real_lines() -> None:
    shared = Path(os.environ.get("WIT_SHARED_DATA", "../shared/data")) / "wiki/pageview_complete_1000_lines.txt"
    if not shared.exists():
        pytest.skip("needs the shared data")
    lines = [line.split(" ") for line in shared.read_bytes().decode(errors="replace").splitlines()]
    expected = Counter[str]()
    for project, title, _, _, views, _ in lines:
        if project == "af.wikipedia" and "\ufffd" not in title:
            expected[title] += int(views)
    found = total(shared, "af.wikipedia")
    assert found == expected
    assert len(found) > 800
    assert pa.types.is_string(VIEWS.field("title").type)


LINE = b"en.wikipedia Dog 1 desktop 7 A7\n"


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
@pytest.mark.parametrize(("filler", "message"), [(b"x", "a line of over"), (b"\n", "unpacks to over")])
def test_a_file_that_unpacks_for_ever_is_refused(pack, filler, message, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(page_views, "_MAX_LINE_BYTES", 1 << 20)
    monkeypatch.setattr(page_views, "_READ_BYTES", 1 << 18)
    monkeypatch.setattr(files, "_FREE_BYTES", 2 << 20)
    monkeypatch.setattr(files, "_MAX_RATIO", 50)
    name = "views.gz" if pack is gzip.compress else "views.bz2"
    (tmp_path / name).write_bytes(pack(LINE + filler * (8 << 20)))
    with pytest.raises(InputError, match=rf"{name}: {message}"):
        list(read_views(str(tmp_path / name), "en.wikipedia"))
    monkeypatch.setattr(files, "_MAX_RATIO", 10_000_000)
    if filler == b"\n":
        assert total(tmp_path / name, "en.wikipedia") == Counter(Dog=7)
