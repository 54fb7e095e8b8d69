"""`results.md` from `results.jsonl`: a table for each phase."""

import json
from pathlib import Path
from typing import Any


def write_report(out: Path) -> None:
    """Write the results that are there as Markdown, atomically."""
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    partial = out / "results.md.partial"
    partial.write_text(markdown(lines))
    partial.replace(out / "results.md")


def markdown(lines: list[dict[str, Any]]) -> str:
    """Return a table of each phase's figures; its outcome is a line above."""
    parts = ["# Results\n"]
    for phase in dict.fromkeys(line["phase"] for line in lines):
        own = [
            {key: value for key, value in line.items() if key != "phase"} for line in lines if line["phase"] == phase
        ]
        rows, ends = [row for row in own if "seconds" not in row], [row for row in own if "seconds" in row]
        parts.append(f"## {phase}\n")
        parts += [_outcome(end) for end in ends]
        if rows:
            parts.append(_table(rows))
    return "\n".join(parts)


def _outcome(end: dict[str, Any]) -> str:
    kind = next((kind for kind in ("error", "skipped") if kind in end), "done")
    reason = f": {_cell(end[kind])}" if kind in end else ""
    return f"{kind} after {end['seconds']} s{reason}\n"


def _table(rows: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    body = [[_cell(row.get(column)) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *body)) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_cell(part)}" for key, part in value.items())
    if isinstance(value, list):
        return "; ".join(map(_cell, value))
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
