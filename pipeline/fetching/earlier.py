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

_FACTS = [field.name for field in fields(Outcome) if field.name != "jpeg"]


@dataclass(frozen=True)
class EarlierPart:
    """The table (schema `FETCHED`) and the tar of a part as fetched for an earlier plan."""

    rows: pa.Table
    tar: BinaryIO
    retried: frozenset[str] = frozenset()  # URLs whose outcome does not count


def reuse(part: Part, earlier: EarlierPart) -> None:
    """Give each URL of `part` without an outcome the one from the earlier plan, also failures."""
    numbers = {url: number for number, url in part.pending()}
    wanted: dict[str, tuple[int, Mapping[str, Any]]] = {}  # of images in the tar: uid -> number and facts of the URL
    for row in earlier.rows.select(["uid", "url", *_FACTS]).to_pylist():
        number = numbers.pop(row["url"], None) if row["url"] not in earlier.retried else None
        if number is not None and row["reason"] is not None:
            part.finish(number, _outcome(row))
        elif number is not None:
            wanted[row["uid"]] = number, row
    with tarfile.open(fileobj=earlier.tar, mode="r|") as tar:
        for member in tar:
            uid = member.name.removesuffix(".jpg")
            if uid in wanted:
                number, row = wanted.pop(uid)
                image = tar.extractfile(member)
                assert image is not None
                part.finish(number, _outcome(row), image.read())


def _outcome(row: Mapping[str, Any]) -> Outcome:
    facts = {name: row[name] for name in _FACTS}
    reason = None if row["reason"] is None else Reason(row["reason"])
    refused_by = None if row["refused_by"] is None else Signal(row["refused_by"])
    return Outcome(**facts | {"reason": reason, "refused_by": refused_by})
