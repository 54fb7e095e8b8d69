"""Check a report: derive every number of overlap.json and of the page again from the tables published beside them.

The numbers about the overlap come from the tables alone. What no table beside the report can say (the account of all
pairs, the balance, the facts at the top) is taken from overlap.json, and must be the same on the page; the account is
compared with accounting.json too. The page is rendered again, with its own thumbnails, and must come out the same.
"""

import base64
import binascii
import html
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa

from dedup.errors import DedupError
from dedup.overlap import pick_evidence
from dedup.published import Published, derive, read_control, read_published
from dedup.report import FORMAT_VERSION, render_html, render_json
from dedup.report_data import Balance, EvalReport, Evidence, QueryRow, ReportData, StageFlow
from dedup.reviews import Reviews

_NO_TEXTS = {"label": None, "caption": "", "url": "", "page_url": ""}  # of a pair that overlap.json does not show
_THUMBNAIL = re.compile(r'<img src="data:image/jpeg;base64,([A-Za-z0-9+/=]*)" alt=|<div class="missing">')


def verify_report(folder: Path) -> list[str]:
    """Return the differences between a report and what its own tables say, one a line; none if all is right.

    Raises:
        DedupError: a file is missing or cannot be read, or the report is of another version.
    """
    told = _read_json(folder / "overlap.json")
    if told.get("format") != FORMAT_VERSION:
        raise DedupError(
            f"{folder}: format {told.get('format')!r} of overlap.json, not {FORMAT_VERSION}: use the version of the "
            "program that wrote the report"
        )
    page = _read_text(folder / "index.html")
    published = read_published(folder)
    reviews = Reviews.read([path for path in [folder / "reviews.json"] if path.exists()])
    try:
        data = _derived(told, published, reviews)
        if told["control"] is not None:
            data = replace(data, control=read_control(folder, told["control"]["images"]))
        missing = sorted({one["name"] for one in told["sets"]} ^ set(published))
        problems = [f"{name}: in only one of overlap.json and examples.parquet" for name in missing]
        problems += _differences("overlap.json", told, json.loads(render_json(data)))
        problems += _account_differences(folder, told)
        data = replace(
            data, evals=tuple(_with_thumbnails(data.evals, page)), pages=_linked(page), queries=_searched(page)
        )
        problems += _page_differences(page, render_html(data))
    except DedupError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DedupError(f"{folder}: overlap.json is damaged ({type(error).__name__}: {error})") from error
    return problems


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        raise DedupError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DedupError(f"{path}: cannot be read ({error})") from error


def _read_json(path: Path) -> dict[str, Any]:
    text = _read_text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DedupError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise DedupError(f"{path}: not a JSON object")
    return content


def _derived(told: Mapping[str, Any], published: Mapping[str, Published], reviews: Reviews) -> ReportData:
    balance = told["balance"]
    if balance:
        balance = Balance(**balance | {"before": tuple(balance["before"]), "after": tuple(balance["after"])})
    return ReportData(
        facts=tuple(told["facts"].items()),
        stages=tuple(StageFlow(**stage) for stage in told["account"]),
        evals=tuple(
            _derived_set(one, published[one["name"]], told["min_quality"], reviews)
            for one in told["sets"]
            if one["name"] in published
        ),
        min_quality=told["min_quality"],
        balance=balance,
        head=tuple(_query(row) for row in told["queries"]["head"]),
        tail=tuple(_query(row) for row in told["queries"]["tail"]),
        detector=told["detector"],
        refused=told["refused"],
    )


def _query(row: Mapping[str, Any]) -> QueryRow:
    return QueryRow(**{name: value for name, value in row.items() if name != "not_kept"})


