"""Reuse results fetched for an earlier plan with the same settings."""

import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, BinaryIO

import pyarrow as pa

from pipeline.consent.policy import Signal
from pipeline.fetching.outcome import Outcome
from pipeline.fetching.part import Part
from pipeline.records import Reason

_FACTS = [field.name for field in fields(Outcome) if field.name != "image"]
_ABOUT = ("image_bytes", "stated_hash")  # tables of earlier versions do not have them


@dataclass(frozen=True)
class EarlierPart:
    """The table (schema `FETCHED`) and the tar of a part as fetched for an earlier plan."""

    rows: pa.Table
    tar: BinaryIO
    retried: frozenset[str] = frozenset()  # URLs whose outcome does not count


def reuse(part: Part, earlier: EarlierPart) -> None:
    """Give each URL of `part` without an outcome the one from the earlier plan, also failures."""
    numbers = {url: number for number, url in part.pending() if number not in part.stored}
    wanted: dict[str, tuple[int, Mapping[str, Any]]] = {}  # of images in the tar: uid -> number and facts of the URL
    about = [name for name in _ABOUT if name in earlier.rows.column_names]
    for row in earlier.rows.select(["uid", "url", *about, *_FACTS]).to_pylist():
        if not _may_be_reused(row, part.hashes.get(numbers.get(row["url"], -1)), earlier.retried):
            continue
        number = numbers.pop(row["url"], None)
        if number is not None and row["reason"] is not None:
            part.finish(number, _outcome(row))
        elif number is not None:
            wanted[row["uid"]] = number, row
    with tarfile.open(fileobj=earlier.tar, mode="r|") as tar:
        for member in tar:
            uid = member.name.partition(".")[0]
            if uid in wanted:
                number, row = wanted.pop(uid)
                image = tar.extractfile(member)
                assert image is not None
                part.finish(number, _outcome(row), image.read())


def reusable_urls(rows: pa.Table, hashes: Mapping[str, frozenset[str]], retried: frozenset[str]) -> set[str]:
    """Return the URLs whose outcome in a part as fetched before `reuse` takes; `hashes` are those stated now."""
    columns = [name for name in ("url", "reason", "sha256", *_ABOUT) if name in rows.column_names]
    table = rows.select(columns).to_pylist()
    return {row["url"] for row in table if _may_be_reused(row, hashes.get(row["url"]), retried)}


def _may_be_reused(row: Mapping[str, Any], hashes: frozenset[str] | None, retried: frozenset[str]) -> bool:
    return row["url"] not in retried and _is_of_the_same_file(row, hashes)


def _is_of_the_same_file(row: Mapping[str, Any], hashes: frozenset[str] | None) -> bool:
    """Return whether an earlier outcome is of the web, and of a file with one of the hashes that it must have now."""
    if row.get("image_bytes") is not None:
        return False
    if hashes is None:
        return row["reason"] != Reason.HASH_MISMATCH
    is_checked = row.get("stated_hash") in hashes
    return is_checked or (row["sha256"] is None or f"sha256:{row['sha256']}" in hashes)


def _outcome(row: Mapping[str, Any]) -> Outcome:
    facts = {name: row[name] for name in _FACTS}
    reason = None if row["reason"] is None else Reason(row["reason"])
    refused_by = None if row["refused_by"] is None else Signal(row["refused_by"])
    return Outcome(**facts | {"reason": reason, "refused_by": refused_by})
