"""One part of the plan: its distinct URLs, their outcomes, and the tar and table of these.

Images wait in the part's journal until the last URL is done, so the output has the order of the plan regardless of the
order of responses, and memory does not grow with the images.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pyarrow as pa

from dedup.decode import file_suffix
from pipeline.fetching.journal import Journal
from pipeline.fetching.outcome import Checked, Outcome
from pipeline.records import FETCHED, IMAGE_FACTS, LEDGER, RESIZE_REASONS
from pipeline.shards.tar import TarWriter

_OUTCOME_COLUMNS = frozenset(field.name for field in fields(Outcome))


class StoredAt(NamedTuple):
    """Where an image is in a tar of a source, and the hash of the file that it was made of, if that is known."""

    source: str
    offset: int
    size: int
    stated_hash: str | None


@dataclass(slots=True)
class PartStats:
    """Statistics of a fetch; they differ between runs and are not in any output."""

    requests: int = 0
    longest_stall_s: float = 0.0  # the longest time for which one step blocked the event loop


class Part:
    """The state of one part while it is being fetched."""

    def __init__(self, plan: pa.Table, journal: Journal, scratch_dir: Path, *, owns_hosts: bool = True) -> None:
        """Start with what `journal` has. `owns_hosts`: no other process has planned URLs of their hosts.

        `plan` may also be a table of URLs on the web (columns `url`, `stated_hash`): `results` then has their outcomes.
        """
        self.owns_hosts = owns_hosts
        coded = plan["url"].combine_chunks().dictionary_encode()
        self.scratch_dir = scratch_dir
        self.urls: list[str] = coded.dictionary.to_pylist()
        self._number_of = {url: number for number, url in enumerate(self.urls)}
        self._plan = plan
        self._url_of_pair = coded.indices
        self.journal = journal
        self.stats = PartStats()
        self._outcomes = [journal.outcomes.get(url) for url in self.urls]
        self._checked = {n: journal.checked[url] for n, url in enumerate(self.urls) if url in journal.checked}
        self.unfinished = self._outcomes.count(None)
        self.stored = _stored_images(plan, self._url_of_pair)
        self.hashes = _stated_hashes(plan, self._url_of_pair)

    def pending(self) -> list[tuple[int, str]]:
        """Return the URLs that have no outcome yet, each with its number."""
        return [(n, url) for n, url in enumerate(self.urls) if self._outcomes[n] is None]

    def finish(self, number: int, outcome: Outcome, image: bytes | None = None, checked: Checked | None = None) -> None:
        """Record the outcome of URL `number`, its image, and when consent was checked, if that was in this run."""
        self.finish_kept(number, self.journal.add_outcome(self.urls[number], outcome, image, checked), checked)

    def finish_url(self, url: str, outcome: Outcome, image: bytes | None, checked: Checked | None) -> None:
        """Record the outcome of a URL of the part that has none yet; pass over others."""
        number = self._number_of.get(url)
        if number is not None and self._outcomes[number] is None:
            self.finish(number, outcome, image, checked)

    def finish_kept(self, number: int, outcome: Outcome, checked: Checked | None) -> None:
        """Record an outcome that is in the journal already."""
        assert self._outcomes[number] is None, f"{self.urls[number]} ended twice"
        self._outcomes[number] = outcome
        if checked is not None:
            self._checked[number] = checked
        self.unfinished -= 1

    def results(self) -> Iterator[tuple[str, Outcome, Checked | None, bytes | None]]:
        """Yield each URL with its outcome, when consent was looked for, and its image."""
        for number, outcome in enumerate(self._finished()):
            image = None if outcome.image is None else self.journal.read(outcome.image)
            yield self.urls[number], outcome, self._checked.get(number), image

    def write_tar(self, stream: BinaryIO) -> None:
        """Write the image of each pair that has one, in plan order."""
        outcomes = self._finished()
        with TarWriter(stream) as tar:
            for uid, number in zip(self._plan["uid"].to_pylist(), self._url_of_pair.to_pylist(), strict=True):
                if (span := outcomes[number].image) is not None:
                    file = self.journal.read(span)
                    tar.add(f"{uid}.{file_suffix(file)}", file)

    def table(self) -> pa.Table:
        """Return the plan with the outcome of each pair, as `FETCHED`."""
        outcomes = self._finished()
        columns = dict(zip(self._plan.column_names, self._plan.columns, strict=True))
        for name, kind in IMAGE_FACTS:
            values = [_status(o) if name == "status" else getattr(o, name) for o in outcomes]
            columns[name] = pa.array(values, kind).take(self._url_of_pair)
        return pa.table({name: columns[name] for name in FETCHED.names}, schema=FETCHED)

    def ledger(self) -> pa.Table:
        """Return when consent was checked, as `LEDGER`: a row for each URL that was not known before."""
        rows = [
            {
                "url": self.urls[number],
                "checked_at": checked.at,
                "robots_at": checked.robots_at,
                "robots_status": checked.robots_status,
                "robots_sha256": checked.robots_sha256,
                "ended_at": checked.ended_at,
            }
            for number, checked in sorted(self._checked.items())
        ]
        return pa.Table.from_pylist(rows, LEDGER)

    def _finished(self) -> list[Outcome]:
        finished = [outcome for outcome in self._outcomes if outcome is not None]
        assert len(finished) == len(self.urls), "a URL has no outcome"
        return finished


def _stored_images(plan: pa.Table, url_of_pair: pa.Array) -> dict[int, StoredAt]:
    """Return, by the number of its URL, where each image is that is in a file of its source: of several, the first."""
    found: dict[int, StoredAt] = {}
    if "image_bytes" in plan.column_names and plan["image_bytes"].null_count < plan.num_rows:
        columns = [plan[name].to_pylist() for name in ("source", "source_offset", "image_bytes", "stated_hash")]
        for number, source, offset, size, stated in zip(url_of_pair.to_pylist(), *columns, strict=True):
            if size is not None:
                found.setdefault(number, StoredAt(source, offset, size, stated))
    return found


def _stated_hashes(plan: pa.Table, url_of_pair: pa.Array) -> dict[int, frozenset[str]]:
    """Return, by the number of its URL, the hashes that sources state of an image on the web."""
    found: dict[int, frozenset[str]] = {}
    if plan["stated_hash"].null_count < plan.num_rows:
        sizes = plan["image_bytes"].to_pylist() if "image_bytes" in plan.column_names else [None] * plan.num_rows
        for number, size, stated in zip(url_of_pair.to_pylist(), sizes, plan["stated_hash"].to_pylist(), strict=True):
            if size is None and stated is not None:
                found[number] = found.get(number, frozenset()) | {stated}
    return found


def _status(outcome: Outcome) -> str:
    if outcome.reason is None:
        return "success"
    return "failed_to_resize" if outcome.reason in RESIZE_REASONS else "failed_to_download"