def _derived_set(told: Mapping[str, Any], published: Published, min_quality: int, reviews: Reviews) -> EvalReport:
    shown = {(pair["eval_id"], pair["uid"]): pair for pair in told["evidence"]}

    def evidence(pairs: pa.Table) -> tuple[Evidence, ...]:
        return tuple(
            Evidence(
                **{name: row[name] for name in ("eval_id", "uid", "distance", "view", "degree", "edit")},
                **{name: shown.get((row["eval_id"], row["uid"]), _NO_TEXTS)[name] for name in _NO_TEXTS},
                eval_jpeg=None,
                image_jpeg=None,
            )
            for row in pick_evidence(pairs, told["evidence_limit"]).to_pylist()
        )

    derived = derive(published, told["max_distance_bits"], min_quality, evidence, reviews)
    return replace(derived, evidence_limit=told["evidence_limit"], min_probability=told["min_probability"])


def _differences(name: str, told: Any, derived: Any) -> Iterator[str]:
    """Yield where two JSON values differ."""
    if isinstance(told, dict) and isinstance(derived, dict):
        for key in [*told, *(key for key in derived if key not in told)]:
            yield from _differences(f"{name}: {key}", told.get(key), derived.get(key))
    elif isinstance(told, list) and isinstance(derived, list) and len(told) == len(derived):
        for place, (one, other) in enumerate(zip(told, derived, strict=True)):
            label = one.get("name", place) if isinstance(one, dict) else place
            yield from _differences(f"{name}: {label}", one, other)
    elif told != derived:
        yield f"{name} is {_short(told)}, but the tables give {_short(derived)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _account_differences(folder: Path, told: Mapping[str, Any]) -> Iterator[str]:
    if (folder / "accounting.json").exists():
        stages = {stage["stage"]: stage for stage in _read_json(folder / "accounting.json")["stages"]}
        for stage in told["account"]:
            other = stages.get(stage["stage"], {})
            for name in ("inputs", "kept", "reasons"):
                if other.get(name) != stage[name]:
                    yield f"account: {stage['stage']}: {name} differs between overlap.json and accounting.json"


def _linked(page: str) -> tuple[tuple[str, str], ...]:
    """Return the further files of the report that the page links to; they have no number about the overlap."""
    line = re.search(r"^<p>Also in this report: (.*)</p>$", page, re.MULTILINE)
    links = re.findall(r'<a href="([^"]*)">([^<]*)</a>', line.group(1)) if line else []
    return tuple((html.unescape(name), html.unescape(shows)) for name, shows in links)


def _searched(page: str) -> str:
    """Return the packed queries that the page searches; their numbers are those of no table beside the report."""
    packed = re.search(r'^<script type="text/plain" id="query-data">([A-Za-z0-9+/=]*)</script>$', page, re.MULTILINE)
    return packed.group(1) if packed else ""


def _with_thumbnails(reports: tuple[EvalReport, ...], page: str) -> Iterator[EvalReport]:
    """Give the evidence the thumbnails of the page, in their order."""
    found = (match.group(1) for match in _THUMBNAIL.finditer(page))
    for report in reports:
        yield replace(
            report,
            evidence=tuple(
                replace(pair, eval_jpeg=_decoded(next(found, None)), image_jpeg=_decoded(next(found, None)))
                for pair in report.evidence
            ),
        )


def _decoded(encoded: str | None) -> bytes | None:
    try:
        return None if encoded is None else base64.b64decode(encoded)
    except binascii.Error:
        return b""


def _page_differences(told: str, derived: str) -> Iterator[str]:
    for number, (line, other) in enumerate(zip_longest(told.split("\n"), derived.split("\n")), start=1):
        if line != other:
            yield f"index.html: line {number} says {_excerpt(line, other)}, but the tables give {_excerpt(other, line)}"


def _excerpt(line: str | None, other: str | None) -> str:
    """Return where a line begins to differ from another, with some characters around."""
    if line is None or other is None:
        return "nothing" if line is None else repr(line[:60])
    same = next((place for place, (a, b) in enumerate(zip(line, other, strict=False)) if a != b), 0)
    return repr(line[max(0, same - 20) : same + 40])
