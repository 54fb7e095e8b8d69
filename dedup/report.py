"""Write the overlap report: one static page to look at (index.html) and one file for programs (overlap.json).

The page is self-contained: it includes its styles, script, charts and thumbnails, its Content-Security-Policy forbids
every request, and allows only the script with the hash that it names. Untrusted text (captions, URLs, labels, file
names) is escaped, and becomes a link only if it is an http or https URL.
"""

import base64
import hashlib
import json
from collections import Counter
from functools import cache
from importlib import resources
from pathlib import Path
from statistics import fmean, median
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dedup import charts
from dedup.eval_sets import registered
from dedup.report_data import Balance, EvalReport, ModelAccuracy, QueryRow, ReportData
from dedup.statistics import SIGNIFICANCE, Proportion, bonferroni, contamination

MIN_SETS = 5
"""The median of fewer sets is not reported."""
FORMAT_VERSION = 5
_CAPTION_CHARS = 400


def write_report(data: ReportData, out_dir: Path) -> None:
    """Write index.html and overlap.json into `out_dir`, each atomically; equal data give equal bytes."""
    out_dir.mkdir(parents=True, exist_ok=True)
    contents = {"overlap.json": render_json(data), "index.html": render_html(data)}
    for name, content in contents.items():
        unfinished = out_dir / f"{name}.tmp"
        unfinished.write_bytes(content.encode("utf-8", "replace"))
        unfinished.replace(out_dir / name)


def render_json(data: ReportData) -> str:
    """Return overlap.json: the numbers of the page, and the pairs of the evidence without their thumbnails."""
    tests = _tests(data)
    document = {
        "format": FORMAT_VERSION,
        "facts": dict(data.facts),
        "overall": overall(data),
        "min_quality": data.min_quality,
        "detector": data.detector,
        "control": data.control.to_json() if data.control else None,
        "refused": None if data.refused is None else dict(data.refused),
        "sets": [_set_json(report, tests) for report in data.evals],
        "not_measured": [known.name for known in data.not_measured],
        "account": [vars(stage) | {"reasons": dict(stage.reasons)} for stage in data.stages],
        "balance": vars(data.balance) if data.balance else None,
        "queries": {"head": [_query_json(row) for row in data.head], "tail": [_query_json(row) for row in data.tail]},
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def overall(data: ReportData) -> dict[str, Any]:
    """Return the median and mean overlap, and the number of sets without any: what the paper reports for its 35 sets.

    If at least MIN_SETS registered sets are measured, the numbers cover these and are comparable with the paper's;
    otherwise they cover all sets. The median of fewer than MIN_SETS sets is None.
    """
    known = [report for report in data.evals if report.known is not None and report.known.is_registered]
    is_comparable = len(known) >= MIN_SETS
    counted = known if is_comparable else data.evals
    shares = [report.share.value for report in counted if report.share.value is not None]
    return {
        "measured": len(known),
        "registered": len(registered()),
        "sets": len(data.evals),
        "is_comparable": is_comparable,
        "counted": len(counted),
        "median_share": median(shares) if len(shares) >= MIN_SETS else None,
        "mean_share": fmean(shares) if shares else None,
        "without_overlap": sum(report.summary.overlap == 0 for report in counted),
    }


def render_html(data: ReportData) -> str:
    """Return the page."""
    tests = _tests(data)
    style = _asset("report.css")
    script = _asset("report.js") + _asset("judge.js") + _asset("queries.js")
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            data=data,
            overall=overall(data),
            sets=[_set_view(report) for report in data.evals],
            captioned=any(report.captions for report in data.evals),
            axis_end=charts.round_ceiling(max(map(_largest_share, data.evals), default=0)),
            balance=_balance_view(data.balance),
            scores=_score_rows(data, tests),
            tests=sorted(set(tests.values())),
            significance=SIGNIFICANCE,
            style=Markup(style),
            script=Markup(script),
            policy=f"default-src 'none'; img-src data:; style-src '{_source_hash(style)}'; "
            f"script-src '{_source_hash(script)}'; base-uri 'none'; form-action 'none'",
        )
    )
    return page.lstrip()


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("dedup"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "count": lambda n: f"{n:,}",
        "percent": percent,
        "points": lambda share: "–" if share is None else f"{share * 100:+.2f}",
        "link": web_url,
        "host": lambda url: urlsplit(url).hostname,
        "jpeg": lambda jpeg: f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}",
        "shorten": lambda text: text if len(text) <= _CAPTION_CHARS else f"{text[:_CAPTION_CHARS]}…",
        "words": lambda name: name.replace("_", " "),
        "bucket": charts.bucket_label,
    }
    return environment


