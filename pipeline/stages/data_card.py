"""The data card: the content of a finished set, as a Markdown page made from its own files.

Fractions of hosts, languages and sources are counted in the first `SAMPLED_SHARDS` shards; each shard is a random
sample of the set, and smaller sets are counted in full.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import orjson
import pyarrow.compute as pc

from pipeline.account import Account, StageAccount
from pipeline.config import Config
from pipeline.config.fetch import FetchConfig
from pipeline.engine.workspace import Workspace
from pipeline.records import Reason

SAMPLED_SHARDS = 64
_TOP = 15

_OPT_OUTS = (Reason.ROBOTS_DISALLOWED, Reason.ROBOTS_UNREACHABLE, Reason.OPTED_OUT)


@dataclass
class Composition:
    """Counts over the samples in some shards."""

    shards: int = 0
    samples: int = 0
    columns: dict[str, Counter[str]] = field(
        default_factory=lambda: {name: Counter() for name in ("source", "text_field", "language")}
    )
    hosts: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)  # as sources state them
    more_captions: int = 0
    matches: Counter[int] = field(default_factory=Counter)  # query id -> samples it matches


def measure_composition(workspace: Workspace, shards: Iterable[str]) -> Composition:
    """Read the Parquet files of some shards, one at a time."""
    composition = Composition()
    for name in shards:
        table = workspace.read_table(name, ["status", "url", "captions", "query_ids", "extra", *composition.columns])
        table = table.filter(pc.equal(table["status"], "success"))
        composition.shards += 1
        composition.samples += table.num_rows
        for column, counter in composition.columns.items():
            counter.update(table[column].to_pylist())
        ids, counts = np.unique(pc.list_flatten(table["query_ids"]).to_numpy(), return_counts=True)
        composition.matches.update(dict(zip(ids.tolist(), counts.tolist(), strict=True)))
        composition.hosts.update(urlsplit(url).hostname or "" for url in table["url"].to_pylist())
        composition.licences.update(filter(None, map(_licence, table["extra"].drop_null().to_pylist())))
        composition.more_captions += pc.sum(pc.greater(pc.list_value_length(table["captions"]), 1)).as_py() or 0
    return composition


def stored_form(fetch: FetchConfig) -> str:
    """Return in words what is stored of an image."""
    if fetch.format == "original":
        return "the files as they were served, with all their metadata"
    size = {
        "shorter_side": f"shorter side at most {fetch.image_size} px",
        "longer_side": f"longer side at most {fetch.image_size} px",
        "center_crop": f"shorter side at most {fetch.image_size} px; of larger ones the square in the middle",
        "pad": f"longer side at most {fetch.image_size} px; larger ones with white around them up to a square",
        "none": "in their full size",
    }[fetch.resize]
    return f"{_FORMATS[fetch.format]}, {size}"


_FORMATS = {"jpg": "JPEG", "webp": "WebP", "png": "PNG"}


def write_data_card(
    composition: Composition,
    account: Account,
    config: Config,
    manifest: Mapping[str, Any],
    consent: Sequence[str],
    annotations: str = "",
) -> str:
    """Return the card as Markdown; `consent` is its section about consent, `annotations` names those of the set."""
    lines = [
        "# Data card",
        "",
        f"{manifest['samples']:,} image-text pairs in {len(manifest['shards']):,} WebDataset shards, built with "
        f"wit-pipeline {manifest['code_version']}, seed {config.seed}.",
        "",
        f"- Images: {stored_form(config.fetch)}.",
        f"- Balance: no query selects more than {config.balance.cap:,} pairs (CLIP section 2.2). Pairs that "
        f"other queries select may match it too: {_over_cap(composition, config.balance.cap)}.",
        f"- Duplicates: exact copies{_near(config)} are one sample; the others' captions are in `captions` "
        f"({composition.more_captions:,} of {composition.samples:,} counted samples have more than one).",
        f"- Evaluation sets: {_evals(config)}",
        f"- Opt-outs honoured: {_opt_outs(account)}.",
        "- Licences: unknown. The pairs come from the web; each keeps its `url` and `page_url`. Rights in the images "
        "stay with their owners.",
        *([f"- Annotations, joined later by uid: {annotations}."] if annotations else []),
        "- Known limits: captions are as their authors wrote them; nothing was filtered for safety, faces or quality.",
        "",
        *consent,
        "## Account",
        "",
        "| stage | in | kept | not kept for |",
        "|---|---:|---:|---|",
        *(f"| {s.stage} | {s.inputs:,} | {s.kept:,} | {_reasons(s)} |" for s in account.stages),
        "",
    ]
    counted = "all shards" if composition.shards == len(manifest["shards"]) else f"{composition.shards} shards"
    for title, counter in (*composition.columns.items(), ("host", composition.hosts)):
        lines += _table(title.replace("_", " "), counter, counted)
    if composition.licences:
        lines += _table("licence, where the source states one", composition.licences, counted)
    return "\n".join(lines)


def _licence(extra: str) -> str:
    """Return the licence that a pair's source states, "" for none."""
    kept = orjson.loads(extra)
    return str(next((kept[name] for name in ("license", "licensename", "LICENSE") if kept.get(name)), ""))


def _reasons(stage: StageAccount) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in stage.reasons.items()) or "-"


def _table(title: str, counter: Counter[str], counted: str) -> list[str]:
    total, top = counter.total(), counter.most_common(_TOP)
    rows = [(_cell(name), count) for name, count in top]
    if len(counter) > _TOP:
        rows.append((f"{len(counter) - _TOP:,} more", total - sum(count for _, count in top)))
    head = [f"## By {title} ({counted})", "", f"| {title} | samples | fraction |", "|---|---:|---:|"]
    return [*head, *(f"| {name} | {count:,} | {count / total:.1%} |" for name, count in rows), ""]


def _over_cap(composition: Composition, cap: int) -> str:
    over = sum(count > cap for count in composition.matches.values())
    most = max(composition.matches.values(), default=0)
    return f"{over:,} queries match more than {cap:,} of the counted samples; the maximum is {most:,}"


def _near(config: Config) -> str:
    if not config.dedup.near_duplicates:
        return ""
    return f" and images within {config.dedup.max_distance_bits} bits of PDQ distance"


def _evals(config: Config) -> str:
    if not config.evals:
        return "not compared with any; see `wit evals`."
    names = ", ".join(e.name for e in config.evals)
    done = "measured and reported" if config.dedup.evals == "report" else "matching pairs removed"
    return f"{names}; {done}, see `report/index.html`."


def _opt_outs(account: Account) -> str:
    found: Counter[str] = Counter()
    for stage in account.stages:
        found.update({str(reason): stage.reasons[reason] for reason in _OPT_OUTS if reason in stage.reasons})
    return ", ".join(f"{name} {count:,}" for name, count in found.items()) or "none met"


def _cell(text: str) -> str:
    """Escape untrusted text for a Markdown table."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    return plain.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "\\`") or "(none)"
