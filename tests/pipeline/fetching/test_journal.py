"""The journal: what was written is read again, a torn end is cut off, and what is not ours is not trusted."""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.fetching.journal import Journal
from pipeline.fetching.outcome import Outcome
from pipeline.fetching.robots_file import RobotRules, parse_robots
from pipeline.records import Reason

GOOD = Outcome(http_status=200, width=3, height=4, sha256="ab", exif="{}", pdq=bytes(32), pdq_quality=99)
BAD = Outcome(reason=Reason.TRUNCATED, error_message="\udc80 ü", http_status=200)
RULES = parse_robots(b"User-agent: *\nDisallow: /x\nCrawl-delay: 2\n", "wit-pipeline")

_opened: list[Journal] = []


def journal(folder: Path, key: str = "key") -> Journal:
    opened = Journal.open(folder / "journals" / "a.journal", key, folder)
    _opened.append(opened)
    return opened


@pytest.fixture(autouse=True)
def closed_journals() -> Iterator[None]:
    yield
    while _opened:
        _opened.pop().close()


def fill(folder: Path) -> tuple[Path, list[int]]:
    """Write some records; return the file, and its size after each."""
    one = journal(folder)
    path, sizes = folder / "journals" / "a.journal", []
    for number in range(6):
        jpeg = bytes([number]) * 1_000 if number % 2 else None
        one.add_outcome(f"http://a.example/{number}", GOOD if jpeg else BAD, jpeg)
        sizes.append(path.stat().st_size)
    one.close()
    return path, sizes


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    first = journal(tmp_path)
    kept = first.add_outcome("http://a.example/1", GOOD, b"jpeg")
    failed = first.add_outcome("http://a.example/2", BAD, None)
    refusing = RobotRules("wit-pipeline", refused=(Reason.DNS_FAILED, "robots.txt: no", None))
    first.add_robots("http://a.example", RULES)
    first.add_robots("http://b.example", refusing)
    assert kept.image is not None
    assert first.read(kept.image) == b"jpeg"
    first.close()
    again = journal(tmp_path)
    assert again.outcomes == {"http://a.example/1": kept, "http://a.example/2": failed}
    assert again.read(kept.image) == b"jpeg"
    rules, at_s = again.robots["http://a.example"]
    assert (rules.allows("http://a.example/x"), rules.crawl_delay_s) == (False, 2)
    assert 0 <= time.time() - at_s < 600
    assert again.robots["http://b.example"][0] == refusing


def test_cut_at_any_byte_it_keeps_the_whole_records_and_goes_on(tmp_path: Path) -> None:
    path, sizes = fill(tmp_path)
    content = path.read_bytes()
    for cut in [*range(120), *range(sizes[0] - 2, sizes[-1], 97), *sizes]:
        path.write_bytes(content[:cut])
        one = journal(tmp_path)
        assert len(one.outcomes) == sum(size <= cut for size in sizes)
        place = one.add_outcome("http://new.example/", GOOD, b"new").image
        one.close()
        again = journal(tmp_path)
        assert again.outcomes["http://new.example/"].image == place
        assert again.read(again.outcomes["http://new.example/"].image or (0, 0)) == b"new"
        again.close()


@given(st.data())
def test_a_flipped_bit_ends_the_journal_and_never_changes_an_outcome(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        path, _ = fill(Path(name))
        sound = journal(Path(name))
        expected = {url: (outcome, sound.read(outcome.image or (0, 0))) for url, outcome in sound.outcomes.items()}
        sound.close()
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        one = journal(Path(name))
        for url, outcome in one.outcomes.items():
            assert (outcome, one.read(outcome.image or (0, 0))) == expected[url]
        one.close()


@pytest.mark.parametrize("content", [b"", b"hello", bytes(1_000), b"K" + b"\xff" * 100])
def test_what_is_not_a_journal_is_written_over(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "journals" / "a.journal"
    path.parent.mkdir()
    path.write_bytes(content)
    one = journal(tmp_path)
    one.add_outcome("http://a.example/", BAD, None)
    one.close()
    assert list(journal(tmp_path).outcomes) == ["http://a.example/"]


def test_other_settings_start_anew(tmp_path: Path) -> None:
    fill(tmp_path)
    other = journal(tmp_path, "other")
    assert not other.outcomes
    other.close()
    assert not journal(tmp_path).outcomes


def test_a_version_that_knows_other_facts_of_an_outcome_starts_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr("pipeline.fetching.journal._FACTS", ["reason", "refused_by", "pdq"])
        fill(tmp_path)
    with closing(journal(tmp_path)) as opened:
        assert not opened.outcomes


def test_two_processes_at_one_unit_do_not_share_a_journal(tmp_path: Path) -> None:
    first, twin = journal(tmp_path), journal(tmp_path)
    first.add_outcome("http://a.example/1", GOOD, b"first")
    twin.add_outcome("http://a.example/2", GOOD, b"twin")
    first.close()
    twin.close()
    assert list(journal(tmp_path).outcomes) == ["http://a.example/1"]


def test_decodings_without_an_outcome_are_suspect(tmp_path: Path) -> None:
    for session in range(3):
        one = journal(tmp_path)
        assert one.suspects == ({"http://a.example/1": session} if session else {})
        for number in (0, 1):
            one.add_decoding(f"http://a.example/{number}")
        one.add_outcome("http://a.example/0", GOOD, b"x")
        one.close()


def test_a_write_that_fails_leaves_the_journal_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = journal(tmp_path)
    one.add_outcome("http://a.example/1", GOOD, b"1")
    real = os.pwrite

    def half(fd: int, data: bytes, offset: int) -> int:
        if len(data) < 50:
            raise OSError(28, "No space left on device")
        return int(real(fd, data[: len(data) // 2], offset))

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.fetching.journal.os.pwrite", half)
        with pytest.raises(OSError, match="No space"):
            one.add_outcome("http://a.example/2", GOOD, b"2")
    one.add_outcome("http://a.example/3", GOOD, b"3")
    one.close()
    assert sorted(journal(tmp_path).outcomes) == ["http://a.example/1", "http://a.example/3"]


def test_a_journal_that_cannot_be_opened_is_free_for_the_next_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.fetching.journal.os.pwrite", full)
        with pytest.raises(OSError, match="No space") as raised:
            journal(tmp_path)
    assert journal(tmp_path).key == "key"
    assert raised.value  # whose traceback would keep the file