def percent(share: float | None) -> str:
    """Format a fraction as a percentage: 21.5 %, 0.32 %, 0 %."""
    if share is None:
        return "–"
    value = share * 100
    return "0\u00a0%" if value == 0 else f"{value:.1f}\u00a0%" if value >= 0.95 else f"{value:.2g}\u00a0%"


def web_url(url: str) -> str | None:
    """Return a URL that is safe to link to, or None: only http and https, with a host."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    return url if parts.scheme in ("http", "https") and parts.hostname else None


def _asset(name: str) -> str:
    return resources.files("dedup").joinpath("templates", name).read_text(encoding="utf-8")


def _source_hash(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def _tests(data: ReportData) -> Counter[str]:
    """Return on how many sets each model is tested: the number of hypotheses for Bonferroni's correction."""
    return Counter(score.model for report in data.evals for score in report.accuracies if score.is_tested)


def _score_rows(data: ReportData, tests: Counter[str]) -> list[dict[str, Any]]:
    """Return a row for each set and model, with the p-value corrected for the number of sets tested."""
    return [
        {"report": report, "number": number, **vars(score), "corrected_p": _corrected(score, tests)}
        for number, report in enumerate(data.evals, start=1)
        for score in _by_model(report)
    ]


def _by_model(report: EvalReport) -> list[ModelAccuracy]:
    return sorted(report.accuracies, key=lambda score: score.model)


def _corrected(score: ModelAccuracy, tests: Counter[str]) -> float | None:
    return bonferroni(score.accuracy.p_value, tests[score.model]) if score.is_tested else None


def _set_view(report: EvalReport) -> dict[str, Any]:
    bits = report.summary.distances
    at_most = [contamination(int(n) + report.summary.edited, report.indexed) for n in np.cumsum(bits)]
    pairs = [
        sum(bits[bit : bit + 2]) for bit in range(0, len(bits), 2)
    ]  # PDQ distances are even, except for flat images
    labels = [f"{bit}–{min(bit + 1, len(bits) - 1)} bits" for bit in range(0, len(bits), 2)]
    return {
        "report": report,
        "by_threshold": json.dumps(
            [[p.count, percent(p.value), f"{percent(p.low)} – {percent(p.high)}"] for p in at_most]
        ),
        "bars": charts.bars([pairs], labels, 240, 48),
    }


def _largest_share(report: EvalReport) -> float:
    """Return the largest fraction in the chart of a set: the end of its interval, or the paper's."""
    paper = report.known.clip_overlap_percent if report.known else None
    return max(report.share.high, (paper or 0) / 100)


def _balance_view(balance: Balance | None) -> dict[str, Any] | None:
    if balance is None:
        return None
    buckets = max(len(balance.before), len(balance.after))
    series = [balance.before, balance.after]
    return {
        "facts": balance,
        "buckets": buckets,
        "bars": charts.bars(series, [charts.bucket_label(b) for b in range(buckets)], 800, 220, log=True),
        "grid": charts.grid(series, 220),
        "cap_x": charts.cap_place(balance.cap, buckets, 800),
    }


def _set_json(report: EvalReport, tests: Counter[str]) -> dict[str, Any]:
    scores = [_score_json(score, tests) for score in _by_model(report)]
    return {
        "name": report.name,
        "title": report.title,
        "registered": report.known is not None and report.known.is_registered,
        "indexed": report.indexed,
        "left_out": dict(report.left_out),
        "flat": report.flat,
        "max_distance_bits": report.max_distance_bits,
        "min_probability": report.min_probability,
        **vars(report.summary),
        "share": _proportion_json(report.share),
        "accuracies": scores,
        "evidence_limit": report.evidence_limit,
        "judged": None
        if report.judged is None
        else vars(report.judged) | {"precision": _proportion_json(report.judged.precision)},
        "recall": None if report.recall is None else report.recall.to_json(),
        "captions": None
        if report.captions is None
        else vars(report.captions) | {"share": _proportion_json(report.captions.share)},
        "corrected_fraction": None if report.corrected is None else list(report.corrected),
        "evidence": [
            {name: value for name, value in vars(pair).items() if not name.endswith("_jpeg")}
            for pair in report.evidence
        ],
    }


def _score_json(score: ModelAccuracy, tests: Counter[str]) -> dict[str, Any]:
    accuracy = score.accuracy
    return {
        "model": score.model,
        **{name: _proportion_json(getattr(accuracy, name)) for name in ("all", "clean", "overlap")},
        "inflation": accuracy.inflation,
        "advantage": accuracy.advantage,
        "p_value": accuracy.p_value,
        "bonferroni_p_value": _corrected(score, tests),
    }


def _proportion_json(proportion: Proportion) -> dict[str, Any]:
    names = ("count", "total", "value", "low", "high", "confidence")
    return {name: getattr(proportion, name) for name in names}


def _query_json(row: QueryRow) -> dict[str, Any]:
    return vars(row) | {"not_kept": row.not_kept}
