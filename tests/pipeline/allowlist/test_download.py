"""Downloads from a mirror that breaks off, throttles, and has other bytes than it says."""

import hashlib
import io
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.crawl_mirror import CrawlMirror

from pipeline.cli.main import main
from pipeline.sources.range_stream import Pacer

DUMP = "enwiki/20240101/enwiki-20240101-pages-articles-multistream.xml.bz2"
VIEWS = "other/pageview_complete/monthly/2024/2024-01/pageviews-202401-user.bz2"
WORDNET = "WNdb-3.0.tar.gz"


@pytest.fixture
def mirror() -> Iterator[CrawlMirror]:
    chaos = random.Random(0)
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:gz") as out:
        for name in ("dict/index.noun", "dict/data.noun"):
            info = tarfile.TarInfo(name)
            info.size = 3
            out.addfile(info, io.BytesIO(b"dog"))
    files = {DUMP: chaos.randbytes(3_000_000), VIEWS: chaos.randbytes(1_000_000), WORDNET: tar.getvalue()}
    sums = f"{'0' * 40}  enwiki-20240101-other.gz\n{hashlib.sha1(files[DUMP]).hexdigest()}  {Path(DUMP).name}\n"
    files["enwiki/latest/enwiki-latest-sha1sums.txt"] = sums.encode()
    files["enwiki/20240101/enwiki-20240101-sha1sums.txt"] = sums.encode()
    files["enwiki/20240201/enwiki-20240201-sha1sums.txt"] = b""
    with CrawlMirror(files).running() as running:
        yield running


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sources.range_stream.Pacer.wait", lambda self: None)
    assert Pacer().delay_s == 0


def run(mirror: CrawlMirror, folder: Path, *more: str) -> int:
    places = ["--mirror", mirror.url, "--wordnet-url", f"{mirror.url}/{WORDNET}"]
    options = ["--wiki", "en", "--views", "2024-01", "--to", str(folder), *places, *more]
    return main(["queries", "download", *options])


def test_everything_is_downloaded_once_and_the_next_command_is_named(
    tmp_path: Path, mirror: CrawlMirror, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(mirror, tmp_path, "--contact", "mailto:you@example.org") == 0
    for path in (DUMP, VIEWS):
        assert (tmp_path / Path(path).name).read_bytes() == mirror.files[path]
    shown = " ".join(capsys.readouterr().out.split())
    assert f"--dump {tmp_path / Path(DUMP).name}" in shown
    assert f"--wordnet {tmp_path}/wordnet/dict" in shown
    assert mirror.agents == {"wit-pipeline (mailto:you@example.org)"}
    assert mirror.most_connections == 1
    mirror.bytes_sent.clear()
    assert run(mirror, tmp_path) == 0
    assert set(mirror.bytes_sent) == {"enwiki/latest/enwiki-latest-sha1sums.txt"}


def test_what_breaks_off_goes_on_at_the_next_byte_in_this_run_and_the_next(
    tmp_path: Path, mirror: CrawlMirror, capsys: pytest.CaptureFixture[str]
) -> None:
    mirror.faults[DUMP] = ["reset", 503, "reset", *[503] * 8]
    assert run(mirror, tmp_path) == 1
    assert "HTTP status 503, after 8 tries; run the same command again to resume" in capsys.readouterr().err
    assert (tmp_path / f"{Path(DUMP).name}.part").stat().st_size > 1_000_000
    mirror.faults[DUMP] = ["reset"]
    assert run(mirror, tmp_path, "--date", "20240101") == 0
    ranges = mirror.bytes_sent[DUMP]
    assert [start for start, _ in ranges] == [0, *(end for _, end in ranges[:-1])]
    assert (tmp_path / Path(DUMP).name).read_bytes() == mirror.files[DUMP]


def test_a_file_that_was_whole_when_the_run_was_killed(tmp_path: Path, mirror: CrawlMirror) -> None:
    tmp_path.joinpath(f"{Path(VIEWS).name}.part").write_bytes(mirror.files[VIEWS])
    assert run(mirror, tmp_path) == 0
    assert VIEWS not in mirror.bytes_sent
    assert (tmp_path / Path(VIEWS).name).read_bytes() == mirror.files[VIEWS]


def test_other_bytes_than_the_checksum_says_are_thrown_away(
    tmp_path: Path, mirror: CrawlMirror, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = mirror.files[DUMP]
    mirror.files[DUMP] = sound[:-1] + b"?"
    assert run(mirror, tmp_path) == 1
    assert "has another SHA-1" in capsys.readouterr().err
    assert not list(tmp_path.glob("enwiki*"))
    mirror.files[DUMP] = sound
    assert run(mirror, tmp_path) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--wiki", "xx"], "xxwiki-latest-sha1sums.txt: HTTP status 404"),
        (["--date", "20240201"], "the dump is not finished yet"),
        (["--views", "2030-01"], "pageviews-203001-user.bz2: HTTP status 404"),
        (["--wordnet-url", "{}/" + VIEWS], "is not WordNet's tar"),
    ],
)
def test_what_is_not_there_is_named(
    tmp_path: Path, mirror: CrawlMirror, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert run(mirror, tmp_path, *(option.format(mirror.url) for option in options)) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--views", "2024-13"], ["--wiki", "../x"], ["--date", "yesterday"]])
def test_arguments_that_are_wrong(tmp_path: Path, mirror: CrawlMirror, options: list[str]) -> None:
    with pytest.raises(SystemExit):
        run(mirror, tmp_path, *options)
