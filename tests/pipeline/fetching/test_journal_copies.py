"""Copies of a journal in a store: another machine has what was copied, and damage costs only what follows it."""

import uuid
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.engine.workspace import Workspace
from pipeline.fetching import journal_copies
from pipeline.fetching.journal import Journal
from pipeline.fetching.journal_copies import JournalCopies
from pipeline.fetching.outcome import Outcome
from pipeline.records import Reason

FOLDER = ".wit/journal/key/part-00000"


@pytest.fixture
def store() -> Workspace:
    return Workspace(f"memory://{uuid.uuid4().hex}")


def outcome(number: int) -> Outcome:
    return Outcome(reason=Reason.TIMEOUT, error_message=f"number {number}")


def add(journal: Journal, first: int, last: int) -> None:
    for number in range(first, last):
        image = bytes([number]) * 500 if number % 2 else None
        journal.add_outcome(f"http://a/{number}", outcome(number) if image is None else Outcome(width=number), image)


def images(path: Path, scratch: Path) -> dict[str, bytes | None]:
    with closing(Journal.open(path, "key", scratch)) as journal:
        return {
            url: None if found.image is None else journal.read(found.image)
            for url, found in sorted(journal.outcomes.items())
        }


@pytest.mark.parametrize("segment_bytes", [100, 1 << 20])
def test_another_machine_has_what_was_copied(store, tmp_path, monkeypatch, segment_bytes):
    monkeypatch.setattr(journal_copies, "_SEGMENT_BYTES", segment_bytes)
    here, there = tmp_path / "here" / "journal", tmp_path / "there" / "journal"
    copies = JournalCopies(store, FOLDER)
    copies.restore(here)
    journal = Journal.open(here, "key", tmp_path)
    add(journal, 0, 10)
    copies.copy(journal)
    copies.copy(journal)
    add(journal, 10, 20)
    copies.copy(journal)
    add(journal, 20, 25)  # never copied
    journal.close()
    JournalCopies(store, FOLDER).restore(there)
    found = images(there, tmp_path)
    assert list(found) == sorted(f"http://a/{number}" for number in range(20))
    assert found == {url: image for url, image in images(here, tmp_path).items() if url in found}


def test_the_longer_one_counts_and_a_gap_ends_a_journal(store, tmp_path, monkeypatch):
    monkeypatch.setattr(journal_copies, "_SEGMENT_BYTES", 1_000)
    here, copies = tmp_path / "journal", JournalCopies(store, FOLDER)
    journal = Journal.open(here, "key", tmp_path)
    add(journal, 0, 30)
    copies.copy(journal)
    add(journal, 30, 35)
    journal.close()
    JournalCopies(store, FOLDER).restore(here)
    assert len(images(here, tmp_path)) == 35
    names = sorted(store.sizes(FOLDER))
    store.remove([names[4]])
    JournalCopies(store, FOLDER).restore(tmp_path / "other")
    assert 0 < len(images(tmp_path / "other", tmp_path)) < 30


def test_two_machines_at_odds_lose_only_what_does_not_fit(store, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    copies = JournalCopies(store, FOLDER)
    journal = Journal.open(first, "key", tmp_path)
    add(journal, 0, 10)
    copies.copy(journal)
    add(journal, 10, 13)
    journal.close()
    there = JournalCopies(store, FOLDER)
    there.restore(second)
    journal = Journal.open(second, "key", tmp_path)
    add(journal, 100, 101)
    there.copy(journal)
    journal.close()
    again = JournalCopies(store, FOLDER)
    again.restore(first)
    journal = Journal.open(first, "key", tmp_path)
    add(journal, 13, 20)
    again.copy(journal)
    journal.close()
    JournalCopies(store, FOLDER).restore(tmp_path / "third")
    found = images(tmp_path / "third", tmp_path)
    assert {f"http://a/{number}" for number in range(10)} <= set(found)


def test_copies_are_made_while_a_part_is_fetched_and_when_it_is_stopped(store, tmp_path, monkeypatch):
    monkeypatch.setattr(journal_copies, "INTERVAL_S", 0.01)
    copies = JournalCopies(store, FOLDER)
    journal = Journal.open(tmp_path / "journal", "key", tmp_path)

    def fetch() -> None:
        with copies.kept(journal):
            add(journal, 0, 5)
            while not store.sizes(FOLDER):
                pass
            add(journal, 5, 9)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch()
    JournalCopies(store, FOLDER).restore(tmp_path / "there")
    journal.close()
    assert len(images(tmp_path / "there", tmp_path)) == 9
