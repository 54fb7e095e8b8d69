"""Compare a finished build of the demo with what was planted.

Reads only the workspace and the ledger, and shares no code with the stages. Every check is a `Verdict`, one line of the
table that `wit demo` ends with.
"""

import json
import math
import tarfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.demo.ledger import Copies, Fate, Ledger, Overlap
from pipeline.records import Reason

_EXACT_UP_TO = 5_000
"""Pictures. In a demo of the default size the copy detector must be exactly right. Of more drawn scenes some are bound
to look alike (two did among 15,000 and 320 evaluation images), and one edited copy in twelve may be missed."""
_LOOK_ALIKES = 1_000_000  # pairs of strangers, of which one may look alike

_SAMPLE_SUFFIXES = ("jpg", "txt", "json")


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line: of `planted` items `found` were found, and `false` others were reported as such.

    `by_chance` is how many may be missed or false, because the copy detector is right with a probability only.
    """

    section: str
    kind: str
    planted: int
    found: int
    false: int
    by_chance: int = 0

    @property
    def missed(self) -> int:
        return self.planted - self.found

    @property
    def is_right(self) -> bool:
        return self.missed + self.false <= self.by_chance


@dataclass(frozen=True)
class Finished:
    """The contents of a finished workspace that the comparison needs. Rows are by uid."""

    workspace: Path
    rows: Mapping[str, Mapping[str, Any]]  # every planned pair: shards/*.parquet
    row_count: int
    survivors: Mapping[str, str]  # duplicate -> the pair that represents it
    account: Mapping[str, Mapping[str, Any]]  # stage -> inputs, kept, reasons

    @classmethod
    def read(cls, workspace: Path) -> "Finished":
        """Read shards/, dedup/duplicates.parquet and report/accounting.json."""
        columns = ["uid", "key", "url", "status", "reason", "query_ids", "selected_by"]
        shards = _read_all(sorted((workspace / "shards").glob("*.parquet")), columns)
        duplicates = _read_all([workspace / "dedup" / "duplicates.parquet"], ["uid", "survivor"])
        account = json.loads((workspace / "report" / "accounting.json").read_text(encoding="utf-8"))
        return cls(
            workspace,
            {row["uid"]: row for row in shards.to_pylist()},
            shards.num_rows,
            dict(zip(duplicates["uid"].to_pylist(), duplicates["survivor"].to_pylist(), strict=True)),
            {stage["stage"]: stage for stage in account["stages"]},
        )

    def reason(self, uid: str) -> str | None:
        """Return why a pair is not in the set, None if it is, "not planned" if it was never fetched."""
        return self.rows[uid]["reason"] if uid in self.rows else "not planned"


def _read_all(paths: Iterable[Path], columns: list[str]) -> pa.Table:
    return pa.concat_tables([pq.read_table(path, columns=columns) for path in paths])


def compare(workspace: Path, ledger: Ledger, cap: int, requests: Mapping[str, int]) -> list[Verdict]:
    """Return all verdicts; the build is correct if all are right.

    `cap` is the config's; `requests` maps each URL to the number of requests that the server got.
    """
    finished = Finished.read(workspace)
    return [
        *_counted(finished, ledger),
        *_fates(finished, ledger),
        *_copies(finished, ledger),
        *_overlaps(finished, ledger),
        *_laws(finished, ledger, cap, requests),
    ]


def _counted(finished: Finished, ledger: Ledger) -> Iterator[Verdict]:
    """Rows without a uid: the account must have as many as were planted."""
    for count in ledger.counts:
        found = finished.account[count.stage]["reasons"].get(count.reason, 0)
        false = max(0, found - count.number)
        yield Verdict("read and match", count.kind, count.number, min(found, count.number), false)


def _fates(finished: Finished, ledger: Ledger) -> Iterator[Verdict]:
    """Planted failures must have the expected reason; the same reason on any other pair is false."""
    expected = {uid: fate for fate in ledger.fates for uid in fate.uids}
    blamed: set[str] = set()
    for fate in ledger.fates:
        found = sum(_ends_as(finished.reason(uid), fate) for uid in fate.uids)
        unplanted = [
            uid
            for uid, row in finished.rows.items()
            if row["reason"] in fate.reasons and row["reason"] not in blamed and not _is_expected(row, expected)
        ]
        blamed |= set(fate.reasons)
        yield Verdict("fetch", fate.kind, len(fate.uids), found, len(unplanted))
    ordinary = [finished.reason(uid) for uid in ledger.ordinary if uid in finished.rows]
    fine = sum(reason in (None, Reason.OVER_FINAL_CAP) for reason in ordinary)
    yield Verdict("fetch", "ordinary image", len(ordinary), fine, 0)


def _ends_as(reason: str | None, fate: Fate) -> bool:
    return reason in fate.reasons if fate.reasons else reason is None


def _is_expected(row: Mapping[str, Any], expected: Mapping[str, Fate]) -> bool:
    fate = expected.get(row["uid"])
    return fate is not None and row["reason"] in fate.reasons


def _copies(finished: Finished, ledger: Ledger) -> Iterator[Verdict]:
    """Exactly one pair of each group stays, and represents the others."""
    grouped = Counter({copies.reason: 0 for copies in ledger.copies})
    planted = {(copies.reason, uid) for copies in ledger.copies for group in copies.groups for uid in group}
    for copies in ledger.copies:
        false = 0
        if not grouped[copies.reason]:
            rows = finished.rows.values()
            false = sum(row["reason"] == copies.reason and (copies.reason, row["uid"]) not in planted for row in rows)
        grouped[copies.reason] += 1
        found = sum(_dropped(finished, copies, group) for group in copies.groups)
        yield Verdict("duplicates", copies.kind, sum(len(group) - 1 for group in copies.groups), found, false)


def _dropped(finished: Finished, copies: Copies, group: Collection[str]) -> int:
    """Count the pairs of a group that were dropped for the right reason, with the pair that stayed as survivor."""
    kept = [uid for uid in group if finished.reason(uid) is None]
    if len(kept) != 1:
        return 0
    dropped = [uid for uid in group if finished.reason(uid) == copies.reason]
    return sum(finished.survivors.get(uid) == kept[0] for uid in dropped)


def _overlaps(finished: Finished, ledger: Ledger) -> Iterator[Verdict]:
    is_large = len(ledger.ordinary) > _EXACT_UP_TO
    for name, examples in ledger.eval_sets.items():
        rows = pq.read_table(finished.workspace / "dedup" / "overlap" / f"{name}.parquet").to_pylist()
        found = {(row["uid"], row["eval_id"]): row for row in rows}
        overlaps = [overlap for overlap in ledger.overlaps if overlap.eval_set == name]
        planted = {match for overlap in overlaps for match in overlap.matches.items()}
        for overlap in overlaps:
            missed = int(is_large and overlap.is_edited)
            kept = _found(found, overlap)
            yield Verdict(f"overlap with {name}", overlap.kind, len(overlap.matches), kept, 0, missed)
        others = [row for match, row in found.items() if match not in planted]
        alike = sum(row["degree"] == "edited" for row in others)
        pairs = len(ledger.ordinary) * examples
        allowed = math.ceil(pairs / _LOOK_ALIKES) if is_large else 0
        yield Verdict(f"overlap with {name}", "drawn scene that looks alike", 0, 0, alike, allowed)
        yield Verdict(f"overlap with {name}", "anything else", 0, 0, len(others) - alike)
    control = pq.read_table(finished.workspace / "dedup" / "control.parquet")
    yield Verdict("overlap with rendered images", "anything", 0, 0, control.num_rows)


def _found(found: Mapping[tuple[str, str], Mapping[str, Any]], overlap: Overlap) -> int:
    """Count the planted copies that were found and are marked as part of the final set."""
    rows = [found[match] for match in overlap.matches.items() if match in found]
    if overlap.is_edited:  # any of the views may be the nearest
        return sum(row["kept"] for row in rows)
    mirrored = overlap.kind.startswith("mirrored")
    return sum(row["kept"] and (row["view"] == "mirror") == mirrored for row in rows)


def _laws(finished: Finished, ledger: Ledger, cap: int, requests: Mapping[str, int]) -> Iterator[Verdict]:
    yield _account_closes(finished)
    yield _cap_is_exact(finished, cap)
    yield from _each_url_once(finished, ledger, requests)
    yield Verdict("laws", "uid occurs once", finished.row_count, len(finished.rows), 0)
    yield _tars_agree(finished)
    yield _markup_is_escaped(finished, ledger)


def _account_closes(finished: Finished) -> Verdict:
    """At each stage: inputs = kept + reasons, and inputs = rows kept by the stage before."""
    known = {str(reason) for reason in Reason}
    stages = list(finished.account.values())
    right = 0
    for number, stage in enumerate(stages):
        adds_up = stage["inputs"] == stage["kept"] + sum(stage["reasons"].values())
        follows = number == 0 or stage["inputs"] == stages[number - 1]["kept"]
        right += adds_up and follows and stage["reasons"].keys() <= known
    return Verdict("laws", "account of a stage closes", len(stages), right, 0)


def _cap_is_exact(finished: Finished, cap: int) -> Verdict:
    """Of n survivors that match a query, the query selects min(n, cap); a pair stays if some query selects it."""
    surviving: Counter[int] = Counter()
    selecting: Counter[int] = Counter()
    false = 0
    for row in finished.rows.values():
        if row["reason"] in (None, Reason.OVER_FINAL_CAP):
            surviving.update(row["query_ids"])
            selecting.update(row["selected_by"])
            false += (row["reason"] is None) != bool(row["selected_by"])
            false += not set(row["selected_by"]) <= set(row["query_ids"])
    exact = sum(selecting[query] == min(cap, count) for query, count in surviving.items())
    return Verdict("laws", f"query selects all or {cap:,}", len(surviving), exact, false)


def _each_url_once(finished: Finished, ledger: Ledger, requests: Mapping[str, int]) -> Iterator[Verdict]:
    requested = {url: count for url, count in requests.items() if not url.endswith("/robots.txt")}
    once = sum(count <= ledger.requests.get(url, 1) for url, count in requested.items())
    yield Verdict("laws", "URL is requested as often as planned", len(requested), once, 0)
    protected = set(ledger.unasked)
    yield Verdict("laws", "protected URL is never requested", len(protected), len(protected - requested.keys()), 0)


def _tars_agree(finished: Finished) -> Verdict:
    """Every kept pair is a sample of the tars, with three adjacent members, and sizes.json counts it."""
    keys: Counter[str] = Counter()
    shards = finished.workspace / "shards"
    sizes = json.loads((shards / "sizes.json").read_text(encoding="utf-8"))
    false = 0
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as tar:
            names = [member.name for member in tar]
        samples = [
            names[start : start + len(_SAMPLE_SUFFIXES)] for start in range(0, len(names), len(_SAMPLE_SUFFIXES))
        ]
        whole = [_key_of(sample) for sample in samples]
        keys.update(key for key in whole if key is not None)
        false += whole.count(None) + (sizes.get(path.name) != len(samples))
    kept = {row["key"] for row in finished.rows.values() if row["reason"] is None}
    return Verdict(
        "laws", "pair is a sample", len(kept), sum(keys[key] == 1 for key in kept), false + len(keys.keys() - kept)
    )


def _key_of(members: list[str]) -> str | None:
    """Return the common key of a sample's members, None if they are not a sample."""
    key = members[0].split(".")[0]
    return key if members == [f"{key}.{suffix}" for suffix in _SAMPLE_SUFFIXES] else None


def _markup_is_escaped(finished: Finished, ledger: Ledger) -> Verdict:
    """No page of the report contains markup of a caption."""
    pages = sorted((finished.workspace / "report").rglob("*.html"))
    clean = sum(ledger.hostile_markup not in page.read_text(encoding="utf-8") for page in pages)
    return Verdict("laws", "report page without foreign markup", len(pages), clean, 0)
